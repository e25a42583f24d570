"""Class probabilities of rows by their features, learned from labels of which many may be wrong: strictly out of fold.

Rows and target rows are dealt into K folds.  For each fold f, of whose labels nothing is used:

    1. ridge regression of the labels on features, without folds f and g, gives scores of fold g     for every g != f
    2. scores times a, plus b, are class probabilities P: a and b are the most likely, given the labels
    3. labels y come of truths k with T[k, y] = P(given y | truth k), and Q_i(k) ~ P_i(k) T[k, y_i] is what row i's
       truth may be; T by expectation maximisation
    4. ridge regression of Q on features, without fold f, gives P' of fold f; and the mean of Q over a row's nearest
       rows outside of fold f gives P''
    5. P ~ P'^a P''^b, with the a and b that make the labels of the target rows of fold f most likely (1 and 1 without)

Target rows stand among the rows, each ``weight`` times, and their labels are taken to be right: their Q is that label.
So P_i does not depend on the label of row i, nor on any other of its fold.  Features are of mean 0: those of a kernel
(``kernel_features``) of others that are ``standardised``, after the root of their size: sign(x) |x|^(1/2).  Nearness is
the cosine of their leading principal components, which know no label.
Everything is float64, and no number is drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.labels import softmax
from influence_cli.maths.linear_probe import ROUNDING
from influence_cli.maths.neighbours import nearest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RIDGE = 0.5  # times the mean eigenvalue of the rows' Gram matrix
MOST_WEIGHT = 20.0  # of a target row
ROUNDS = 30  # of expectation maximisation
START_RIGHT = 0.6  # the diagonal of T at its start
PRIOR = 0.01  # of the rows, spread over T, so that no entry is 0
HOLD = 5.0  # target rows that the exponents of P' and P'' being 1 are worth
COMPONENTS = 128  # by which rows are near
FLOOR = 1e-12


@dataclass(frozen=True, eq=False)
class Rows:
    """Features [n, d], labels [n] and folds [n] of rows."""

    x: Floats
    y: Ints
    fold: Ints

    def where(self, folds: Ints | list[int]) -> Rows:
        """The rows of some folds."""
        some = np.isin(self.fold, folds)
        return Rows(self.x[some], self.y[some], self.fold[some])


def standardised(x: NDArray[np.floating], by: NDArray[np.floating]) -> Floats:
    """Signed roots of features [n, d], of mean 0 and deviation 1 over those of other rows [m, d].

    >>> standardised(np.array([[4.0, 7.0]]), np.array([[0.0, 1.0], [1.0, 1.0]])).tolist()
    [[3.0, 0.0]]
    """
    roots = np.sign(by) * np.sqrt(np.abs(by.astype(np.float64)))
    mean, deviation = roots.mean(axis=0), roots.std(axis=0)
    own = np.sign(x) * np.sqrt(np.abs(x.astype(np.float64)))
    varies = deviation > np.maximum(1e-9, ROUNDING * np.abs(mean))
    return np.where(varies, own - mean, 0.0) / np.where(varies, deviation, 1.0)


def target_weight(rows: int, target: int) -> float:
    """How many rows a target row is worth: together half of the rows, and each 1 to 20.

    >>> target_weight(10_000, 1_000), target_weight(100, 400), target_weight(10_000, 10)
    (5.0, 1.0, 20.0)
    """
    return float(np.clip(rows / (2 * target), 1.0, MOST_WEIGHT)) if target else 0.0


@dataclass(frozen=True, eq=False)
class CorrectedProbe:
    """The rows, the target rows (none is fine), the numbers of classes and of folds, and how many neighbours count."""

    rows: Rows
    target: Rows
    classes: int
    folds: int
    neighbours: int = 50
    done: Callable[[int], None] = lambda _: None  # told of rows as they are judged

    @functools.cached_property
    def _components(self) -> Floats:
        """The leading principal directions of the rows' features [d, c]."""
        from scipy.linalg import eigh

        gram, most = self.rows.x.T @ self.rows.x, self.rows.x.shape[1]
        return eigh(gram, subset_by_index=[max(0, most - COMPONENTS), most - 1])[1]

    def probabilities(self) -> tuple[Floats, Floats]:
        """P of the rows [n, C] and of the target rows [m, C], each by models that know no label of its fold."""
        own, theirs = (np.empty((len(part.y), self.classes)) for part in (self.rows, self.target))
        ridge = _Ridge(self)
        for f in range(self.folds):
            mine, held = self.rows.fold == f, self.target.fold == f
            own[mine], theirs[held] = self._of_fold(ridge, f, self.rows.x[mine], self.target.where([f]))
            self.done(int(mine.sum()))
        return own, theirs

    def _of_fold(self, ridge: _Ridge, f: int, x: Floats, held: Rows) -> tuple[Floats, Floats]:
        """P of the rows with features x, and of target rows, all of fold f."""
        others = [g for g in range(self.folds) if g != f]
        rest = np.flatnonzero(self.rows.fold != f)
        scores = np.empty((len(self.rows.y), self.classes))
        for g in others:
            mine = self.rows.fold == g
            scores[mine] = self.rows.x[mine] @ ridge.on_labels((f, g))
        labels = self.rows.y[rest]
        probabilities = softmax(_scaled(scores[rest], labels, self.classes))
        truths = np.zeros_like(scores)
        truths[rest] = posterior(probabilities, labels, confusion(probabilities, labels))
        theta = ridge.on_truths(f, truths)
        a, b = _scale((self.rows.x @ theta)[rest], truths[rest])
        x = np.concatenate([x, held.x])
        own = np.log(softmax(a * (x @ theta) + b) + FLOOR)
        near = np.log(self._neighbours(x, rest, truths))
        of_held = slice(len(x) - len(held.y), None)
        powers = _exponents(own[of_held], near[of_held], held.y)
        found = softmax(powers[0] * own + powers[1] * near)
        return found[: of_held.start], found[of_held]

    def _neighbours(self, x: Floats, rest: Ints, truths: Floats) -> Floats:
        """The mean of the truths of the nearest rows that are not of the fold; half a row of any class is added."""
        k = min(self.neighbours, len(rest))
        found = nearest(x @ self._components, self.rows.x[rest] @ self._components, k)
        counts = truths[rest][found.places].sum(axis=1)
        return (counts + 0.5 / self.classes) / (k + 0.5)


class _Ridge:
    """Ridge regressions without some of the folds: the Gram matrices are summed by fold once."""

    def __init__(self, probe: CorrectedProbe) -> None:
        self.probe, self.weight = probe, target_weight(len(probe.rows.y), len(probe.target.y))
        self.parts = [(probe.rows.where([g]), probe.target.where([g])) for g in range(probe.folds)]
        self.grams = [own.x.T @ own.x + self.weight * (t.x.T @ t.x) for own, t in self.parts]
        self.sides = [self._side(g, _one_hot(self.parts[g][0].y, probe.classes)) for g in range(probe.folds)]
        self.known: dict[tuple[int, ...], Floats] = {}

    def on_labels(self, without: tuple[int, int]) -> Floats:
        """Coefficients [d, C] for the labels of the rows outside of two folds."""
        pair = (min(without), max(without))
        if pair not in self.known:
            self.known[pair] = self._solve(pair, self.sides)
        return self.known[pair]

    def on_truths(self, without: int, truths: Floats) -> Floats:
        """Coefficients [d, C] for what the truths [n, C] of the rows outside of a fold may be."""
        sides = [self._side(g, truths[self.probe.rows.fold == g]) for g in range(self.probe.folds)]
        return self._solve((without,), sides)

    def _side(self, fold: int, wanted: Floats) -> Floats:
        own, target = self.parts[fold]
        share = 1.0 / self.probe.classes
        of_target = target.x.T @ (_one_hot(target.y, self.probe.classes) - share)
        return own.x.T @ (wanted - share) + self.weight * of_target

    def _solve(self, without: tuple[int, ...], sides: list[Floats]) -> Floats:
        from scipy.linalg import solve

        used = [g for g in range(self.probe.folds) if g not in without]
        gram = np.sum([self.grams[g] for g in used], axis=0)
        gram[np.diag_indices(len(gram))] += RIDGE * max(float(np.trace(gram)) / len(gram), FLOOR)
        wanted = np.sum([sides[g] for g in used], axis=0)
        return np.asarray(solve(gram, wanted, assume_a="pos", overwrite_a=True), dtype=np.float64)


def _one_hot(labels: Ints, classes: int) -> Floats:
    return np.eye(classes)[labels]


def _scaled(scores: Floats, labels: Ints, classes: int) -> Floats:
    """Scores [n, C] times the a, plus the b [C], that make the labels most likely."""
    a, b = _scale(scores, _one_hot(labels, classes))
    return a * scores + b


def _scale(scores: Floats, wanted: Floats) -> tuple[float, Floats]:
    """The a and b [C] by which softmax(a scores + b) is nearest to probabilities [n, C]; b is held at 0 a little."""
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    size = max(float(np.abs(scores).mean()), FLOOR)

    def loss(at: Floats) -> tuple[float, Floats]:
        z = at[0] * scores / size + at[1:]
        total = logsumexp(z, axis=1)
        gap = (np.exp(z - total[:, None]) - wanted) / len(z)
        value = float((total - (wanted * z).sum(axis=1)).mean()) + 1e-4 * float(at[1:] @ at[1:])
        return value, np.concatenate([[(gap * scores).sum() / size], gap.sum(axis=0) + 2e-4 * at[1:]])

    start = np.concatenate([[1.0], np.zeros(scores.shape[1])])
    found = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return float(found[0]) / size, found[1:]


def _exponents(own: Floats, near: Floats, labels: Ints) -> Floats:
    """The exponents of P' and P'' that make labels most likely, from their logs [m, C]; held at 1 and 1."""
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    if not len(labels):
        return np.ones(2)
    at_label = np.arange(len(labels)), labels

    def loss(powers: Floats) -> float:
        z = powers[0] * own + powers[1] * near
        return float((logsumexp(z, axis=1) - z[at_label]).sum()) + HOLD / 2 * float(((powers - 1.0) ** 2).sum())

    found = minimize(loss, np.ones(2), method="L-BFGS-B", bounds=[(0.0, None)] * 2)
    return np.asarray(found.x, dtype=np.float64)


def confusion(probabilities: Floats, labels: Ints) -> Floats:
    """T [C, C], the probability of each given label by truth, from probabilities of truths [n, C] and labels [n].

    >>> sure = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    >>> confusion(sure, np.array([0, 0, 1, 1])).round(2).tolist()
    [[0.67, 0.33], [0.01, 0.99]]
    """
    classes = probabilities.shape[1]
    wanted = _one_hot(labels, classes)
    found = np.full((classes, classes), (1.0 - START_RIGHT) / (classes - 1))
    np.fill_diagonal(found, START_RIGHT)
    for _ in range(ROUNDS):
        counts = posterior(probabilities, labels, found).T @ wanted + PRIOR * len(labels) / classes**2
        found = counts / counts.sum(axis=1, keepdims=True)
    return found


def posterior(probabilities: Floats, labels: Ints, matrix: Floats) -> Floats:
    """Q [n, C]: what the truth of a row may be, given its label too."""
    found = probabilities * matrix[:, labels].T + FLOOR
    return found / found.sum(axis=1, keepdims=True)

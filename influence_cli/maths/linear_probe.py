"""Linear probes: ridge regression on standardised features, in closed form from sums over rows.

With features f of d numbers, standardised by the mean and sd of the rows that it is fitted on or beside (``scaled``),
x = [f; 1], targets y [m] and row weights w, a probe is the theta [d + 1, m] of least

    sum_i w_i |theta^T x_i - y_i|^2 + lambda sum_i w_i |theta without its last row|^2

so that lambda is the strength beside a mean over rows, and the intercept is free of it.  Targets of classes are 1 for
the row's own and 0 for the others.  All that a fit needs of its rows are two sums, A = sum w x x^T and
B = sum w x y^T: those of folds add up, and a fit that leaves rows out is their difference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Features = NDArray[np.floating]

STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-7, 4))  # 0.0003 to 30: those that are tried
ROUNDING = 1e-6  # of a feature's mean: no sd, but float32 that is added up in another order from batch to batch
BLOCK = 4096  # rows that are in float64 at a time


@dataclass(frozen=True, eq=False)
class Scale:
    """Mean and sd [d] of features; 1 in place of one that is rounding, so that a constant feature is all but 0."""

    mean: Floats
    sd: Floats

    def of(self, features: Features) -> Floats:
        """X = [f; 1] of features [n, d], float64 [n, d + 1]."""
        x = np.empty((len(features), features.shape[1] + 1))
        np.subtract(features, self.mean, out=x[:, :-1])
        x[:, :-1] /= self.sd
        x[:, -1] = 1.0
        return x


def scaled(features: Features) -> Scale:
    """The scale of features [n, d], each row as much as another.

    >>> s = scaled(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> s.of(np.array([[3.0, 5.0]])).tolist()
    [[1.0, 0.0, 1.0]]
    """
    n, total, squares = len(features), np.zeros(features.shape[1]), np.zeros(features.shape[1])
    for at in range(0, n, BLOCK):
        total += features[at : at + BLOCK].sum(axis=0, dtype=np.float64)
    mean = total / n
    for at in range(0, n, BLOCK):
        squares += ((features[at : at + BLOCK] - mean) ** 2).sum(axis=0)
    sd = np.sqrt(squares / n)
    return Scale(mean, np.where(sd > np.maximum(1e-12, ROUNDING * np.abs(mean)), sd, 1.0))


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows that are fitted on, or judged: features [n, d], targets [n, m] and weights [n]."""

    features: Features
    targets: Floats
    weights: Floats

    def at(self, rows: NDArray[np.int64]) -> Examples:
        """Some of them, by their places."""
        return Examples(self.features[rows], self.targets[rows], self.weights[rows])


@dataclass(frozen=True, eq=False)
class Sums:
    """What a fit needs of some rows: A [d + 1, d + 1] and B [d + 1, m]; the last entry of A is the sum of weights."""

    a: Floats
    b: Floats

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.a + other.a, self.b + other.b)

    def __sub__(self, other: Sums) -> Sums:
        return Sums(self.a - other.a, self.b - other.b)

    def solved(self, strength: float) -> Floats:
        """The probe theta [d + 1, m] of a strength above 0."""
        from scipy.linalg import cho_factor, cho_solve

        a = self.a.copy()
        inner = np.arange(len(a) - 1)
        a[inner, inner] += strength * a[-1, -1]
        return cho_solve(cho_factor(a, lower=True, overwrite_a=True, check_finite=False), self.b, check_finite=False)


def sums(rows: Examples, scale: Scale) -> Sums:
    """The sums over rows."""
    width = rows.features.shape[1] + 1
    a, b = np.zeros((width, width)), np.zeros((width, rows.targets.shape[1]))
    for at in range(0, len(rows.features), BLOCK):
        some = slice(at, at + BLOCK)
        x, root = scale.of(rows.features[some]), np.sqrt(rows.weights[some])[:, None]
        x *= root
        a += x.T @ x
        b += x.T @ (root * rows.targets[some])
    return Sums(a, b)


def added(parts: Sequence[Sums]) -> Sums:
    """The sums over the rows of all parts, of which there is one at least."""
    return functools.reduce(lambda one, other: one + other, parts)


def predicted(features: Features, probes: Sequence[Floats], scale: Scale) -> list[Floats]:
    """What each of several probes [d + 1, m] gives for features [n, d]: [n, m]."""
    found = [np.empty((len(features), p.shape[1])) for p in probes]
    for at in range(0, len(features), BLOCK):
        x = scale.of(features[at : at + BLOCK])
        for values, probe in zip(found, probes, strict=True):
            values[at : at + BLOCK] = x @ probe
    return found


def out_of_fold(
    examples: Examples, fold: NDArray[np.int64], folds: int, strengths: Sequence[float],
    done: Callable[[int], None] = lambda _: None,
) -> tuple[Floats, list[float]]:  # fmt: skip
    """What the probe of its fold gives for each row [n, m], NaN in fold -1; and the strength of each fold.

    The probe of a fold is fitted on the rows of all others, at the strength of least squared error on the next fold for
    a probe that is fitted on the rest.  Mean and sd of features, which know no label, are those of all folds.  ``done``
    is told of rows as they are judged.

    >>> x, y = np.array([[-1.0], [1.0]] * 6), np.array([0, 1] * 6)
    >>> given, _ = out_of_fold(Examples(x, indicators(y, 2), np.ones(12)), np.arange(12) % 3, 3, [0.01])
    >>> bool((given.argmax(axis=1) == y).all())
    True
    """
    own = [np.flatnonzero(fold == k) for k in range(folds)]
    scale, given = scaled(examples.features[fold >= 0]), np.full(examples.targets.shape, np.nan)
    parts, chosen = [sums(examples.at(rows), scale) for rows in own], list[float]()
    for k, rows in enumerate(own):
        following = (k + 1) % folds
        others = [part for j, part in enumerate(parts) if j not in (k, following)]
        errors = squared_errors(examples.at(own[following]), added(others), scale, strengths)
        chosen.append(strengths[int(np.argmin(errors))])
        probe = added([*others, parts[following]]).solved(chosen[-1])
        given[rows] = predicted(examples.features[rows], [probe], scale)[0]
        done(len(rows))
    return given, chosen


def squared_errors(rows: Examples, fitted: Sums, scale: Scale, strengths: Sequence[float]) -> Floats:
    """For each strength the sum of w |theta^T x - y|^2 over rows that are not among those ``fitted``."""
    found = predicted(rows.features, [fitted.solved(s) for s in strengths], scale)
    return np.array([float(rows.weights @ ((z - rows.targets) ** 2).sum(axis=1)) for z in found])


def indicators(labels: NDArray[np.int64], classes: int) -> Floats:
    """1 for the row's own class and 0 for the others, [n, C].

    >>> indicators(np.array([1, 0]), 2).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    return (labels[:, None] == np.arange(classes)).astype(np.float64)


def likeliest_scale(values: Floats, labels: NDArray[np.int64], weights: Floats) -> float:
    """The beta of greatest likelihood of labels [n] under softmax(beta values [n, C]), from 0.01 to 10,000.

    >>> z = np.array([[1.0, 0.0]] * 4)
    >>> round(likeliest_scale(z, np.array([0, 0, 0, 1]), np.ones(4)), 4)  # 3 of 4: log 3
    1.0986
    """
    from scipy.optimize import brentq

    use = np.isfinite(values).all(axis=1) & (weights > 0)
    z, own, w = values[use], values[use, labels[use]], weights[use]
    z = z - z.max(axis=1, keepdims=True)
    own = own - values[use].max(axis=1)

    def slope(log_beta: float) -> float:
        p = np.exp(np.exp(log_beta) * z)
        p /= p.sum(axis=1, keepdims=True)
        return float(w @ (own - (p * z).sum(axis=1)))

    low, high = np.log(0.01), np.log(1e4)
    if slope(low) <= 0.0:
        return 0.01
    return 1e4 if slope(high) >= 0.0 else float(np.exp(brentq(slope, low, high, xtol=1e-10)))

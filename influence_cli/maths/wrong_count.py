"""How many labels are wrong, from what a probe that never saw them makes of them, with an interval.

w_i = 1 - Q_i(y_i) says how likely the label of row i is wrong (``maths.corrected_probe``).  Its mean over the rows is a
mixture: p times its mean over wrong labels, and 1 - p times that over right ones.  Target rows, whose labels are right,
show both: the second as they are, the first with each label that is not theirs, as often as it is given by mistake:

    p = (mean w - right) / (wrong - right)
    right = mean_v w_v(y_v),   wrong = mean_v sum_k W_v(k) w_v(k),   W_v(k) ~ T[y_v, k] P_v(k)^g,  k != y_v

People make mistakes where rows are hard, and towards what a row looks like.  So p is taken by itself over the half of
rows that the probe is surest of and over the others, and mistakes follow P a little: g = 1/4.  Labels that are changed
at random have g = 0, which is the low end of the interval; its high end has g = 1/2.  The interval is that of a
bootstrap over rows and target rows beside; T, the probabilities and the weights are held.  Rows are drawn by the rank
of their w, so that their order changes nothing.

Target rows may be of another class mix than the rows: means over v weigh each class as often as it is among the rows,
divided by how often it is among the target rows.  It is among the rows as often as makes the mean of P over the rows
that over the target rows.  Without target rows p is the mean of w, which takes the probabilities at their word.  Where
target labels may be as wrong as the others, p is by how much more the others are wrong; and features of a model that
has learned from wrong labels hide some, so that p is too small.  In both cases the interval reaches up to that mean of
w, if that is more: as far as probabilities go at their word.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.corrected_probe import FLOOR, confusion, posterior

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LIKENESS = 0.25  # g
LIKENESSES = (0.0, 0.5)  # of the ends of the interval
HALVED = 100  # target rows from which on p is taken for sure rows and for others
DRAWS = 400
SEED = 20_261_129  # of the bootstrap: an answer is the same whenever it is given


@dataclass(frozen=True, eq=False)
class WrongLabels:
    """How likely each label is wrong [n]; how many are, with a 95% interval; and whether wrong ones can be told at all.

    ``apart`` is the interval of by how much more likely wrong labels are taken to be wrong than right ones of the same
    class; None without target rows of two classes, since rows of one class show no label both rightly and wrongly.
    """

    each: Floats
    count: float
    interval: tuple[float, float]
    apart: tuple[float, float] | None
    matrix: Floats  # T [C, C]

    @property
    def tells(self) -> bool:
        """Whether wrong labels are told from right ones better than by chance, as far as that is known."""
        return self.apart is None or self.apart[0] > 0


def wrong_labels(p: Floats, labels: Ints, target: Floats, target_labels: Ints, sure: bool = True) -> WrongLabels:
    """From probabilities of truths [n, C] and [m, C] that know no label of their row, and labels [n] and [m].

    ``sure``: target labels are right, and what p is made of has not learned from the labels; else the count may be too
    small, and the interval reaches up to what the probabilities alone come to.

    >>> p = np.array([[0.99, 0.01]] * 9 + [[0.01, 0.99]] * 9)
    >>> found = wrong_labels(p, np.array([0] * 8 + [1] * 10), p, np.array([0] * 9 + [1] * 9))
    >>> round(found.count), found.tells
    (1, True)
    """
    matrix, n, m = confusion(p, labels), len(labels), len(target_labels)
    each = 1.0 - posterior(p, labels, matrix)[np.arange(n), labels]
    rng = np.random.default_rng(SEED)
    if not m:
        ranked = np.sort(each)
        of_rows = np.array([ranked[rng.integers(0, n, n)].mean() for _ in range(DRAWS)])
        return WrongLabels(each, float(each.sum()), _interval(of_rows * n), None, matrix)
    every = np.stack([1.0 - posterior(target, np.full(m, k), matrix)[:, k] for k in range(p.shape[1])], axis=1)
    others = matrix.copy()
    np.fill_diagonal(others, 0.0)
    others /= others.sum(axis=1, keepdims=True)
    right, weights = every[np.arange(m), target_labels], _weights(p, target, target_labels)
    half, of_half = _halves(p, target)
    by_rank, ranked = np.lexsort((half, each)), np.lexsort((of_half, every.sum(axis=1), right))
    drawn_rows = np.stack([_sums(by_rank[rng.integers(0, n, n)], half, each) for _ in range(DRAWS)])
    times = np.stack([np.bincount(ranked[rng.integers(0, m, m)], minlength=m) for _ in range(DRAWS)]).astype(np.float64)
    once, all_rows = np.ones((1, m)), _sums(np.arange(n), half, each)[None]

    def count(likeness: float, rows: Floats, drawn: Floats) -> Floats:
        wanted = others[target_labels] * target**likeness + FLOOR * others[target_labels]
        wrong = (wanted * every).sum(axis=1) / wanted.sum(axis=1)
        return _count(rows, drawn, weights, of_half, right, wrong)

    low, high = (count(g, drawn_rows, times) for g in LIKENESSES)
    apart = _interval(_apart(times, every, weights[:, None] * others[target_labels], weights, target_labels))
    interval = float(np.quantile(low, 0.025)), float(np.quantile(high, 0.975))
    if not sure:
        alone = np.array([drawn[1].sum() for drawn in drawn_rows])  # sums of w, which take p at its word
        interval = interval[0], max(interval[1], float(np.quantile(alone, 0.975)))
    seen = apart if len(np.unique(target_labels)) > 1 else None
    return WrongLabels(each, float(count(LIKENESS, all_rows, once)[0]), interval, seen, matrix)


def _weights(p: Floats, target: Floats, labels: Ints) -> Floats:
    """How often the class of each target row is among the rows, over how often it is among the target rows [m]."""
    from scipy.optimize import nnls

    there = np.unique(labels)
    of_classes = np.stack([target[labels == k].mean(axis=0) for k in there])
    mix = np.zeros(p.shape[1])
    mix[there] = nnls(of_classes.T, p.mean(axis=0))[0]
    often = np.bincount(labels, minlength=p.shape[1])
    return (mix / mix.sum() * len(labels) / np.maximum(often, 1))[labels]


def _halves(p: Floats, target: Floats) -> tuple[Ints, Ints]:
    """Whether the probe is less sure of each row, and each target row, than of the median target row; 0 where few."""
    if len(target) < HALVED:
        return np.zeros(len(p), dtype=np.int64), np.zeros(len(target), dtype=np.int64)
    middle = float(np.median(target.max(axis=1)))
    return (p.max(axis=1) < middle).astype(np.int64), (target.max(axis=1) < middle).astype(np.int64)


def _sums(rows: Ints, half: Ints, each: Floats) -> Floats:
    """The numbers of some rows of both halves, and the sums of their w [2, 2]."""
    return np.stack([np.bincount(half[rows], w, minlength=2) for w in (None, each[rows])]).astype(np.float64)


def _count(rows: Floats, drawn: Floats, weights: Floats, of_half: Ints, right: Floats, wrong: Floats) -> Floats:
    """The number of wrong labels for draws of rows [t, 2, 2] and of target rows [t, m]; of a half of none as of all."""
    found = np.zeros(len(rows))
    for half in (0, 1):
        inside = weights * (of_half == half)
        total = drawn @ inside
        use = np.where(total[:, None] > 0, drawn * inside, drawn * weights)
        size = np.maximum(use.sum(axis=1), 1e-300)
        numbers = rows[:, 0, half]
        mean = rows[:, 1, half] / np.maximum(numbers, 1.0)
        found += numbers * _share(mean, use @ right / size, use @ wrong / size)
    return found


def _apart(drawn: Floats, every: Floats, wrong: Floats, weights: Floats, labels: Ints) -> Floats:
    """By how much more wrong labels k are doubted than right labels k, over all k, for each draw [t, m] of target rows.

    Within a label: that some labels are doubted more than others says nothing of the rows.  ``every`` [m, C] are the
    w_v(k), ``wrong`` [m, C] how often row v is given k by mistake.
    """
    right = weights[:, None] * np.eye(every.shape[1])[labels]
    often, rightly = drawn @ wrong, drawn @ right
    seen = (often > 0) & (rightly > 0)
    gap = drawn @ (wrong * every) / np.where(seen, often, 1.0) - drawn @ (right * every) / np.where(seen, rightly, 1.0)
    often = np.where(seen, often, 0.0)
    return (often * gap).sum(axis=1) / np.maximum(often.sum(axis=1), 1e-300)


def _share(mean: Floats, right: Floats, wrong: Floats) -> Floats:
    """p, between 0 and 1; 0 where wrong labels look no more wrong than right ones."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (mean - right) / (wrong - right)
    return np.where(wrong > right, np.clip(found, 0.0, 1.0), 0.0)


def _interval(drawn: Floats) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)

"""How many labels are wrong, from what a probe that never saw them makes of them, with an interval.

w_i = 1 - Q_i(y_i) says how likely the label of row i is wrong (``maths.corrected_probe``).  Its mean over the rows is a
mixture: p times its mean over wrong labels, and 1 - p times that over right ones.  Target rows, whose labels are right,
show both: the second as they are, the first with each label that is not theirs, as often as T has it:

    p = (mean w - right) / (wrong - right)
    right = mean_v w_v(y_v),   wrong = mean_v sum_{k != y_v} T[y_v, k] w_v(k) / (1 - T[y_v, y_v])

Target rows may be of another class mix than the rows: means over v weigh each class as often as it is among the rows,
which is the mean of Q_i(class), divided by how often it is among the target rows.

Without target rows p is the mean of w, which takes the probabilities at their word.  Mistakes that people make are
harder to see than labels drawn by T, since they make them where rows are hard: then p is too small.  The interval is
that of a bootstrap over rows and target rows; T, the probabilities and the weights are held.  Rows are drawn by the
rank of their w, so that their order changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.corrected_probe import confusion, posterior

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DRAWS = 400
SEED = 20_261_129  # of the bootstrap: an answer is the same whenever it is given


@dataclass(frozen=True, eq=False)
class WrongLabels:
    """How likely each label is wrong [n]; how many are, with a 95% interval; and whether wrong ones can be told at all.

    ``apart`` is the interval of by how much more likely wrong labels are taken to be wrong than right ones of the same
    class; None without target rows.
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


def wrong_labels(p: Floats, labels: Ints, target: Floats, target_labels: Ints) -> WrongLabels:
    """From probabilities of truths [n, C] and [m, C] that know no label of their row, and labels [n] and [m].

    >>> p = np.array([[0.99, 0.01]] * 9 + [[0.01, 0.99]] * 9)
    >>> found = wrong_labels(p, np.array([0] * 8 + [1] * 10), p, np.array([0] * 9 + [1] * 9))
    >>> round(found.count), found.tells
    (1, True)
    """
    matrix, n, m = confusion(p, labels), len(labels), len(target_labels)
    truths = posterior(p, labels, matrix)
    each = 1.0 - truths[np.arange(n), labels]
    rng, ranked = np.random.default_rng(SEED), np.sort(each)
    of_rows = np.array([ranked[rng.integers(0, n, n)].mean() for _ in range(DRAWS)])
    if not m:
        return WrongLabels(each, float(each.sum()), _interval(of_rows * n), None, matrix)
    every = np.stack([1.0 - posterior(target, np.full(m, k), matrix)[:, k] for k in range(p.shape[1])], axis=1)
    others = matrix.copy()
    np.fill_diagonal(others, 0.0)
    others /= others.sum(axis=1, keepdims=True)
    right, wrong = every[np.arange(m), target_labels], (others[target_labels] * every).sum(axis=1)
    weights = (truths.mean(axis=0) * m / np.maximum(np.bincount(target_labels, minlength=p.shape[1]), 1))[target_labels]
    by_rank = np.lexsort((wrong, right))
    drawn = [by_rank[rng.integers(0, m, m)] for _ in range(DRAWS)]
    of_right, of_wrong = (np.array([_mean(v[d], weights[d]) for d in drawn]) for v in (right, wrong))
    drawn_times = np.stack([np.bincount(d, minlength=m) for d in drawn]).astype(np.float64)
    apart = _interval(_apart(drawn_times, every, weights[:, None] * others[target_labels], weights, target_labels))
    value = _share(each.mean(), _mean(right, weights), _mean(wrong, weights))
    return WrongLabels(each, float(value * n), _interval(n * _share(of_rows, of_right, of_wrong)), apart, matrix)


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


def _mean(values: Floats, weights: Floats) -> float:
    return float((weights * values).sum() / weights.sum())


def _share(mean: Floats | float, right: Floats | float, wrong: Floats | float) -> Floats:
    """p, between 0 and 1; 0 where wrong labels look no more wrong than right ones."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (np.asarray(mean) - right) / (np.asarray(wrong) - right)
    return np.where(np.asarray(wrong) > right, np.clip(found, 0.0, 1.0), 0.0)


def _interval(drawn: Floats) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)

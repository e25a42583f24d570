"""How well a ranking finds the rows that are wrong, for many weightings of the rows at once; ties are exact.

Suspicion s [n] ranks the rows, highest first; f [n] says which are wrong.  Row i counts c_i times (a bootstrap draw
is a vector of counts, the sample itself all ones).  With the counts of wrong and of all rows in the g-th group of
equal suspicion, t_g and m_g, and T_g, M_g their running sums, P = T_G and N = M_G - P,

    AUC = sum_g (m_g - t_g) (T_{g-1} + T_g) / (2 P N)        Mann-Whitney with mid-ranks
    AP  = sum_g (t_g / P) (T_g / M_g)                        no interpolation
    hits at k = T_{g-1} + t_g (k - M_{g-1}) / m_g            in the group that holds the k-th row: the expected
                                                             number under any fair way of breaking the ties

AUC and AP are scikit-learn's ``roc_auc_score`` and ``average_precision_score``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class Ladder:
    """Rows sorted by suspicion, highest first, cut into groups of equal suspicion."""

    order: NDArray[np.intp]  # [n]
    last: NDArray[np.intp]  # [G], place of each group's last row in ``order``

    @classmethod
    def of(cls, suspicion: Floats) -> Ladder:
        """The ladder of finite suspicions [n]; ties stay in row order.

        >>> Ladder.of(np.array([1.0, 3.0, 1.0])).last.tolist()
        [0, 2]
        """
        order = np.argsort(-suspicion, kind="stable")
        sorted_ = suspicion[order]
        return cls(order, np.flatnonzero(np.append(sorted_[1:] != sorted_[:-1], True)))

    def running(self, counts: Counts) -> NDArray[np.int64]:
        """Running sums of counts [D, n], in the order of the ladder, at the end of every group [D, G]."""
        sums = np.cumsum(counts, axis=1, dtype=np.int64)
        return sums if len(self.last) == len(self.order) else sums[:, self.last]


@dataclass(frozen=True, eq=False)
class Found:
    """Running counts of wrong and of all rows down a ladder, [D, G] each."""

    wrong: NDArray[np.int64]
    rows: NDArray[np.int64]

    def auc(self) -> Floats:
        """Area under the ROC curve [D]; nan where a draw has only one kind of row."""
        clean = self.rows - self.wrong
        steps = np.diff(clean, axis=1, prepend=0)
        before = np.concatenate([np.zeros((len(self.wrong), 1), np.int64), self.wrong[:, :-1]], axis=1)
        twice = (steps * (before + self.wrong)).sum(axis=1)
        with np.errstate(invalid="ignore"):
            return twice / (2.0 * self.wrong[:, -1] * clean[:, -1])

    def average_precision(self) -> Floats:
        """Average precision [D]; nan where a draw has no wrong row."""
        steps = np.diff(self.wrong, axis=1, prepend=0)
        with np.errstate(invalid="ignore"):
            return (steps * (self.wrong / np.maximum(self.rows, 1))).sum(axis=1) / self.wrong[:, -1]

    def hits(self, k: int) -> Floats:
        """Expected number of wrong rows among the first k [D]."""
        draws = np.arange(len(self.rows))
        at = np.minimum((self.rows < k).sum(axis=1), self.rows.shape[1] - 1)
        before = np.maximum(at - 1, 0)
        wrong0, rows0 = (np.where(at > 0, x[draws, before], 0) for x in (self.wrong, self.rows))
        wrong1, rows1 = self.wrong[draws, at], self.rows[draws, at]
        share = np.clip((k - rows0) / np.maximum(rows1 - rows0, 1), 0.0, 1.0)
        return wrong0 + (wrong1 - wrong0) * share


def found(ladder: Ladder, wrong: NDArray[np.bool_], counts: Counts) -> Found:
    """Running counts for draws [D, n] of rows of which ``wrong`` [n] are wrong."""
    sorted_ = counts[:, ladder.order]
    return Found(ladder.running(sorted_ * wrong[ladder.order]), ladder.running(sorted_))


@dataclass(frozen=True, eq=False)
class Influence:
    """First-order change of AUC and of AP as each row's weight grows, [n] each: what their noise is made of."""

    auc: Floats
    average_precision: Floats


def influence_of_rows(ladder: Ladder, wrong: NDArray[np.bool_]) -> Influence:
    """Derivatives of AUC and AP with respect to the rows' weights at weights of one (they sum to 0).

    With V_h = M_{h-1} - T_{h-1} + (m_h - t_h)/2 the clean rows above, a wrong row of group h has
    dAUC = ((N - V_h)/N - AUC) / P and a clean one ((T_{h-1} + t_h/2)/P - AUC) / N; with
    A_h = sum_{g >= h} t_g/M_g and B_h = sum_{g >= h} t_g T_g/M_g^2, a wrong one has
    dAP = (T_h/M_h + A_h - B_h - AP) / P and a clean one -B_h / P.
    """
    f = found(ladder, wrong, np.ones((1, len(wrong)), np.int64))
    top, rows = f.wrong[0].astype(np.float64), f.rows[0].astype(np.float64)
    clean = rows - top
    t, c = np.diff(top, prepend=0.0), np.diff(clean, prepend=0.0)
    wrongs, cleans = top[-1], clean[-1]
    auc, ap = f.auc()[0], f.average_precision()[0]
    beaten = (cleans - (clean - c / 2.0)) / cleans - auc
    beats = (top - t / 2.0) / wrongs - auc
    above = np.cumsum((t / rows)[::-1])[::-1]
    below = np.cumsum((t * top / rows**2)[::-1])[::-1]
    group = np.repeat(np.arange(len(t)), np.diff(ladder.last, prepend=-1))
    sorted_wrong = wrong[ladder.order]
    of_auc, of_ap = np.empty(len(wrong)), np.empty(len(wrong))
    of_auc[ladder.order] = np.where(sorted_wrong, beaten[group] / wrongs, beats[group] / cleans)
    of_ap[ladder.order] = np.where(sorted_wrong, (top / rows + above - below - ap)[group], -below[group]) / wrongs
    return Influence(of_auc, of_ap)


def curves(suspicion: Floats, wrong: NDArray[np.bool_], points: int = 200) -> dict[str, dict[str, list[float]]]:
    """ROC and precision-recall curves, at most ``points`` points each, evenly spaced in recall and false positives.

    >>> curves(np.array([2.0, 1.0]), np.array([True, False]))["roc"]
    {'false_positive_rate': [0.0, 0.0, 1.0], 'true_positive_rate': [0.0, 1.0, 1.0]}
    """
    f = found(Ladder.of(suspicion), wrong, np.ones((1, len(wrong)), np.int64))
    hits, rows = f.wrong[0], f.rows[0]
    clean = rows - hits
    kept = _thinned(hits, clean, points - 1)
    true_rate, false_rate = hits[kept] / hits[-1], clean[kept] / clean[-1]
    return {
        "roc": {"false_positive_rate": [0.0, *false_rate.tolist()], "true_positive_rate": [0.0, *true_rate.tolist()]},
        "precision_recall": {"recall": true_rate.tolist(), "precision": (hits[kept] / rows[kept]).tolist()},
    }


def _thinned(hits: NDArray[np.int64], clean: NDArray[np.int64], points: int) -> NDArray[np.int64]:
    """Places to keep: the first, the last, and those at even steps of recall and of false positives."""
    if len(hits) <= points:
        return np.arange(len(hits))
    each = (points - 2) // 2
    steps = np.arange(1, each + 1, dtype=np.float64) / (each + 1)
    kept = np.zeros(len(hits), dtype=bool)
    kept[[0, -1]] = True
    for running in (hits, clean):
        kept[np.searchsorted(running, steps * running[-1])] = True
    return np.flatnonzero(kept)


def jaccard(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float | None:
    """Size of the intersection over that of the union; None where both are empty.

    >>> jaccard(np.array([True, True, False]), np.array([False, True, True]))
    0.3333333333333333
    """
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else None


def lowest(values: Floats, k: int, names: Sequence[bytes] | None = None) -> NDArray[np.bool_]:
    """Mask of the k smallest finite values; ties go to the smaller name, or to the earlier row.

    >>> lowest(np.array([2.0, np.nan, 1.0]), 1).tolist()
    [False, False, True]
    """
    finite = np.flatnonzero(np.isfinite(values))
    tie = np.arange(len(values)) if names is None else np.argsort(np.argsort(np.array(names)))
    chosen = finite[np.lexsort((tie[finite], values[finite]))[:k]]
    mask = np.zeros(len(values), dtype=bool)
    mask[chosen] = True
    return mask


def kendall(a: Floats, b: Floats) -> float | None:
    """Kendall's tau-b, which counts ties; None where it is undefined.

    >>> round(kendall(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])), 12)
    0.333333333333
    """
    from scipy import stats

    if len(a) < 3:
        return None
    tau = float(stats.kendalltau(a, b).statistic)
    return None if np.isnan(tau) else tau


def weighted_spearman(a: Floats, b: Floats, counts: Counts) -> Floats:
    """Spearman's correlation [D] where row i stands ``counts[d, i]`` times, ties at their mean rank; nan if undefined.

    >>> weighted_spearman(np.array([1.0, 2.0, 9.0]), np.array([0.0, 5.0, 6.0]), np.ones((1, 3), np.int64)).tolist()
    [1.0]
    """
    w = counts.astype(np.float64)
    total = w.sum(axis=1)
    x, y = (_weighted_ranks(v, counts) - (total[:, None] + 1.0) / 2.0 for v in (a, b))
    scale = np.sqrt((w * x * x).sum(axis=1) * (w * y * y).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip((w * x * y).sum(axis=1) / scale, -1.0, 1.0)


def _weighted_ranks(values: Floats, counts: Counts) -> Floats:
    """Mean ranks [D, n], from 1, where row i stands ``counts[d, i]`` times."""
    ladder = Ladder.of(-values)
    ends = ladder.running(counts[:, ladder.order])
    starts = np.concatenate([np.zeros((len(ends), 1), np.int64), ends[:, :-1]], axis=1)
    group = np.empty(len(values), dtype=np.int64)
    group[ladder.order] = np.repeat(np.arange(len(ladder.last)), np.diff(ladder.last, prepend=-1))
    return ((starts + ends + 1) / 2.0)[:, group]

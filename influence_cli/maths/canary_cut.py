"""What canaries (rows trained on with a planted wrong label) say of wrong labels below a score: recall, number, share.

With r(t) the share of the C canaries that score t or lower, and f(t) the share of the n other rows that do, which of
the rows are wrong is not known.  A canary's own label may be wrong already, at the rate p that is sought, and the
planted one may then be the right one, with probability c (``same_label``: 1 for two classes, 1/9 for uniform noise
among ten).  So r is a mixture, and so is f:

    r = (1 - pc) R + pc Q,   f = p R + (1 - p) Q      R, Q: shares of the wrong and of the right rows at or below t
    R = ((1 - p) r - pc f) / (1 - p - pc)              the recall of wrong labels

The number of wrong rows is p n.  Since Q >= 0, p <= f / R at every t of every column: the most that canaries allow.
Of these bounds the one is taken that is least with Wilson's lower bound in place of r and the upper in place of f (the
least itself is what chance made least; Garg et al. 2021, "Mixture proportion estimation and PU learning"), and that a
fifth of the canaries, or 20, are found by.  It is the number itself where some column's lowest rows are nearly all
wrong (irreducibility: Blanchard, Lee and Scott 2010, "Semi-supervised novelty detection"), and too large where none
has such rows.  Of the k(t) = n f(t) rows at or below t then

    V(t) = 1 - p n R(t) / k(t)                         are fine

and the probability that a row of score t is wrong is the slope of p n R against k, made to fall with the score (the
least concave majorant: isotonic regression).

All of it assumes that planted labels are as hard to find as real ones.  People confuse what is alike, which is harder:
then recall is smaller than said, as is the number of wrong rows, and the share that is fine is larger or smaller.
Intervals are of the draw of canaries: Clopper and Pearson's for r, with p held, and for all else the 2.5% and 97.5%
points of a bootstrap over canaries in which p is estimated anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL = 0.95
DRAWS = 400
LEAST_SHARE, LEAST_FOUND = 0.2, 20  # canaries that a bound on the number of wrong rows has to rest on
_STEPS = 30  # of a bisection: to 1e-9
_SEED = 20_240_611  # of the bootstrap: an answer is the same whenever it is given


@dataclass(frozen=True, eq=False)
class Column:
    """Scores of one column, the lowest the most suspicious: of the canaries [C] and of the other rows [n], sorted."""

    canaries: Floats  # in the order of the canaries, the same in every column
    rows: Floats

    @classmethod
    def of(cls, canaries: Floats, rows: Floats) -> Column:
        """Scores of the canaries as planted, and of the other rows in any order; all finite."""
        return cls(canaries, np.sort(rows))

    @property
    def sorted_canaries(self) -> Floats:
        """The canaries' scores, lowest first [C]."""
        return np.sort(self.canaries)

    def found(self, at: Floats | float) -> Ints:
        """The number of canaries at or below each score."""
        return np.searchsorted(self.sorted_canaries, at, side="right")

    def taken(self, at: Floats | float) -> Ints:
        """The number of other rows at or below each score."""
        return np.searchsorted(self.rows, at, side="right")


def same_label(labels: Ints, planted: Ints) -> float:
    """How often two canaries of one class were given the same label: how often one gives a wrong row its right label.

    >>> same_label(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]))
    1.0
    >>> same_label(np.array([0, 0, 0]), np.array([1, 1, 2]))
    0.3333333333333333
    """
    pairs, same = 0, 0
    for c in np.unique(labels):
        counts = np.bincount(planted[labels == c])
        total = int(counts.sum())
        pairs += total * (total - 1)
        same += int((counts * (counts - 1)).sum())
    return same / pairs if pairs else 1.0


def recall_of(found: Floats, taken: Floats, wrong: Floats | float, same: float) -> Floats:
    """R, the share of wrong rows that is at or below a score, from r, f, p and c; between 0 and 1.

    >>> float(recall_of(np.array(0.698), np.array(0.1), 0.1, 1.0).round(4))
    0.7727
    """
    return np.clip(((1 - wrong) * found - wrong * same * taken) / (1 - wrong * (1 + same)), 0.0, 1.0)


def most_wrong(columns: Sequence[Column], same: float, counts: Ints | None = None) -> Floats:
    """p, the largest share of wrong rows that canaries allow, least over the columns [D].

    ``counts`` [D, C] says how often each canary stands in a draw; by default once, in one draw.  Bounds are taken at
    the scores of canaries, where they are least.
    """
    counts = np.ones((1, len(columns[0].canaries)), dtype=np.int64) if counts is None else counts
    total, parts = counts.sum(axis=1, keepdims=True), list[tuple[Floats, Floats, Floats]]()
    for column in columns:
        order = np.argsort(column.canaries, kind="stable")
        at = column.canaries[order]
        last = np.flatnonzero(np.append(at[1:] != at[:-1], True))
        found, rows = (np.cumsum(counts[:, order], axis=1) / total)[:, last], len(column.rows)
        taken = column.taken(at[last]) / rows
        parts.append((found, np.tile(taken, (len(found), 1)), np.tile(_wilson(taken, rows, 1), (len(found), 1))))
    found, taken, most_taken = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    enough = found * total >= np.maximum(LEAST_FOUND, LEAST_SHARE * total) - 1e-9
    return _bound(found, taken, np.where(enough, _wilson(found, total, -1), 0.0), most_taken, same)


def _wilson(share: Floats, trials: Ints | int, side: int) -> Floats:
    """An end of Wilson's 95% interval of a share among so many: the lower for side -1, the upper for 1."""
    z2 = 1.96**2
    half = np.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2)))
    return (share + z2 / (2 * trials) + side * half) / (1 + z2 / trials)


def _bound(found: Floats, taken: Floats, least_found: Floats, most_taken: Floats, same: float) -> Floats:
    """The p that is the bound f / R at the place [D] that is chosen with that p itself: found by bisection."""
    low, high = np.zeros(len(found)), np.full(len(found), 0.999 / (1 + same))
    draws = np.arange(len(found))
    for _ in range(_STEPS):
        p = (low + high) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            surely = most_taken / recall_of(least_found, most_taken, p[:, None], same)
            place = np.where(np.isnan(surely), np.inf, surely).argmin(axis=1)
            bound = taken[draws, place] / recall_of(found, taken, p[:, None], same)[draws, place]
        low, high = np.where(bound > p, p, low), np.where(bound > p, high, p)
    return (low + high) / 2


@dataclass(frozen=True, eq=False)
class Estimates:
    """What canaries say of one column, given the share p of wrong rows, and p in the draws of a bootstrap."""

    column: Column
    wrong: float
    same: float
    counts: Ints  # [D, C]
    wrong_drawn: Floats  # [D]

    @property
    def wrong_rows(self) -> float:
        """The number of wrong rows among those that are no canaries."""
        return self.wrong * len(self.column.rows)

    def wrong_interval(self) -> tuple[float, float]:
        """Interval of the number of wrong rows."""
        low, high = np.quantile(self.wrong_drawn, _TAILS) * len(self.column.rows)
        return float(low), float(high)

    def recall(self, at: float) -> tuple[float, float, float]:
        """The share of wrong rows at or below a score, with its interval."""
        from scipy import stats

        found, total = int(self.column.found(at)), len(self.column.canaries)
        low = stats.beta.ppf(_TAILS[0], found, total - found + 1) if found else 0.0
        high = stats.beta.ppf(_TAILS[1], found + 1, total - found) if found < total else 1.0
        shares, taken = np.array([found / total, low, high]), self.column.taken(at) / len(self.column.rows)
        value, low, high = recall_of(shares, np.array(taken), self.wrong, self.same).tolist()
        return value, low, high

    def fine(self, at: Floats) -> Floats:
        """The share of the rows at or below each score that is fine [T]; nan where there is no row."""
        return _fine(self.column, at, self.column.found(at) / len(self.column.canaries), self.wrong, self.same)

    def fine_interval(self, at: float) -> tuple[float, float]:
        """Interval of the share of the rows at or below a score that is fine: of the canaries' draw and of the rows'.

        Of the wrong rows a share R lies there but for chance: their number is binomial.
        """
        rows, taken = len(self.column.rows), int(self.column.taken(at))
        found = (self.counts * (self.column.canaries <= at)).sum(axis=1) / len(self.column.canaries)
        recall = recall_of(found, np.array(taken / rows), self.wrong_drawn, self.same)
        wrong = np.random.default_rng(_SEED + 1).binomial(np.round(self.wrong_drawn * rows).astype(np.int64), recall)
        low, high = np.quantile(1 - np.minimum(wrong, taken) / taken, _TAILS)
        return float(low), float(high)

    def probabilities(self) -> tuple[Floats, Floats, Floats, Floats]:
        """The rows' scores without repeats [U], ascending; the probability that a row of such a score is wrong; and
        its interval's ends.
        """
        scores, rows = np.unique(self.column.rows, return_counts=True)
        place = np.minimum(np.searchsorted(scores, self.column.canaries, side="left"), len(scores) - 1)
        value = self._slopes(rows, np.bincount(place, minlength=len(scores)), self.wrong)
        drawn = np.stack(
            [
                self._slopes(rows, np.bincount(place, weights=count, minlength=len(scores)), wrong)
                for count, wrong in zip(self.counts, self.wrong_drawn.tolist(), strict=True)
            ]
        )
        low, high = np.quantile(drawn, _TAILS, axis=0)
        return scores, value, np.minimum(low, value), np.maximum(high, value)

    def _slopes(self, rows: Ints, canaries: NDArray[Any], wrong: float) -> Floats:
        """The slope of p n R against the number of rows, at every score [U], never rising."""
        from scipy.optimize import isotonic_regression

        found, taken = canaries / len(self.column.canaries), rows / rows.sum()
        steps = ((1 - wrong) * found - wrong * self.same * taken) / (1 - wrong * (1 + self.same))
        slopes = wrong * rows.sum() * steps / rows
        return np.clip(isotonic_regression(slopes, weights=rows, increasing=False).x, 0.0, 1.0)


_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


def _fine(column: Column, at: Floats, found: Floats, wrong: float, same: float) -> Floats:
    taken, rows = column.taken(at), len(column.rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = 1 - wrong * rows * recall_of(found, taken / rows, wrong, same) / taken
    return np.where(taken > 0, np.clip(share, 0.0, 1.0), np.nan)


def estimates(columns: dict[str, Column], same: float) -> dict[str, Estimates]:
    """What canaries say of each column; the number of wrong rows is told by all of them together."""
    every = list(columns.values())
    canaries = len(every[0].canaries)
    counts = np.random.default_rng(_SEED).multinomial(canaries, np.full(canaries, 1 / canaries), DRAWS)
    wrong, drawn = float(most_wrong(every, same)[0]), most_wrong(every, same, counts)
    return {name: Estimates(column, wrong, same, counts, drawn) for name, column in columns.items()}


def cut_for_recall(told: Estimates, target: float) -> float | None:
    """The least canary's score at or below which the target share of wrong rows is expected; None: beyond all of them.

    The k-th lowest of C canaries has a share k / (C + 1) of their kind at or below it, in expectation and whatever
    their distribution: with it in place of k / C the promise holds on average over plantings.
    """
    at, total = told.column.sorted_canaries, len(told.column.canaries)
    share, taken = told.column.found(at) / (total + 1), told.column.taken(at) / len(told.column.rows)
    reached = np.flatnonzero(recall_of(share, taken, told.wrong, told.same) >= target - 1e-12)
    return float(at[reached[0]]) if len(reached) else None


def cut_for_fine(told: Estimates, most: float) -> float | None:
    """The largest score of a row at or below which at most the share ``most`` is fine; None: there is none."""
    scores = np.unique(told.column.rows)
    within = np.flatnonzero(told.fine(scores) <= most + 1e-12)
    return float(scores[within[-1]]) if len(within) else None

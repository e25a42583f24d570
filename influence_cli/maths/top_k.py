"""The K highest and the K lowest scores of every target row, as blocks of train rows come by.

A row helps where its score is positive and harms where it is negative: a side holds no row of the other sign, nor one
whose score is 0 or not finite, and so fewer than K rows where there are not as many.  Equal scores are in the order of
the train rows.  What is held is 2 K scores and places a target row, whatever the number of train rows; the result does
not depend on the order of the blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

SIDES = ("helpful", "harmful")
NONE = -1  # the place of a row that is not there


class TopK:
    """Running results of m target rows: ``scores`` and ``places`` [m, 2, K], most extreme first, by ``SIDES``."""

    def __init__(self, targets: int, k: int) -> None:
        """Nothing has come by yet.

        Raises:
            ValueError: k is not positive.
        """
        if k < 1:
            raise ValueError(f"k={k} is not positive")
        self.k = k
        self.scores = np.full((targets, 2, k), np.nan)
        self.places = np.full((targets, 2, k), NONE, dtype=np.int64)

    def add(self, first: int, places: Places, scores: Floats) -> None:
        """Take the scores [t, b] of the train rows at ``places`` [b] for target rows ``first`` to ``first`` + t.

        >>> top = TopK(targets=1, k=2)
        >>> top.add(0, np.array([0, 1, 2, 3]), np.array([[1.0, -5.0, 3.0, 3.0]]))
        >>> top.places[0].tolist(), top.scores[0].tolist()
        ([[2, 3], [1, -1]], [[3.0, 3.0], [-5.0, nan]])
        """
        usable = np.isfinite(scores)
        for side, sign in enumerate((1.0, -1.0)):
            gains = np.where(usable, sign * scores, -1.0)
            last = np.nan_to_num(sign * self.scores[first : first + len(scores), side, -1], nan=0.0)
            wanted = (gains > 0.0) & (gains >= last[:, None])
            for t in np.flatnonzero(wanted.any(axis=1)).tolist():
                self._merge(first + t, side, sign, places[wanted[t]], gains[t, wanted[t]])

    def _merge(self, target: int, side: int, sign: float, places: Places, gains: Floats) -> None:
        """Put rows, all with positive gains, among those that one target row has on one side."""
        if len(gains) > self.k:  # less than the K-th highest of the block is out, whatever was there
            least = np.partition(gains, len(gains) - self.k)[len(gains) - self.k]
            kept = gains >= least
            places, gains = places[kept], gains[kept]
        there = self.places[target, side] != NONE
        places = np.concatenate([self.places[target, side, there], places])
        gains = np.concatenate([sign * self.scores[target, side, there], gains])
        order = np.lexsort((places, -gains))[: self.k]
        self.places[target, side, : len(order)] = places[order]
        self.scores[target, side, : len(order)] = sign * gains[order]


COLUMNS = 1 << 14  # of a product that are made float64 at once


def inner_products(a: NDArray[np.floating], b: NDArray[np.floating]) -> Floats:
    """< a_t, b_r > [t, r] of a [t, p] and b [r, p] in float64, of which no whole copy is made.

    >>> inner_products(np.float32([[1.0, 2.0]]), np.float32([[3.0, 4.0], [0.5, 0.0]]))
    array([[11. ,  0.5]])
    """
    total = np.zeros((len(a), len(b)))
    for k in range(0, a.shape[1], COLUMNS):
        some = slice(k, k + COLUMNS)
        total += a[:, some].astype(np.float64) @ b[:, some].astype(np.float64).T
    return total

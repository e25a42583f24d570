"""Several score columns into one (methods.md 3.6); the lowest is still the most harmful.

A [k, n] holds k columns of n rows, all finite, positive where the row helps.  r_j are ascending ranks 1..n of column j,
ties at their mean.

    ranksum   sum_j r_j                             the same under any strictly increasing transform of a column
    zsum      sum_j v_j z_j / sum_j v_j             z_j = clip((s_j - median) / (1.4826 MAD), -c, c)
    minrank   max_j r_j                             low only where a row is low in every column
    lexi      s_k where s_k < 0 and every other s_j <= 0, else nan: the row is no candidate
    linear    sum_j (v_j / sum v) s_j / |q_j|       the score of the blended objective, whose direction is
                                                    sum_j (v_j / sum v) q_j / |q_j|, since scores are linear in q
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.noise import ranks

Floats = NDArray[np.float64]


def rank_matrix(columns: Floats) -> Floats:
    """Ascending ranks of every column [k, n]."""
    return np.stack([ranks(c) for c in columns])


def ranksum(columns: Floats) -> Floats:
    """Sum of ranks [n].

    >>> ranksum(np.array([[1.0, 2.0, 9.0], [0.0, 5.0, 4.0]])).tolist()
    [2.0, 5.0, 5.0]
    """
    return rank_matrix(columns).sum(axis=0)


def minrank(columns: Floats) -> Floats:
    """The worst (highest) of a row's ranks [n].

    >>> minrank(np.array([[1.0, 2.0, 9.0], [0.0, 5.0, 4.0]])).tolist()
    [1.0, 3.0, 3.0]
    """
    return rank_matrix(columns).max(axis=0)


def zsum(columns: Floats, weights: Floats, clip: float) -> Floats:
    """Weighted mean of robust z-scores [n]."""
    middle = np.median(columns, axis=1, keepdims=True)
    spread = 1.4826 * np.median(np.abs(columns - middle), axis=1, keepdims=True) + np.finfo(float).tiny
    with np.errstate(over="ignore"):  # where most scores are equal the spread is tiny: clipped
        z = np.clip((columns - middle) / spread, -clip, clip)
    return (weights / weights.sum()) @ z


def lexi(columns: Floats) -> Floats:
    """The last column where it is below 0 and no other is above 0; nan elsewhere [n].

    >>> lexi(np.array([[0.0, 2.0, -1.0], [-3.0, -5.0, -4.0]])).tolist()
    [-3.0, nan, -4.0]
    """
    candidate = (columns[-1] < 0) & (columns[:-1] <= 0).all(axis=0)
    return np.where(candidate, columns[-1], np.nan)


def linear(columns: Floats, weights: Floats, norms: Floats) -> Floats:
    """The score of the blended objective [n], from the norms [k] of the columns' directions.

    >>> linear(np.array([[2.0, 4.0], [3.0, -3.0]]), np.array([1.0, 1.0]), np.array([2.0, 3.0])).tolist()
    [1.0, 0.5]
    """
    return (weights / weights.sum() / norms) @ columns

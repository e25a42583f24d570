"""Intervals and verdicts from a bootstrap over rows that keeps the number of rows of each kind.

The percentile interval of the draws is not used: near the ends of the scale it covers far too little (AUC 0.998 with
30 wrong of 200 rows: 76% of the time in place of 95%), and for average precision, which repeated rows push up, it
is off-centre (88% for a random ranking).  In its place, with the standard deviation se of the draws,

    logit(v) +- t_df se / (v (1 - v))       for a figure v,         and        d +- t_df se       for a difference d

where t_df is Student's 97.5% point.  Where a figure rests on a few rows (an AUC near 1 rests on the clean rows that
are ranked high), se is itself uncertain; df, Satterthwaite's with the kurtosis of the rows' influence values, says
how much.  On binormal scores, AUC 0.5 to 0.998 and 30 to 500 wrong rows, that covers 94 to 98% (99% at AUC 0.998
with 30 wrong rows); with the normal 1.96 in place of t_df it would be 90 to 97%.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.95
BLOCK = 1 << 20  # counts held at once


def draws_of(strata: NDArray[np.bool_], draws: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """Counts [d, n] of ``draws`` bootstrap draws in blocks: as many rows of each of the two strata as there are.

    The draws are the same however they are cut into blocks.
    """
    n = len(strata)
    kinds = [rows for rows in (np.flatnonzero(strata), np.flatnonzero(~strata)) if len(rows)]
    generators = [np.random.default_rng([seed, k]) for k in range(len(kinds))]
    size = max(1, BLOCK // max(1, n))
    for first in range(0, draws, size):
        d = min(size, draws - first)
        counts = np.zeros((d, n), dtype=np.int32)
        for rows, generator in zip(kinds, generators, strict=True):
            m = len(rows)
            drawn = generator.integers(0, m, (d, m)) + np.arange(d)[:, None] * m
            counts[:, rows] = np.bincount(drawn.ravel(), minlength=d * m).reshape(d, m)
        yield counts


def degrees_of_freedom(influence: Floats, strata: NDArray[np.bool_]) -> float:
    """Satterthwaite's degrees of freedom of the variance of a sum of influence values [n], stratum by stratum.

    The variance is sum_k S_k with S_k the centred sum of squares of stratum k, of m_k rows; the variance of S_k is
    estimated by S_k^2 (kurtosis_k - 1) / m_k.  At least 2.

    >>> degrees_of_freedom(np.array([1.0, -1.0, 1.0, -1.0]), np.array([True, True, False, False]))  # no kurtosis
    inf
    """
    variance, spread = 0.0, 0.0
    for rows in (strata, ~strata):
        centred = influence[rows] - (influence[rows].mean() if rows.any() else 0.0)
        squares = float((centred**2).sum())
        if squares > 0.0:
            kurtosis = len(centred) * float((centred**4).sum()) / squares**2
            variance += squares
            spread += squares**2 * (kurtosis - 1.0) / len(centred)
    return max(2.0, 2.0 * variance**2 / spread) if spread > 0.0 else float("inf")


def student(df: float) -> float:
    """The two-sided 95% point of Student's t; the normal one for infinitely many degrees of freedom.

    >>> round(student(float("inf")), 3), round(student(10.0), 3)
    (1.96, 2.228)
    """
    from scipy import special  # stats, which asks it, takes longer to import than all that is done with it

    return float(special.stdtrit(df, (1.0 + LEVEL) / 2.0))


def share_interval(value: float, se: float, df: float, trials: int) -> list[float]:
    """Interval of a figure between 0 and 1, symmetric on the logit scale.

    Where no draw differs (all ranked right, or all wrong) it is Wilson's for ``trials`` successes or failures.

    >>> [round(v, 3) for v in share_interval(1.0, 0.0, float("inf"), 20)]
    [0.839, 1.0]
    >>> [round(v, 3) for v in share_interval(0.5, 0.1, float("inf"), 20)]
    [0.313, 0.687]
    """
    z = student(df)
    if not 0.0 < value < 1.0 or se == 0.0:
        return wilson(value, trials)
    centre, half = np.log(value / (1.0 - value)), z * se / (value * (1.0 - value))
    return [float(1.0 / (1.0 + np.exp(min(-x, 700.0)))) for x in (centre - half, centre + half)]


def wilson(share: float, trials: int) -> list[float]:
    """Wilson's score interval of a share among ``trials``."""
    z2 = student(float("inf")) ** 2
    middle = share + z2 / (2.0 * trials)
    half = float(np.sqrt(z2 * (share * (1.0 - share) / trials + z2 / (4.0 * trials**2))))
    low, high = ((middle + sign * half) / (1.0 + z2 / trials) for sign in (-1.0, 1.0))
    return [max(0.0, float(low)), min(1.0, float(high))]


def correlation_interval(value: float, draws: Floats) -> list[float]:
    """Interval of a correlation from its draws [D], symmetric on Fisher's z scale.

    >>> correlation_interval(1.0, np.array([1.0, 1.0]))
    [1.0, 1.0]
    """
    usable = draws[np.isfinite(draws)]
    if len(usable) < 2 or float(usable.std()) == 0.0 or abs(value) == 1.0:
        return [value, value]
    edge = 1.0 - 1e-15
    centre = np.arctanh(value)
    half = student(float("inf")) * float(np.arctanh(np.clip(usable, -edge, edge)).std())
    return [float(np.tanh(centre - half)), float(np.tanh(centre + half))]


def two_sided(difference: float, se: float, df: float) -> float:
    """The p-value of a difference against none; 1 where there is none, 0 where it never varies."""
    from scipy import special

    if difference == 0.0:
        return 1.0
    return 0.0 if se == 0.0 else float(2.0 * special.stdtr(df, -abs(difference) / se))


def holm(p: Floats) -> Floats:
    """Holm's adjusted p-values [k]: reject those at most 0.05, and the chance of one false rejection is at most 5%.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted

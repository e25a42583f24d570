"""Running moments of losses over draws, and how far chains of draws can be trusted: R-hat and effective sample size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CoMoments:
    """Moments of n losses and of k values beside them over the draws so far (Welford 1962), never changed in place.

    All are taken of what lies beyond the first draw: where losses are far from 0, and near each other, the digits of
    their distance from 0 are no part of any sum.

    >>> seen = CoMoments.none(2, 1)
    >>> for losses, value in (([1.0, 2.0], 1.0), ([3.0, 2.0], 5.0)):
    ...     seen = seen.with_draw(np.array(losses), np.array([value]))
    >>> seen.mean.tolist(), seen.squares.tolist(), seen.products.tolist()
    ([2.0, 2.0], [2.0, 0.0], [[4.0, 0.0]])
    """

    draws: int
    first: Floats  # [n]: losses of the first draw
    beyond: Floats  # [n]: their mean less these
    squares: Floats  # [n]: sum of squared deviations from the mean
    first_others: Floats  # [k]: values of the first draw
    beyond_others: Floats  # [k]: their means less these
    products: Floats  # [k, n]: sum of products of deviations

    @staticmethod
    def none(losses: int, values: int) -> CoMoments:
        """No draws yet."""
        n, k = np.zeros(losses), np.zeros(values)
        return CoMoments(0, n, n, n, k, k, np.zeros((values, losses)))

    @property
    def mean(self) -> Floats:
        """Means of the losses [n]."""
        return self.first + self.beyond

    def with_draw(self, losses: Floats, values: Floats) -> CoMoments:
        """The moments with one more draw of the losses [n] and values [k]."""
        count = self.draws + 1
        first, first_others = (self.first, self.first_others) if self.draws else (losses.copy(), values.copy())
        x = losses - first
        off, of = x - self.beyond, values - first_others - self.beyond_others
        beyond = self.beyond + off / count
        later = x - beyond  # one deviation from the old mean, one from the new
        squares, products = self.squares + off * later, self.products + of[:, None] * later
        return CoMoments(count, first, beyond, squares, first_others, self.beyond_others + of / count, products)


def split_rhat(chains: Floats) -> float:
    """R-hat of chains [C, T], each cut in two (Gelman et al. 2013, section 11.4); NaN for fewer than four draws.

    >>> bool(split_rhat(np.array([[0.0, 1.0, 0.0, 1.0], [5.0, 6.0, 5.0, 6.0]])) > 2)
    True
    """
    half = chains.shape[1] // 2
    if half < 2:
        return float("nan")
    parts = np.concatenate([chains[:, :half], chains[:, -half:]])
    within = float(parts.var(axis=1, ddof=1).mean())
    between = half * float(parts.mean(axis=1).var(ddof=1))
    if within == 0.0:
        return 1.0 if between == 0.0 else float("inf")
    return float(np.sqrt(((half - 1) / half * within + between / half) / within))


def effective_draws(chains: Floats) -> float:
    """Effective sample size of chains [C, T], by Geyer's initial monotone sequence (Vehtari et al. 2021, section 3).

    >>> draws = np.random.default_rng(0).normal(size=(4, 500))
    >>> bool(1500 < effective_draws(draws) < 2600), bool(effective_draws(np.cumsum(draws, axis=1)) < 60)
    (True, True)
    """
    count, length = chains.shape
    if length < 4:
        return float("nan")
    centred = chains - chains.mean(axis=1, keepdims=True)
    size = 1 << (2 * length - 1).bit_length()
    spectrum = np.fft.rfft(centred, size, axis=1)
    covariance = np.fft.irfft(spectrum * spectrum.conj(), size, axis=1)[:, :length].mean(axis=0) / length
    within = covariance[0] * length / (length - 1)
    between = float(chains.mean(axis=1).var(ddof=1)) if count > 1 else 0.0
    total = within * (length - 1) / length + between
    if total <= 0.0:
        return float(count * length)
    rho = 1.0 - (within - covariance * length / (length - 1)) / total
    rho[0] = 1.0
    pairs = rho[: length // 2 * 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs < 0)
    pairs = pairs[: int(negative[0])] if len(negative) else pairs
    time = max(2.0 * float(np.minimum.accumulate(pairs).sum()) - 1.0, 1.0 / np.log10(count * length))
    return float(count * length / time)


def rows_for(share: float, batch: int, rows: int, wanted: float) -> int:
    """How many rows a step bring the noise of minibatches from ``share`` with ``batch`` to ``wanted``.

    It falls as (1 - b / n) / b.

    >>> rows_for(0.4, 10, 110, 0.1), rows_for(0.4, 110, 110, 0.1)
    (32, 110)
    """
    each = wanted / share * (1.0 / batch - 1.0 / rows)
    return min(rows, math.ceil(1.0 / (each + 1.0 / rows)))

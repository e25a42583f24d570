"""How much of a direction is noise: its signal-to-noise ratio, and the rank agreement of two halves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def signal_to_noise(total_norm2: float, bucket_norm2: NDArray[np.float64], sizes: NDArray[np.int64]) -> float | None:
    """The ratio m |q|^2 / tr Cov(grad l_v), from sums of gradients over disjoint buckets of target rows.

    ``total_norm2`` is |sum_v g_v|^2; ``bucket_norm2`` [B] is |sum_{v in b} g_v|^2 and ``sizes`` [B] the bucket
    sizes.  tr Cov is the one-way analysis-of-variance estimate (sum_b |G_b|^2/m_b - |G|^2/m) / (B - 1), unbiased
    where buckets do not depend on the gradients.  Pure noise gives about 1.  None with fewer than two buckets, or
    without any variance.

    >>> signal_to_noise(4.0, np.array([1.0, 1.0]), np.array([1, 1])) is None  # identical gradients: no noise
    True
    """
    used = sizes > 0
    m = int(sizes.sum())
    if used.sum() < 2:
        return None
    between = float((bucket_norm2[used] / sizes[used]).sum()) - total_norm2 / m
    covariance = between / (int(used.sum()) - 1)
    if covariance <= 1e-12 * total_norm2 / m:
        return None
    return total_norm2 / m / covariance


def ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks 1..n with ties at their mean.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]


def spearman(a: NDArray[np.floating], b: NDArray[np.floating]) -> float | None:
    """Rank correlation, ties at their mean rank; None where it is undefined.

    >>> spearman(np.array([1.0, 2.0, 9.0]), np.array([0.0, 5.0, 6.0]))
    1.0
    """
    if len(a) < 3:
        return None
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return None if scale == 0 else float(np.clip(float(x @ y) / scale, -1.0, 1.0))


def spearman_of_draws(a: NDArray[np.floating], b: NDArray[np.floating], chosen: NDArray[np.integer]) -> Floats:
    """``spearman`` of a[c] and b[c] for every row c [n] of ``chosen`` [D, n]; NaN where it is undefined.

    >>> a, b = np.array([1.0, 2.0, 9.0, 4.0]), np.array([0.0, 5.0, 6.0, 1.0])
    >>> spearman_of_draws(a, b, np.array([[0, 1, 2, 3], [0, 0, 1, 2], [1, 1, 1, 1]])).round(6).tolist()
    [0.8, 1.0, nan]
    """
    if len(a) < 3:
        return np.full(len(chosen), np.nan)
    x, y = _ranks_of_draws(a, chosen), _ranks_of_draws(b, chosen)
    scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    with np.errstate(invalid="ignore"):
        return np.clip((x * y).sum(axis=1) / scale, -1.0, 1.0)


def _ranks_of_draws(values: NDArray[np.floating], chosen: NDArray[np.integer]) -> Floats:
    """The ranks [D, n] of what is chosen, ties at their mean, less the mean rank: by how often each value is chosen."""
    different, place = np.unique(values, return_inverse=True)
    at, width = place[chosen], len(different)
    flat = at + width * np.arange(len(chosen))[:, None]
    counts = np.bincount(flat.ravel(), minlength=width * len(chosen)).reshape(len(chosen), width)
    ranks = counts.cumsum(axis=1) - (counts - 1) / 2.0
    return np.take_along_axis(ranks, at, axis=1) - (chosen.shape[1] + 1) / 2.0

"""Paired comparison of two arms over seeds: mean difference and its 95 % t interval."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def mean_interval(values: NDArray[np.float64]) -> dict[str, float | int | None]:
    """Mean and the half-width of its 95 % t interval over n values; the half-width is None for one value.

    >>> mean_interval(np.array([1.0, 3.0]))["mean"]
    2.0
    """
    from scipy import stats

    n = len(values)
    half = None
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return {"mean": float(values.mean()), "half_width": half, "n": n}


def paired_difference(a: NDArray[np.float64], b: NDArray[np.float64], higher_is_better: bool) -> dict[str, Any]:
    """Difference a - b over paired seeds with its interval, and a verdict: better, worse, or not resolved."""
    difference = mean_interval(a - b)
    half, mean = difference["half_width"], difference["mean"]
    assert mean is not None
    if half is None:
        verdict = "one seed: not resolved"
    elif abs(mean) <= half:
        verdict = "not resolved"
    else:
        verdict = "better" if (mean > 0) == higher_is_better else "worse"
    return {**difference, "verdict": verdict}

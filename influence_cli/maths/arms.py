"""Arms compared over seeds: paired differences in one measure, and where arms stand in two.

Of two measures both are higher is better; a point is dominated where another is at least as good in both measures and
better in one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.bootstrap import student

Floats = NDArray[np.float64]


def mean_interval(values: Floats) -> dict[str, float | int | None]:
    """Mean and the half-width of its 95% t interval over n values; the half-width is None for one value.

    >>> mean_interval(np.array([1.0, 3.0]))["mean"]
    2.0
    """
    n = len(values)
    half = None if n < 2 else float(student(n - 1) * values.std(ddof=1) / np.sqrt(n))
    return {"mean": float(values.mean()), "half_width": half, "n": n}


def paired_difference(a: Floats, b: Floats, higher_is_better: bool) -> dict[str, Any]:
    """Difference a - b over paired seeds with its interval, and a verdict: better, worse, or not resolved."""
    found = mean_interval(a - b)
    half, mean = found["half_width"], found["mean"]
    assert mean is not None
    said = "one seed: not resolved" if half is None else verdict(mean, half, higher_is_better)
    return {**found, "verdict": said, "interval_over": "seeds"}


def verdict(mean: float, half: float, higher_is_better: bool) -> str:
    """What an interval says of a difference: better or worse where it leaves out 0, else not resolved.

    >>> verdict(0.2, 0.1, True), verdict(0.2, 0.1, False), verdict(0.0, 0.0, True)
    ('better', 'worse', 'not resolved')
    """
    if abs(mean) <= half:
        return "not resolved"
    return "better" if (mean > 0) == higher_is_better else "worse"


def non_dominated(x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Which of n points no other dominates [n]; equal points do not dominate each other.

    >>> non_dominated(np.array([1.0, 2.0, 0.5]), np.array([2.0, 1.0, 0.5])).tolist()
    [True, True, False]
    """
    as_good = (x[:, None] >= x[None, :]) & (y[:, None] >= y[None, :])  # row is at least as good as column
    better = (x[:, None] > x[None, :]) | (y[:, None] > y[None, :])
    return np.logical_not(np.any(as_good & better, axis=0))


def non_dominated_share(x: Floats, y: Floats, draws: int, seed: int) -> Floats:
    """How often each arm's mean is non-dominated [A] when seeds are drawn again with replacement; x, y [A, S].

    All arms get the same draw: they are paired over seeds.
    """
    seeds = x.shape[1]
    chosen = np.random.default_rng(seed).integers(0, seeds, size=(draws, seeds))
    means_x, means_y = x[:, chosen].mean(axis=2), y[:, chosen].mean(axis=2)  # [A, draws]
    return np.mean([non_dominated(means_x[:, d], means_y[:, d]) for d in range(draws)], axis=0)


def mean_ellipse(x: Floats, y: Floats, level: float = 0.95) -> tuple[float, float, float] | None:
    """Half-axes and angle (radians) of the confidence ellipse of the mean of n >= 3 points [n], by Hotelling's T^2.

    The region is n (m - mu)' S^-1 (m - mu) <= 2 (n - 1) / (n - 2) F_{2, n-2}; None for fewer points.
    """
    from scipy import special

    n = len(x)
    if n < 3:
        return None
    values, vectors = np.linalg.eigh(np.cov(np.stack([x, y])))
    scale = 2.0 * (n - 1) / (n * (n - 2)) * float(special.fdtri(2, n - 2, level))
    minor, major = np.sqrt(np.maximum(values, 0.0) * scale).tolist()
    return major, minor, float(np.arctan2(vectors[1, 1], vectors[0, 1]))


def quadrant(dx: float, dy: float, half_x: float | None, half_y: float | None, x: str = "x", y: str = "y") -> str:
    """Where a point is from the base, by differences of two measures, half-widths of their intervals, and their names.

    "not significant" where either interval covers 0, or there is none (one seed).

    >>> quadrant(0.1, 0.2, 0.05, 0.05), quadrant(0.1, -0.2, 0.05, 0.05), quadrant(0.1, 0.2, 0.05, 0.3)
    ('improvement', 'trade-off: x up, y down', 'not significant')
    >>> quadrant(-0.1, 0.2, 0.05, 0.05, "accuracy", "fairness")
    'trade-off: accuracy down, fairness up'
    """
    if half_x is None or half_y is None or abs(dx) <= half_x or abs(dy) <= half_y:
        return "not significant"
    if dx > 0 and dy > 0:
        return "improvement"
    if dx < 0 and dy < 0:
        return "deterioration"
    return f"trade-off: {x} up, {y} down" if dx > 0 else f"trade-off: {x} down, {y} up"

"""A histogram of scores as SVG of our own, drawn by the colours of the page that it stands in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 60
WIDTH, HEIGHT = 600.0, 150.0  # of the drawing, which is stretched to the width of the page
LEAST = 1.5  # height of a bar with any row in it
TAILS = 0.005  # of the rows at each end: they are in the first and the last bar


@dataclass(frozen=True)
class Bar:
    """One bar: where it stands, and the heights of its flagged rows (at the bottom) and of the others."""

    x: float
    width: float
    flagged: float
    others: float


@dataclass(frozen=True)
class Histogram:
    """Bars, the ends of the axis, the place of the cut in parts of the width, and what it shows in words."""

    bars: list[Bar]
    low: float
    high: float
    cut: float | None
    words: str


def histogram(scores: NDArray[np.float64], flagged: NDArray[np.bool_], cut: float | None) -> Histogram | None:
    """The histogram of scores [n], of which some are ``flagged`` [n]; None where no row has a score."""
    finite = np.isfinite(scores)
    values, marked = scores[finite], flagged[finite]
    if not len(values):
        return None
    low, high = (float(v) for v in np.quantile(values, [TAILS, 1.0 - TAILS]))
    if not low < high:
        low, high = float(values.min()), float(values.max())
    if not low < high:
        low, high = low - 0.5, high + 0.5
    if cut is not None:
        low, high = min(low, cut), max(high, cut)
    inside = np.clip(values, low, high)
    counts, _ = np.histogram(inside, BINS, (low, high))
    of_flagged, _ = np.histogram(inside[marked], BINS, (low, high))
    step, most = WIDTH / BINS, int(counts.max())
    bars = [
        Bar(round(k * step, 2), round(step * 0.9, 2), _height(f, most), _height(c - f, most))
        for k, (c, f) in enumerate(zip(counts.tolist(), of_flagged.tolist(), strict=True))
    ]
    place = None if cut is None else (cut - low) / (high - low)
    words = (
        f"{len(values):,} scores, from {values.min():.3g} to {values.max():.3g}, median {np.median(values):.3g}; "
        f"{int(marked.sum()):,} are flagged"
    )
    return Histogram(bars, low, high, place, words if cut is None else f"{words}, up to {cut:.3g}")


def _height(count: int, most: int) -> float:
    return 0.0 if count == 0 else round(max(LEAST, HEIGHT * count / most), 2)

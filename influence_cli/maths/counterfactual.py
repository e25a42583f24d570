"""How well predicted changes agree with measured ones: rank and linear correlation, slope, sign, and their noise."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.noise import spearman

Floats = NDArray[np.float64]

BOOTSTRAP = 1000
FEWEST = 10  # measured subsets below which no interval is given


def pearson(a: Floats, b: Floats) -> float | None:
    """Linear correlation; None where it is undefined.

    >>> pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
    1.0
    """
    if len(a) < 3:
        return None
    x, y = a - a.mean(), b - b.mean()
    x, y = x / max(float(np.abs(x).max()), 1e-300), y / max(float(np.abs(y).max()), 1e-300)  # tiny values square to 0
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return None if scale == 0 else float(np.clip(float(x @ y) / scale, -1.0, 1.0))


def linear_datamodeling(phi: Floats, predicted: dict[str, Floats], seed: int) -> dict[str, Any]:
    """LDS of every column: Spearman over M subsets of its prediction [M] with the measured Phi [M].

    Intervals are 95 % percentile intervals of a bootstrap over subsets, with the same draws for every column, so that
    the difference of two columns is paired.  Park et al., arXiv:2303.14186, Definition 2.3.
    """
    columns: dict[str, dict[str, Any]] = {n: {"lds": spearman(p, phi), "interval": None} for n, p in predicted.items()}
    result: dict[str, Any] = {"columns": columns, "differences": {}, "bootstrap_draws": BOOTSTRAP}
    if len(phi) < FEWEST:
        return result
    rng = np.random.default_rng(seed)
    chosen = [rng.integers(0, len(phi), len(phi)) for _ in range(BOOTSTRAP)]
    drawn = {n: np.array([_or_nan(spearman(p[c], phi[c])) for c in chosen]) for n, p in predicted.items()}
    for name, values in drawn.items():
        columns[name]["interval"] = interval(values)
    for a, b in itertools.combinations(predicted, 2):
        here, there = columns[a]["lds"], columns[b]["lds"]
        if here is not None and there is not None:
            bounds = interval(drawn[a] - drawn[b])
            result["differences"].setdefault(a, {})[b] = {
                "difference": here - there,
                "interval": bounds,
                "verdict": _verdict(bounds),
            }
    return result


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def interval(values: Floats) -> list[float] | None:
    """The 95 % percentile interval of bootstrap values, undefined ones left out."""
    usable = values[np.isfinite(values)]
    if len(usable) < len(values) / 2:
        return None
    low, high = np.percentile(usable, [2.5, 97.5])
    return [float(low), float(high)]


def _verdict(bounds: list[float] | None) -> str:
    if bounds is None or bounds[0] <= 0 <= bounds[1]:
        return "not resolved"
    return "better" if bounds[0] > 0 else "worse"


def reliability(phi: Floats) -> float | None:
    """Spearman-Brown reliability of the mean over R seeds, from Phi [M, R]: R r / (1 + (R - 1) r).

    r is the mean Spearman correlation, over subsets, of two single seeds.  No prediction can be expected to correlate
    with the measured means by more than the square root of this.  None with one seed.

    >>> reliability(np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    1.0
    """
    seeds = phi.shape[1]
    pairs = [spearman(phi[:, a], phi[:, b]) for a, b in itertools.combinations(range(seeds), 2)]
    known = [r for r in pairs if r is not None]
    if not known:
        return None
    r = max(0.0, float(np.mean(known)))
    return seeds * r / (1.0 + (seeds - 1) * r)


def agreement(predicted: Floats, measured: Floats, above: float = 0.0) -> dict[str, float | int | None]:
    """How predicted changes [k] agree with measured ones [k].

    ``slope`` and ``offset`` are those of the least-squares line measured = offset + slope predicted; ``sign`` is the
    share with the same sign among the ``sign_rows`` whose measured change is larger than ``above``.

    >>> agreement(np.array([1.0, -1.0, 3.0]), np.array([2.0, -2.0, 6.0]))["slope"]
    2.0
    """
    large = np.abs(measured) > above
    if len(measured) == 0:
        return {**dict.fromkeys(("pearson", "spearman", "slope", "offset", "sign")), "sign_rows": 0}
    x, y = predicted - predicted.mean(), measured - measured.mean()
    size = float(np.abs(x).max())
    slope = None
    if len(x) >= 2 and size > 0:
        u = x / size
        slope = float(u @ y) / float(u @ u) / size
    return {
        "pearson": pearson(predicted, measured),
        "spearman": spearman(predicted, measured),
        "slope": slope,
        "offset": None if slope is None else float(measured.mean() - slope * predicted.mean()),
        "sign": float((np.sign(predicted) == np.sign(measured))[large].mean()) if large.any() else None,
        "sign_rows": int(large.sum()),
    }


def agreement_intervals(predicted: Floats, measured: Floats, seed: int) -> dict[str, list[float] | None]:
    """95 % percentile intervals of ``pearson``, ``spearman`` and ``slope``, by a bootstrap over rows."""
    if len(measured) < FEWEST:
        return dict.fromkeys(("pearson", "spearman", "slope"))
    rng = np.random.default_rng(seed)
    drawn = [
        agreement(predicted[c], measured[c])
        for c in (rng.integers(0, len(measured), len(measured)) for _ in range(BOOTSTRAP))
    ]
    return {k: interval(np.array([_or_nan(d[k]) for d in drawn])) for k in ("pearson", "spearman", "slope")}

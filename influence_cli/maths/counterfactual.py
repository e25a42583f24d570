"""How well predicted changes agree with measured ones: rank and linear correlation, slope, sign, and their noise."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.bootstrap import student
from influence_cli.maths.noise import spearman, spearman_of_draws

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


def linear_datamodeling(phi: Floats, predicted: dict[str, Floats], seed: int, draws: int = BOOTSTRAP) -> dict[str, Any]:
    """LDS of every column: Spearman over M subsets of its prediction [M] with the measured Phi [M].

    Intervals are 95%, from a bootstrap over subsets with the same draws for every column, so that the difference of
    two columns is paired.  Park et al., arXiv:2303.14186, Definition 2.3.
    """
    columns: dict[str, dict[str, Any]] = {n: {"lds": spearman(p, phi), "interval": None} for n, p in predicted.items()}
    result: dict[str, Any] = {"columns": columns, "differences": {}, "bootstrap_draws": draws}
    m = len(phi)
    if m < FEWEST:
        return result
    rng = np.random.default_rng(seed)
    chosen = np.stack([rng.integers(0, m, m) for _ in range(draws)])
    drawn = {n: spearman_of_draws(p, phi, chosen) for n, p in predicted.items()}
    for name, values in drawn.items():
        columns[name]["interval"] = correlation_interval(columns[name]["lds"], values, m)
    for a, b in itertools.combinations(predicted, 2):
        here, there = columns[a]["lds"], columns[b]["lds"]
        if here is not None and there is not None:
            bounds = symmetric_interval(here - there, drawn[a] - drawn[b], m)
            result["differences"].setdefault(a, {})[b] = {
                "difference": here - there,
                "interval": bounds,
                "verdict": _verdict(bounds),
            }
    return result


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def symmetric_interval(value: float | None, drawn: Floats, n: int) -> list[float] | None:
    """The value +- t se, se the standard deviation of the bootstrap draws, t Student's with n - 2 degrees of freedom.

    None where most draws are undefined.

    >>> symmetric_interval(1.0, np.array([1.0, 1.0]), 9)
    [1.0, 1.0]
    """
    usable = drawn[np.isfinite(drawn)]
    if value is None or len(usable) <= len(drawn) / 2 or n < 3:
        return None
    half = student(n - 2) * float(usable.std(ddof=1))
    return [value - half, value + half]


def correlation_interval(value: float | None, drawn: Floats, n: int) -> list[float] | None:
    """tanh(atanh v +- t se / (1 - v^2)): the interval above on Fisher's scale, so that it ends within -1 and 1.

    Percentiles of the draws are not used: repeated rows are ties, which pull a rank correlation near 1 down (0.994
    over 100 subsets: they cover it 76% of the time, this 98%; for 0 to 0.95 and 20 to 100 subsets this covers 94 to
    99%).
    """
    bounds = symmetric_interval(value, drawn, n)
    if value is None or bounds is None or abs(value) >= 1.0:
        return bounds
    centre, half = np.arctanh(value), (bounds[1] - value) / (1.0 - value * value)
    return [float(np.tanh(centre - half)), float(np.tanh(centre + half))]


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
    """95% intervals of ``pearson``, ``spearman`` and ``slope``, from a bootstrap over rows."""
    n = len(measured)
    if n < FEWEST:
        return dict.fromkeys(("pearson", "spearman", "slope"))
    rng = np.random.default_rng(seed)
    drawn = [agreement(predicted[c], measured[c]) for c in (rng.integers(0, n, n) for _ in range(BOOTSTRAP))]
    values = {k: np.array([_or_nan(d[k]) for d in drawn]) for k in ("pearson", "spearman", "slope")}
    whole = agreement(predicted, measured)
    return {
        **{k: correlation_interval(whole[k], values[k], n) for k in ("pearson", "spearman")},
        "slope": symmetric_interval(whole["slope"], values["slope"], n),
    }

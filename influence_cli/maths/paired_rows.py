"""Two trained models held against each other on the same rows: intervals whose unit is the row, and the random draw.

Where training is deterministic there is one model a training set, and no seed says how sure a difference is.  What is
left to chance is which rows it was measured on: a difference d gets

    d +- t_df sqrt(se_rows^2 + s^2 / K)

with se_rows the standard deviation of d when rows are drawn again with replacement, the same rows for both sides, and
s the standard deviation of the measure over K random controls, where the other side is several of them (else 0).  df
is Satterthwaite's: of the rows by the kurtosis of their differences, of the controls K - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.arms import verdict
from influence_cli.maths.bootstrap import degrees_of_freedom, draws_of, student
from influence_cli.maths.fairness import classes_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DRAWS = 1000
ROWS, ROWS_AND_DRAWS, SEEDS = "test rows", "test rows and random draws", "seeds"  # what an interval is over


@dataclass(frozen=True, eq=False)
class OnRows:
    """What a model gives n rows: probabilities [n, C] and losses [n], with their labels and groups (-1: in none).

    There are no probabilities where labels are no classes; how much of each is predicted is then given, or nothing.
    """

    probability: Floats | None
    losses: Floats
    labels: NDArray[Any]
    groups: Ints | None = None
    right: Floats | None = None

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.labels)

    def by_row(self, measure: str) -> Floats:
        """What of each row [n] a measure is the mean of, as far as its kurtosis goes."""
        return self.losses if measure == "loss" else self.hits

    @property
    def hits(self) -> Floats:
        """1 for each row [n] that is predicted right; NaN where no prediction is right or wrong."""
        if self.probability is None:
            return np.full(len(self.losses), np.nan) if self.right is None else self.right
        return (self.probability.argmax(axis=1) == self.labels).astype(np.float64)

    def measures(self, counts: NDArray[np.integer]) -> dict[str, Floats]:
        """Every measure [D] where row i counts ``counts[d, i]`` times; NaN where a class or group has no row."""
        weights, hits = counts.astype(np.float64), self.hits
        if self.probability is None:
            every = np.ones(len(hits), dtype=bool)
            found = {"loss": _means(weights, self.losses, every)}
            return found if self.right is None else {"accuracy": _means(weights, hits, every), **found}
        recalls = [_means(weights, hits, self.labels == c) for c in np.unique(self.labels)]
        every = np.ones(len(hits), dtype=bool)
        found = {
            "accuracy": _means(weights, hits, every),
            "balanced_accuracy": np.mean(recalls, axis=0),
            "loss": _means(weights, self.losses, every),
        }
        known = None if self.groups is None else np.unique(self.groups[self.groups >= 0])
        if known is not None and len(known) > 1:
            classes = self.probability.shape[1]
            hard = np.eye(classes)[self.probability.argmax(axis=1)]
            for suffix, given in (("", hard), ("_soft", self.probability)):
                found["dp_gap" + suffix] = self._gaps(weights, given, known, by_label=False)
                found["eo_gap" + suffix] = self._gaps(weights, given, known, by_label=True)
        return found

    def _gaps(self, weights: Floats, given: Floats, groups: Ints, by_label: bool) -> Floats:
        """Mean over classes of the mean absolute difference of groups; summed over the labels of a class and others."""
        assert self.groups is not None
        total: list[Floats] = []
        for c in classes_of(given.shape[1], None):
            among = [self.labels == c, self.labels != c] if by_label else [np.ones(len(given), dtype=bool)]
            gaps: list[Floats] = []
            for rows in among:
                means = [_means(weights, given[:, c], rows & (self.groups == g)) for g in groups]
                pairs = [abs(a - b) for k, a in enumerate(means) for b in means[k + 1 :]]
                gaps.append(np.mean(pairs, axis=0))
            total.append(np.sum(gaps, axis=0))
        return np.mean(total, axis=0)


@dataclass(frozen=True, eq=False)
class OnTexts:
    """What a language model gives n rows: losses [n], each the sum over a number of tokens [n]."""

    losses: Floats
    tokens: Floats

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.losses)

    def measures(self, counts: NDArray[np.integer]) -> dict[str, Floats]:
        """Every measure [D] where row i counts ``counts[d, i]`` times."""
        weights = counts.astype(np.float64)
        each = (weights @ self.losses) / (weights @ self.tokens)
        mean = (weights @ self.losses) / weights.sum(axis=1)
        return {"token_loss": each, "perplexity": np.exp(np.minimum(each, 700.0)), "loss": mean}

    def by_row(self, measure: str) -> Floats:
        """What of each row [n] a measure is the mean of, as far as its kurtosis goes."""
        return self.losses


Measured = OnRows | OnTexts


def _means(weights: Floats, values: Floats, rows: NDArray[np.bool_]) -> Floats:
    """The weighted mean [D] of ``values`` over some rows, with weights [D, n]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights[:, rows] @ values[rows]) / weights[:, rows].sum(axis=1)


def differences_on_rows(
    a: Sequence[OnRows | OnTexts],
    b: Sequence[OnRows | OnTexts],
    higher: dict[str, bool],
    random: bool = False,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """By measure (``higher``: is that better?) the difference of the means over models a and b, with its interval.

    With ``random`` several models of a side are random draws of one control, and how far those differ is part of it.
    """
    n = a[0].size
    ones = np.ones((1, n), dtype=np.int64)
    drawn: dict[str, list[Floats]] = {}
    for counts in draws_of(ones[0].astype(bool), DRAWS, seed):
        here, there = (_mean_measures(side, counts) for side in (a, b))
        for name in here:
            drawn.setdefault(name, []).append(here[name] - there[name])
    at_a, at_b = ([{m: float(v[0]) for m, v in model.measures(ones).items()} for model in side] for side in (a, b))
    found: dict[str, dict[str, Any]] = {}
    for name in (n for n in drawn if n in higher):
        mean = float(np.mean([v[name] for v in at_a]) - np.mean([v[name] for v in at_b]))
        rows = np.mean([m.by_row(name) for m in a], axis=0) - np.mean([m.by_row(name) for m in b], axis=0)
        controls = [np.array([v[name] for v in side]) for side in (at_a, at_b)] if random else []
        found[name] = difference(mean, float(np.nanstd(np.concatenate(drawn[name]))), rows, controls, higher[name])
    return found


def _mean_measures(models: Sequence[Measured], counts: NDArray[np.integer]) -> dict[str, Floats]:
    every = [model.measures(counts) for model in models]
    return {name: np.mean([m[name] for m in every], axis=0) for name in every[0]}


def difference_of_means(a: Floats, b: Floats, higher: bool, random: bool = False) -> dict[str, Any]:
    """The same of a mean over rows, from values by model and row a [A, n] and b [B, n], without drawing.

    >>> difference_of_means(np.array([[1.0, 1.0, 0.0]]), np.array([[1.0, 1.0, 0.0]]), True)["verdict"]
    'not resolved'
    """
    rows = a.mean(axis=0) - b.mean(axis=0)
    se = float(rows.std() / np.sqrt(len(rows)))
    return difference(float(rows.mean()), se, rows, [a.mean(axis=1), b.mean(axis=1)] if random else [], higher)


def difference(mean: float, se: float, by_row: Floats, controls: Sequence[Floats], higher: bool) -> dict[str, Any]:
    """A difference with its interval from the standard error over rows, and the values of random controls, if any."""
    parts = [(se * se, degrees_of_freedom(by_row, np.ones(len(by_row), dtype=bool)))]
    parts += [(float(c.var(ddof=1)) / len(c), float(len(c) - 1)) for c in controls if len(c) > 1]
    variance = sum(v for v, _ in parts)
    spread = sum(v * v / df for v, df in parts if v > 0.0)
    half = 0.0 if variance == 0.0 else float(student(variance**2 / spread if spread > 0.0 else np.inf)) * variance**0.5
    return {
        "mean": mean,
        "half_width": half,
        "n": len(by_row),
        "verdict": verdict(mean, half, higher),
        "interval_over": ROWS_AND_DRAWS if len(parts) > 1 else ROWS,
    }

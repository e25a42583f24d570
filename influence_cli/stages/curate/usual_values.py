"""What is usual in train rows of one label: the range of each number, and the share of each category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.feature_names import features_of
from influence_cli.data.manifest import Rows
from influence_cli.data.sources.features import CATEGORY, VECTOR, Feature
from influence_cli.report.review.rows import Value

LOW, HIGH = 0.05, 0.95  # percentiles between which a number is usual
RARE = 0.05  # share of rows of a label below which a category is odd
MOST = 12  # values of a row that are shown
MOST_NUMBERS = 40_000_000  # of rows that are looked at; with more, rows are taken at even distances


@dataclass(frozen=True, eq=False)
class UsualValues:
    """Ranges of every number by label: low, high and mean, each [d]."""

    features: Sequence[Feature]
    names: Sequence[str]  # of the numbers
    ranges: dict[int, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]

    @staticmethod
    def of(train: Rows) -> UsualValues | None:
        """What is usual in train rows; None where their payloads are no numbers that are compared."""
        kind, manifest = train.manifest.payload_kind, train.manifest
        if not len(train):
            return None
        first = next(iter(manifest.payloads(train.index[:1])))[1]
        vector = kind.compared(first)
        if vector is None:
            return None
        every = -(-len(train) * len(vector) // MOST_NUMBERS)
        chosen = train.index[::every]
        stacked = np.stack([kind.compared(payload) for _, payload in manifest.payloads(chosen)])  # pyright: ignore[reportArgumentType, reportCallIssue]
        strata = train.strata[::every]
        ranges = {}
        for label in np.unique(train.strata).tolist():
            own = stacked[strata == label].astype(np.float64)
            own = own if len(own) else stacked.astype(np.float64)
            low, high = np.quantile(own, [LOW, HIGH], axis=0)
            ranges[label] = low, high, own.mean(axis=0)
        features = features_of(manifest)
        named = [name for feature in features for name in feature.names]
        if len(named) != len(vector):
            features, named = [], [kind.value_name(kind.column, k) for k in range(len(vector))]
        return UsualValues(features, named, ranges)

    def of_row(self, vector: NDArray[np.float32] | None, label: int) -> list[Value]:
        """Up to ``MOST`` values of a row of this label, what is unusual first, the farthest from its range before."""
        if vector is None:
            return []
        low, high, mean = self.ranges[label]
        found: list[tuple[float, Value]] = []
        at = 0
        for feature in self.features or [Feature(name, VECTOR) for name in self.names]:
            here = slice(at, at + (len(feature.names) if self.features else 1))
            at = here.stop
            if feature.kind == CATEGORY:
                found += _category(feature, vector[here], mean[here])
            else:
                names = self.names[here]
                found += _numbers(names, vector[here], low[here], high[here], feature.origin)
        found.sort(key=lambda pair: -pair[0])  # stable: columns of the same strangeness stay in order
        return [value for _, value in found[:MOST]]


def _category(feature: Feature, own: NDArray[np.float32], mean: NDArray[np.float64]) -> list[tuple[float, Value]]:
    """The row's category, and the share of rows of its label that have it."""
    there = np.flatnonzero(own > 0.5)
    if not len(there):
        return [(1.0, Value(feature.column, "none that is known", "", True))]
    k = int(there[0])
    share = float(mean[k])
    usual = f"{100 * share:.0f}% have it" if share >= 0.01 else "under 1% have it"
    return [(1.0 - share if share < RARE else 0.0, Value(feature.column, feature.categories[k], usual, share < RARE))]


def _numbers(
    names: Sequence[str], own: NDArray[np.float32], low: NDArray[np.float64], high: NDArray[np.float64], origin: float
) -> list[tuple[float, Value]]:
    """Numbers beside their ranges, each with how far it is outside, in widths of the range."""
    made: list[tuple[float, Value]] = []
    for name, value, a, b in zip(names, own.astype(float).tolist(), low.tolist(), high.tolist(), strict=True):
        outside = max(a - value, value - b, 0.0)
        width = (b - a) or max(abs(a), 1.0)
        usual = f"{a + origin:.4g} to {b + origin:.4g}"
        made.append((outside / width, Value(name, f"{value + origin:.4g}", usual, outside > 0)))
    return made

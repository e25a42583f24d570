"""Removal curves: train without the rows of lowest score, against as many random rows and rows of the same classes.

Replicates are seeds, paired, where training is random: draw r of the random rows meets seed r.  Where it is not, a
column has one fit, and intervals come from the random draws alone.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.maths.arms import mean_interval, paired_difference
from influence_cli.settings import parse_budget
from influence_cli.stages.evaluate.counterfactuals.pool import Outcome, Pool, Refit

DRAWS = 5  # random removals of each size; also the fewest seeds of a training that is not deterministic
HIGHER = {"target_loss": False, "target_accuracy": True, "test_loss": False, "test_accuracy": True}
Key = tuple[str, str, int]  # what is removed (a control, or "column"), which column, how many rows
Metrics = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Removal:
    """The sizes to remove, as shares or counts of the rows in use."""

    pool: Pool
    sizes: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.counts  # or an error, before any training

    @functools.cached_property
    def counts(self) -> list[int]:
        """Rows to remove, ascending, each once.

        Raises:
            UsageError: a size that is neither share nor count, none, or everything.
        """
        found = sorted({parse_budget(text.strip(), self.pool.rows, "--removal") for text in self.sizes})
        if not found or found[0] < 1 or found[-1] >= self.pool.rows:
            what = f"--removal {','.join(self.sizes)} of {self.pool.rows} rows: nothing, or all of them"
            raise UsageError(what, fix="write --removal 5%,10%,20%")
        return found

    @functools.cached_property
    def removed(self) -> dict[Key, list[NDArray[np.int64]]]:
        """The rows taken out, for every replicate; one entry where all replicates take the same."""
        pool, found = self.pool, {}
        draws = DRAWS if pool.deterministic else max(DRAWS, pool.seeds)
        orders = [pool.order(f"removal {d}") for d in range(draws)]
        ranked = {name: pool.lowest(scores) for name, scores in pool.columns.all.items()}
        for k in self.counts:
            found["random", "", k] = [order[:k] for order in orders]
            for name, lowest in ranked.items():
                found["column", name, k] = [lowest[:k]]
                found["class-matched", name, k] = [self._same_classes(order, lowest[:k]) for order in orders]
        return found

    def _same_classes(self, order: NDArray[np.int64], like: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first rows of a random order that have as many of every class as ``like``."""
        labels = self.pool.train.labels
        wanted = zip(*np.unique(labels[like], return_counts=True), strict=True)
        return np.concatenate([order[labels[order] == c][:count] for c, count in wanted])

    @functools.cached_property
    def _planned(self) -> dict[Key, list[Refit]]:
        """The trainings by what they remove: one a replicate."""
        pool, seeds = self.pool, self.pool.repeats(DRAWS)
        planned: dict[Key, list[Refit]] = {("nothing", "", 0): pool.whole(seeds)}
        for key, replicates in self.removed.items():
            paired = max(len(replicates), len(seeds))
            planned[key] = [
                Refit(pool.without(replicates[r % len(replicates)]), seeds[r % len(seeds)]) for r in range(paired)
            ]
        return planned

    def refits(self) -> list[Refit]:
        """Every training, whole and columns before the random ones."""
        return [a for some in self._planned.values() for a in some]

    def figures(self, outcomes: list[Outcome | None]) -> dict[str, Any]:
        """Loss and accuracy after every removal, and its differences from none, from random and class-matched rows."""
        pool, measured = self.pool, self._measured(outcomes)
        whole = measured.get(("nothing", "", 0))
        result: dict[str, Any] = {
            "partial": None in outcomes,
            "rows": pool.rows,
            "removed_rows": self.counts,
            "seeds": len(pool.repeats(DRAWS)),
            "random_draws": len(self.removed["random", "", self.counts[0]]),
            "intervals": "over random draws; each column is one deterministic fit"
            if pool.deterministic
            else "paired over seeds; draw r of the random rows with seed r",
            "nothing": _means(whole),
            "random": {str(k): _means(measured.get(("random", "", k))) for k in self.counts},
            "columns": {},
            "left_out": pool.columns.left_out,
        }
        for name, k in itertools.product(pool.columns.all, self.counts):
            sizes = result["columns"].setdefault(name, {})
            here, matched = measured.get(("column", name, k)), measured.get(("class-matched", name, k))
            if here is not None:
                sizes[str(k)] = {
                    "mean": _means(here),
                    "class_matched": _means(matched),
                    "over_nothing": _differences(here, whole),
                    "over_random": _differences(here, measured.get(("random", "", k))),
                    "over_class_matched": _differences(here, matched),
                }
        return result

    def _measured(self, outcomes: list[Outcome | None]) -> dict[Key, Metrics]:
        """Metrics [replicates] by what was removed, where every replicate is there."""
        found: dict[Key, Metrics] = {}
        left = iter(outcomes)
        for key, some in self._planned.items():
            here = [next(left) for _ in some]
            whole = [o.metrics() for o in here if o is not None]
            if len(whole) == len(some):
                found[key] = {m: np.array([w[m] for w in whole]) for m in whole[0]}
        return found


def _means(measured: Metrics | None) -> dict[str, Any] | None:
    return None if measured is None else {name: mean_interval(values) for name, values in measured.items()}


def _differences(here: Metrics, there: Metrics | None) -> dict[str, Any] | None:
    """Paired differences; a single fit is held against every random draw."""
    if there is None:
        return None
    found: dict[str, Any] = {}
    for name, values in here.items():
        size = max(len(values), len(there[name]))
        a, b = (np.resize(v, size) for v in (values, there[name]))
        found[name] = paired_difference(a, b, HIGHER[name])
        if size == 1:
            found[name]["verdict"] = "one deterministic fit"
    return found

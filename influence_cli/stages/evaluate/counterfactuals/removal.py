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
from influence_cli.maths.paired_rows import difference_of_means
from influence_cli.settings import parse_budget
from influence_cli.stages.evaluate.counterfactuals.pool import Outcome, Pool, Refit

DRAWS = 5  # random removals of each size; also the fewest seeds of a training that is not deterministic
HIGHER = {"target_loss": False, "target_accuracy": True, "test_loss": False, "test_accuracy": True}
Key = tuple[str, str, int]  # what is removed (a control, or "column"), which column, how many rows
Metrics = dict[str, NDArray[np.float64]]
ByRow = dict[str, NDArray[np.float64]]  # the values [replicates, rows] whose means the metrics are


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
        labels = self.pool.train.strata
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
        pool, (measured, by_row) = self.pool, self._measured(outcomes)
        nothing: Key = ("nothing", "", 0)
        whole = measured.get(nothing)
        result: dict[str, Any] = {
            "partial": None in outcomes,
            "rows": pool.rows,
            "removed_rows": self.counts,
            "seeds": len(pool.repeats(DRAWS)),
            "random_draws": len(self.removed["random", "", self.counts[0]]),
            "intervals": "over random draws, and over no removal over test rows; each column is one deterministic fit"
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

            def differences(other: Key, own: Key = ("column", name, k)) -> dict[str, Any] | None:
                sides = (measured[own], measured.get(other)), (by_row[own], by_row.get(other))
                return _differences(*sides)

            if here is not None:
                sizes[str(k)] = {
                    "mean": _means(here),
                    "class_matched": _means(matched),
                    "over_nothing": differences(nothing),
                    "over_random": differences(("random", "", k)),
                    "over_class_matched": differences(("class-matched", name, k)),
                }
        return result

    def _measured(self, outcomes: list[Outcome | None]) -> tuple[dict[Key, Metrics], dict[Key, ByRow]]:
        """Metrics [replicates] by what was removed, where every replicate is there, and the rows' values behind."""
        found: dict[Key, Metrics] = {}
        by_row: dict[Key, ByRow] = {}
        left = iter(outcomes)
        for key, some in self._planned.items():
            whole = [o for o in [next(left) for _ in some] if o is not None]
            if len(whole) == len(some):
                every = [o.by_row() for o in whole]
                by_row[key] = {m: np.stack([o[m] for o in every]) for m in every[0]}
                found[key] = {m: values.mean(axis=1) for m, values in by_row[key].items()}
        return found, by_row


def _means(measured: Metrics | None) -> dict[str, Any] | None:
    return None if measured is None else {name: mean_interval(values) for name, values in measured.items()}


def _differences(metrics: tuple[Metrics, Metrics | None], by_row: tuple[ByRow, ByRow | None]) -> dict[str, Any] | None:
    """Paired differences over seeds or random draws; a single fit is held against every random draw.

    Where the replicates do not differ, since one deterministic fit is held against another, intervals are over test
    rows; target rows have made the scores, so that an interval over them would be too sure.
    """
    (here, there), (rows_here, rows_there) = metrics, by_row
    if there is None or rows_there is None:
        return None
    found: dict[str, Any] = {}
    for name, values in here.items():
        size = max(len(values), len(there[name]))
        a, b = (np.resize(v, size) for v in (values, there[name]))
        found[name] = paired_difference(a, b, HIGHER[name])
        if len(values) < size:
            found[name]["interval_over"] = "random draws"
        if not found[name]["half_width"] and name.startswith("test"):
            found[name] = difference_of_means(rows_here[name], rows_there[name], HIGHER[name])
        elif not found[name]["half_width"]:
            found[name] |= {"half_width": None, "verdict": "one deterministic fit", "interval_over": None}
    return found

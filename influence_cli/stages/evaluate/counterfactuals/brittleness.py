"""Brittleness: how few of a target row's most helpful rows must go before its correct prediction flips?

For each of a number of target rows that are predicted correctly, the k rows of highest score *for that row alone* are
removed, for k in 1, 2, 4, ... up to 5% of the rows, and the model is trained again.  The smallest k that flips the
prediction in most seeds is found by bisection, which takes for granted that a prediction that flips stays flipped
when more is removed.  The control removes as many random rows.  After Ilyas et al.,
arXiv:2202.00622.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.maths.arms import mean_interval, paired_difference
from influence_cli.stages.evaluate.counterfactuals.pool import Pool, Refit
from influence_cli.stages.evaluate.counterfactuals.refitter import Refitter
from influence_cli.stages.evaluate.counterfactuals.scores import RANDOM, scores_for
from influence_cli.stages.retrain.arms import draw_order
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session

LARGEST_SHARE = 0.05
LEAST_SEEDS = 5  # of a training that is not deterministic, and random removals of every size
Floats = NDArray[np.float64]


@dataclass(eq=False)
class _Search:
    """The smallest size in the grid at which a target row flips: above ``low``, at most ``high``, by position."""

    query: int
    name: str
    order: NDArray[np.int64]  # rows, most helpful first
    low: int
    high: int
    after: float | None = None  # margin without the largest size
    open: bool = True

    def next(self, last: int) -> int:
        """The position to try: the largest size first."""
        return last if self.after is None else (self.low + self.high) // 2

    def learn(self, tried: int, margins: Floats) -> None:
        """Take in the margins over seeds after removing the size at ``tried``."""
        flipped = bool((margins <= 0).mean() > 0.5)
        if self.after is None:
            self.after = float(margins.mean())
            self.open = flipped
        if flipped:
            self.high = tried
        else:
            self.low = tried
        self.open = self.open and self.high - self.low > 1


@dataclass(frozen=True, eq=False)
class Brittleness:
    """``count`` target rows, with the run that scores for one of them at a time."""

    pool: Pool
    refitter: Refitter
    run: Run
    session: Session
    count: int

    def __post_init__(self) -> None:
        if self.grid == []:
            raise UsageError(f"--brittleness removes up to 5% of {self.pool.rows} rows: none", fix="give more rows")

    @functools.cached_property
    def grid(self) -> list[int]:
        """Sizes to remove: powers of two, and 5% of the rows in use."""
        largest = int(LARGEST_SHARE * self.pool.rows + 1e-9)
        return sorted({largest, *(2**e for e in range(largest.bit_length()))} - {0}) if largest else []

    def at_most(self) -> int:
        """Trainings that it can take, the whole and the random ones included."""
        seeds, tries = len(self._seeds), 1 + int(np.ceil(np.log2(len(self.grid) + 1)))
        return seeds * (1 + self.count * len(self.run.methods) * tries) + len(self._draws) * len(self.grid)

    @property
    def _seeds(self) -> list[int]:
        return self.pool.repeats(LEAST_SEEDS)

    @property
    def _draws(self) -> range:
        return range(LEAST_SEEDS if self.pool.deterministic else len(self._seeds))

    def measure(self) -> dict[str, Any]:
        """Smallest flipping sizes and margin drops by method, each against random removals, as far as time allows."""
        whole = [o.target_margin for o in self.refitter.run(self.pool.whole(self._seeds)) if o is not None]
        if len(whole) < len(self._seeds):
            return {"queries": 0, "queries_asked": self.count, "partial": True, "columns": {}, "left_out": {}}
        before = np.array(whole)
        correct = (before > 0).mean(axis=0) > 0.5
        order = draw_order(self.refitter.measured["target"].ids, self.pool.seed, "brittleness")
        queries = order[correct[order]][: self.count].tolist()
        random = self._random()
        return self._summary(self._search(queries), random, before.mean(axis=0), int(correct.sum()))

    def _random(self) -> list[Floats | None]:
        """Margins [draws, m] after removing random rows of each size."""
        seeds, orders = self._seeds, [self.pool.order(f"removal {d}") for d in self._draws]
        found: list[Floats | None] = []
        for k in self.grid:
            refits = [Refit(self.pool.without(o[:k]), seeds[d % len(seeds)]) for d, o in enumerate(orders)]
            margins = [o.target_margin for o in self.refitter.run(refits) if o is not None]
            found.append(np.array(margins) if len(margins) == len(refits) else None)
        return found

    def _search(self, queries: list[int]) -> list[_Search]:
        """Every search, as far as time allows; those that are not finished are open."""
        searches: list[_Search] = []
        with self.refitter.listener.progress("score for single target rows", len(queries), "target rows") as progress:
            for query in queries:
                if self.refitter.time_is_over():
                    break
                for name, scores in scores_for(self.run, self.session, query).items():
                    helpful = self.pool.lowest(-np.nan_to_num(scores, nan=-np.inf))
                    searches.append(_Search(query, name, helpful, -1, len(self.grid)))
                progress.advance(1)
        while active := [(s, s.next(len(self.grid) - 1)) for s in searches if s.open]:
            removed = [self.pool.without(s.order[: self.grid[tried]]) for s, tried in active]
            outcomes = self.refitter.run([Refit(kept, seed) for kept in removed for seed in self._seeds])
            left = iter(outcomes)
            for s, tried in active:
                mine = [next(left) for _ in self._seeds]
                margins = [float(o.target_margin[s.query]) for o in mine if o is not None]
                if len(margins) == len(mine):
                    s.learn(tried, np.array(margins))
            if None in outcomes:
                break
        return searches

    def _summary(
        self, searches: list[_Search], random: list[Floats | None], before: Floats, correct: int
    ) -> dict[str, Any]:
        by_query = {s.query: {o.name: o for o in searches if o.query == s.query} for s in searches}
        done = [q for q, some in by_query.items() if not any(s.open for s in some.values())]
        known = [r for r in random if r is not None]
        complete = len(known) == len(random)
        ids = self.refitter.measured["target"].ids
        columns: dict[str, Any] = {}
        drop: dict[str, Floats] = {}
        rows: dict[str, dict[str, int | None]] = {ids[q]: {} for q in done}
        for name in [*self.run.methods, *([RANDOM] if complete else [])]:
            if name == RANDOM:
                smallest = [self._smallest([bool((r[:, q] <= 0).mean() > 0.5) for r in known]) for q in done]
                after = [float(known[-1][:, q].mean()) for q in done]
            else:
                mine = [by_query[q][name] for q in done]
                smallest = [self.grid[s.high] if s.high < len(self.grid) else None for s in mine]
                after = [s.after or 0.0 for s in mine]
            drop[name] = before[done] - np.array(after)
            columns[name] = self._figures(smallest, drop[name])
            for q, k in zip(done, smallest, strict=True):
                rows[ids[q]][name] = k
        for name in self.run.methods if complete and done else ():
            columns[name]["over_random"] = paired_difference(drop[name], drop[RANDOM], True)
        return {
            "queries": len(done),
            "queries_asked": self.count,
            "correct_rows": correct,
            "partial": len(done) < min(self.count, correct) or not complete,
            "removed_rows": self.grid,
            "seeds": len(self._seeds),
            "random_draws": len(self._draws),
            "columns": columns,
            "smallest": rows,
            "left_out": {},
        }

    def _smallest(self, flipped: list[bool]) -> int | None:
        """The smallest size from which on every one flips the prediction."""
        return next((size for k, size in enumerate(self.grid) if all(flipped[k:])), None)

    def _figures(self, smallest: list[int | None], drop: Floats) -> dict[str, Any]:
        """Share of predictions flipped by each size, median size, and the mean margin drop at the largest."""
        if not smallest:
            return {"flipped": {}, "median": None, "margin_drop": None}
        sizes = np.array([np.inf if k is None else k for k in smallest])
        middle = float(np.median(sizes))
        return {
            "flipped": {str(k): float((sizes <= k).mean()) for k in self.grid},
            "median": middle if np.isfinite(middle) else None,
            "margin_drop": mean_interval(drop),
        }

"""Leave-one-out: does a row's score predict how the target loss changes when that row alone is left out?

delta_i = Phi(without i) - Phi, for rows drawn at random and rows of extreme score; the prediction is w_i s_i / sum w.
Two conventions: ``loo`` keeps the divisor of the training loss, as if the row had weight 0, which is what scores
predict; ``renorm-loo`` divides by the rows that are left, as a trainer does, and differs to first order by the same
offset for every row (lambda q^T H^-1 theta / n): the slope stays, the sign of small changes does not.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.maths.counterfactual import agreement, agreement_intervals
from influence_cli.stages.evaluate.counterfactuals.pool import Outcome, Pool, Refit, phi_of
from influence_cli.stages.evaluate.counterfactuals.scores import RANDOM

LEAST_SEEDS = 5  # of a training that is not deterministic
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """``count`` rows, half of them drawn at random, half with the lowest and highest scores."""

    pool: Pool
    count: int
    fixed_divisor: bool

    def __post_init__(self) -> None:
        if self.count > self.pool.rows:
            raise UsageError(f"--loo {self.count} of {self.pool.rows} train rows", fix="ask for fewer")

    @property
    def extreme_by(self) -> str | None:
        """The column whose extremes are taken: the first that is signed."""
        return next(iter(self.pool.columns.signed), None)

    @functools.cached_property
    def rows(self) -> tuple[NDArray[np.int64], int]:
        """The rows, extremes first, and how many those are."""
        pool, by = self.pool, self.extreme_by
        extreme = np.array([], dtype=np.int64)
        if by is not None:
            ranked = pool.lowest(pool.columns.signed[by])
            half = self.count // 2
            extreme = np.concatenate([ranked[: half - half // 2], ranked[len(ranked) - half // 2 :]])
        drawn = pool.order("leave one out")
        drawn = drawn[~np.isin(drawn, extreme)][: self.count - len(extreme)]
        return np.concatenate([extreme, drawn]), len(extreme)

    def refits(self) -> list[Refit]:
        """Trainings on all rows, then without each row, over the seeds."""
        seeds = self.pool.repeats(LEAST_SEEDS)
        left_out = [Refit(self.pool.without(np.array([i])), s, self.fixed_divisor) for i in self.rows[0] for s in seeds]
        return [*self.pool.whole(seeds), *left_out]

    def figures(self, outcomes: list[Outcome | None]) -> dict[str, Any]:
        """Agreement of every signed column with the measured changes, and whether those stand out of their noise."""
        pool, seeds = self.pool, len(self.pool.repeats(LEAST_SEEDS))
        rows, extremes = self.rows
        phi = phi_of(outcomes).reshape(-1, seeds)
        changes = phi[1:] - phi[0]  # [k, R], paired by seed
        done = np.isfinite(changes).all(axis=1)
        delta, chosen = changes[done].mean(axis=1), rows[done]
        noise = _noise(phi[0], changes[done])
        median = float(np.median(np.abs(delta))) if len(delta) else None
        columns: dict[str, Any] = {}
        ids = [pool.train.ids[i] for i in chosen.tolist()]
        for name, scores in {**pool.columns.signed, RANDOM: pool.random - pool.random.mean()}.items():
            predicted = pool.predicted(scores)[chosen]
            columns[name] = {
                **agreement(predicted, delta, 2.0 * (noise["floor"] or 0.0)),
                "intervals": agreement_intervals(predicted, delta, pool.seed),
                "predicted": dict(zip(ids, predicted.tolist(), strict=True)),
            }
        return {
            "rows": int(done.sum()),
            "rows_asked": self.count,
            "partial": not bool(done.all()),
            "extreme_rows": int(done[:extremes].sum()),
            "extreme_by": self.extreme_by,
            "convention": "loo" if self.fixed_divisor else "renorm_loo",
            "seeds": seeds,
            "phi": float(phi[0].mean()) if np.isfinite(phi[0]).all() else None,
            "median_change": median,
            **noise,
            "resolvable": None if median is None or noise["floor"] is None else noise["floor"] <= median,
            "columns": columns,
            "changes": dict(zip(ids, delta.tolist(), strict=True)),
            "left_out": pool.columns.left_out,
        }


def _noise(whole: Floats, changes: Floats) -> dict[str, float | None]:
    """How large a mean change over R seeds [k, R] is by chance.

    ``reseed_floor``: the standard deviation of a mean over R differences of trainings on identical rows with other
    seeds.  ``paired_error``: the standard error of the paired changes, pooled over rows; smaller where sharing a seed
    keeps two trainings together.  The floor is the smaller of the two; 0 for a deterministic training.
    """
    seeds = len(whole)
    if seeds == 1:
        return {"floor": 0.0, "reseed_floor": 0.0, "paired_error": 0.0}
    reseed = float(np.sqrt(2.0 / seeds) * whole.std(ddof=1)) if np.isfinite(whole).all() else None
    paired = float(np.sqrt(changes.var(axis=1, ddof=1).mean() / seeds)) if len(changes) else None
    known = [v for v in (reseed, paired) if v is not None]
    return {"floor": min(known) if known else None, "reseed_floor": reseed, "paired_error": paired}

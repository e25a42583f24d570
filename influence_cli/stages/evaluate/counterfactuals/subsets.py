"""Linear datamodeling score: does the sum of a subset's scores predict the target loss after training on it?

For M random subsets S_j of a share of the rows, Phi_j is the mean target loss after training on S_j, averaged over
seeds, and the prediction is - sum_{i in S_j} w_i s_i (a row that helps lowers Phi).  LDS is their Spearman correlation
over j.  Park et al., arXiv:2303.14186, section 2.4; Phi is the aggregate over target rows, as the scores are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.maths.counterfactual import linear_datamodeling, reliability
from influence_cli.stages.evaluate.counterfactuals.pool import Outcome, Pool, Refit, phi_of
from influence_cli.stages.evaluate.counterfactuals.scores import RANDOM


@dataclass(frozen=True, eq=False)
class Subsets:
    """``count`` subsets, each of a ``share`` of the rows in use."""

    pool: Pool
    count: int
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.size < self.pool.rows:
            what = f"a share of {self.share:g} of {self.pool.rows} rows is {self.size} rows: no subset to train on"
            raise UsageError(what, fix="pass --subset-share 50%")

    @property
    def size(self) -> int:
        """Rows of a subset."""
        return int(self.share * self.pool.rows + 1e-9)

    def members(self, j: int) -> NDArray[np.bool_]:
        """Which rows [n] are in subset j: the first by a hash of (seed, j, id), so that more subsets move none."""
        kept = np.zeros(len(self.pool.used), dtype=bool)
        kept[self.pool.order(f"subset {j}")[: self.size]] = True
        return kept

    def refits(self) -> list[Refit]:
        """A training for every subset and seed, subset by subset."""
        return [Refit(kept, s) for kept in map(self.members, range(self.count)) for s in self.pool.repeats()]

    def figures(self, outcomes: list[Outcome | None]) -> dict[str, Any]:
        """LDS of every signed column, with intervals, paired differences and the noise of what was measured."""
        pool, seeds = self.pool, len(self.pool.repeats())
        whole = [j for j in range(self.count) if None not in outcomes[j * seeds : (j + 1) * seeds]]
        phi, members = phi_of(outcomes).reshape(-1, seeds)[whole], [self.members(j) for j in whole]
        predicted: dict[str, NDArray[np.float64]] = {}
        for name, scores in {**pool.columns.signed, RANDOM: pool.random}.items():
            effects = pool.predicted(scores)
            predicted[name] = np.array([-float(effects[kept].sum()) for kept in members])
        left_out = dict.fromkeys(pool.columns.ranking, "it ranks only: a sum of it predicts nothing")
        means = phi.mean(axis=1)
        found = linear_datamodeling(means, predicted, pool.seed)
        for name, values in predicted.items():
            found["columns"][name]["predicted"] = values.tolist()
        known = 1.0 if pool.deterministic else reliability(phi) if len(whole) else None
        return {
            "subsets": len(whole),
            "subsets_asked": self.count,
            "partial": len(whole) < self.count,
            "subset_rows": self.size,
            "seeds": seeds,
            "phi_mean": float(phi.mean()) if len(whole) else None,
            "phi_sd": float(means.std(ddof=1)) if len(whole) > 1 else None,
            "reliability": known,
            "ceiling": None if known is None else known**0.5,
            "chance": 1.96 / (len(whole) - 1) ** 0.5 if len(whole) > 1 else None,  # 95% of unrelated columns
            "measured": means.tolist(),  # Phi by subset, as ``predicted``, which leaves out what all subsets share
            **found,
            "left_out": {**left_out, **pool.columns.left_out},
        }

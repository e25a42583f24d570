"""What every counterfactual is drawn from: the train rows in use, their scores, and how often to train."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.stages.evaluate.counterfactuals.refits import Refit
from influence_cli.stages.evaluate.counterfactuals.score_columns import ScoreColumns
from influence_cli.stages.retrain.arms import draw_order

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pool:
    """Train rows [n] of which ``used`` are trained on, score columns, and seeds."""

    train: Rows
    used: NDArray[np.bool_]
    columns: ScoreColumns
    random: Floats
    seed: int
    seeds: int
    deterministic: bool

    @property
    def rows(self) -> int:
        """Rows in use."""
        return int(self.used.sum())

    def repeats(self, least: int = 1) -> list[int]:
        """The seeds to train with: one where none matters, otherwise ``seeds``, at least ``least``."""
        return [self.seed + r for r in range(1 if self.deterministic else max(self.seeds, least))]

    def order(self, what: str) -> NDArray[np.int64]:
        """The rows in use in a random order of their own for every ``what``."""
        order = draw_order(self.train.ids, self.seed, what)
        return order[self.used[order]]

    def lowest(self, scores: Floats) -> NDArray[np.int64]:
        """The rows in use, lowest score first, ties by row key."""
        rows = np.flatnonzero(self.used)
        keys = self.train.row_keys[rows]
        return rows[np.lexsort((*(keys[:, c] for c in range(keys.shape[1] - 1, -1, -1)), scores[rows]))]

    def without(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The rows in use less some, as a mask [n]."""
        kept = self.used.copy()
        kept[rows] = False
        return kept

    def whole(self, seeds: list[int]) -> list[Refit]:
        """Trainings on all rows in use."""
        return [Refit(self.used, seed) for seed in seeds]

    def predicted(self, scores: Floats) -> Floats:
        """What each row's removal is predicted to add to Phi [n]: w_i s_i / sum w (``effect`` where weights are 1)."""
        weights = self.train.weights
        return weights * scores / float(weights[self.used].sum())

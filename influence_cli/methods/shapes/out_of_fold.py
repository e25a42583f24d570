"""Methods that judge a row by a model that was trained without it: from the folds of ``retrain --folds``.

Logits belong to what is in a row, not to its label: a relabelled row is judged under the label that it has now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from influence_cli.methods.protocol import Facts, Floats, Kind, Labels, Method, Scores
from influence_cli.methods.stored import Place, Stored

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.model.checkpoints import Trajectory
    from influence_cli.model.losses import RowLoss

NO_FOLD = "are in no fold (new since training)"


@dataclass(frozen=True)
class OutOfFold(Method):
    """A ranking-only value of a row's out-of-fold logits and its label; suspicious rows have the lowest scores."""

    needs: ClassVar[str] = "outputs"  # of the last model, for the columns beside the score
    kind: ClassVar[Kind] = "ranking"
    of_training: ClassVar[str] = "folds"
    name: ClassVar[str]

    def places(self, trajectory: Trajectory, seed: int, params: str) -> list[Place]:
        """The last model.

        Raises:
            UsageError: it was trained without folds, or the checkpoint is not the one that training ended with.
        """
        trajectory.out_of_fold(self.name)
        return super().places(trajectory, seed, params)

    def of_logits(self, logits: Floats, labels: Labels, loss: RowLoss) -> Floats:
        """Scores [n] of logits [n, C] and labels [n]."""
        raise NotImplementedError

    def facts(self, logits: Floats, labels: Labels, seed: int) -> Facts:
        """What they say beyond scores."""
        return {}

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        """Scores of the rows that are in a fold."""
        records = stored.out_of_fold()
        logits, labels = records.logits(rows.payload_keys), rows.labels
        known = np.isfinite(logits).all(axis=1)
        values = np.full(len(logits), np.nan)
        values[known] = self.of_logits(logits[known], labels[known], loss)
        facts: dict[str, Any] = {"rows": int(known.sum()), **self.facts(logits[known], labels[known], stored.seed)}
        new = ~records.among(rows.payload_keys)
        return [Scores(values, facts=facts, logits=logits, no_score=NO_FOLD, excused=new)]

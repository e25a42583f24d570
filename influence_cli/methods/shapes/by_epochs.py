"""Methods about the way of a row through training: from what ``retrain`` noted of every row at every epoch.

Values are those of the training passes themselves: before the step, with augmentation as trained and dropout on.  They
are about the label that the row was trained with, so a row has a score where it has that label still, and was trained
on.  Rows that are equal in payload and label share the mean of their scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from influence_cli.methods.protocol import Floats, Kind, Method, Scores
from influence_cli.methods.stored import Place, Stored

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.model.checkpoints import Trajectory
    from influence_cli.model.losses import RowLoss

NOT_TRAINED_ON = "were not trained on as they are (left out, weight 0, new, under another label, or passed over)"


@dataclass(frozen=True)
class ByEpochs(Method):
    """A ranking-only value of a row's own epochs; suspicious rows have the lowest scores."""

    needs: ClassVar[str] = "outputs"  # of the last model, for the columns beside the score
    kind: ClassVar[Kind] = "ranking"
    of_training: ClassVar[str] = "epochs"
    value: ClassVar[str] = "margin"  # what it takes of every epoch: margin, loss, error or probability
    name: ClassVar[str]

    def places(self, trajectory: Trajectory, seed: int, params: str) -> list[Place]:
        """The last model.

        Raises:
            UsageError: its training noted nothing of its rows, or the checkpoint is not the one that it ended with.
        """
        trajectory.by_epoch(self.name, self.value)
        return super().places(trajectory, seed, params)

    def of_epochs(self, epochs: Iterator[Floats]) -> Floats:
        """Scores [m] from the values [m] of each epoch in order; NaN where an epoch passed over a row."""
        raise NotImplementedError

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        """Scores of the rows that were trained on as they are."""
        records = stored.by_epoch(self.value)
        epochs, seen = 0, np.array(False)  # and whether any of them had the row

        def counted() -> Iterator[Floats]:
            nonlocal epochs, seen
            for values in records.each(self.value):
                epochs, seen = epochs + 1, seen | ~np.isnan(values)
                yield values

        values = self.of_epochs(counted())
        facts = {"epochs": epochs, "rows": len(values)}
        new = np.isnan(records.onto(np.where(seen, 1.0, np.nan), rows.row_keys))  # or passed over in every epoch
        return [Scores(records.onto(values, rows.row_keys), facts=facts, no_score=NOT_TRAINED_ON, excused=new)]

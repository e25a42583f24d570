"""Out-of-fold loss: minus the row's loss at a model that was trained without it; ranking only.

s_i = - l_i(theta_{-k(i)}),   k(i) the fold of row i

A model that has seen a row can memorise its wrong label, and then the row's loss says nothing; this one has not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from influence_cli.methods.loss import Loss
from influence_cli.methods.protocol import Floats, Labels
from influence_cli.methods.shapes.out_of_fold import OutOfFold

if TYPE_CHECKING:
    from influence_cli.model.losses import RowLoss


@dataclass(frozen=True)
class OutOfFoldLoss(OutOfFold):
    """Suspicious rows, whose label the others do not foretell, come last."""

    name: ClassVar[str] = "oof-loss"

    def of_logits(self, logits: Floats, labels: Labels, loss: RowLoss) -> Floats:
        """Minus the loss of each row [n]."""
        return Loss().of_outputs(logits, labels, loss)

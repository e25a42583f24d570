"""Out-of-fold margin: the labelled class's logit minus the best other logit, without the row's own say; ranking only.

s_i = z_i[y] - max_{c != y} z_i[c],   z_i the logits of the model that was trained without the fold of row i
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from influence_cli.methods.margin import Margin
from influence_cli.methods.protocol import Floats, Labels
from influence_cli.methods.shapes.out_of_fold import OutOfFold

if TYPE_CHECKING:
    from influence_cli.model.losses import RowLoss


@dataclass(frozen=True)
class OutOfFoldMargin(OutOfFold):
    """Suspicious rows, those where another class wins by far, come last."""

    name: ClassVar[str] = "oof-margin"

    def of_logits(self, logits: Floats, labels: Labels, loss: RowLoss) -> Floats:
        """Margin of each row [n]."""
        return Margin().of_outputs(logits, labels, loss)

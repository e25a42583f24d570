"""Loss: minus the row's own training loss at the checkpoint.  A strong detector of wrong labels; ranking only.

s_i = - l_i(theta)
"""

from __future__ import annotations

from dataclasses import dataclass

from influence_cli.methods.protocol import CROSS_ENTROPY, Floats, Labels, Logits, OutputMethod
from influence_cli.model.losses import RowLoss


@dataclass(frozen=True)
class Loss(OutputMethod):
    """Suspicious rows, those with a high loss, come last."""

    def of_outputs(self, logits: Logits, labels: Labels, loss: RowLoss = CROSS_ENTROPY) -> Floats:
        """Minus the loss of each row [n]."""
        return -loss.losses(logits, labels)

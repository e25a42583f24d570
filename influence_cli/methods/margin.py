"""Margin: the labelled class's logit minus the best other logit at the checkpoint; ranking only.

s_i = z_i[y] - max_{c != y} z_i[c]; minus the size of the error where a number is predicted, and the least signed logit
of several labels.
"""

from __future__ import annotations

from dataclasses import dataclass

from influence_cli.methods.protocol import CROSS_ENTROPY, Floats, Labels, Logits, OutputMethod
from influence_cli.model.losses import RowLoss


@dataclass(frozen=True)
class Margin(OutputMethod):
    """Suspicious rows, those where another class wins by far, come last."""

    def of_outputs(self, logits: Logits, labels: Labels, loss: RowLoss = CROSS_ENTROPY) -> Floats:
        """Margin of each row [n]."""
        return loss.margins(logits, labels)

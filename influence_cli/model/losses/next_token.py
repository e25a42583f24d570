"""The loss of a language model, which is what it gives of a row: l(z) = z[LOSS], with z [n, 2] of loss and tokens.

The sum over a row's tokens, no mean: a row of twice as many tokens counts twice, in training and in scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from influence_cli.data.label_kinds import NOTHING
from influence_cli.model.losses.protocol import Floats, Labels, Outputs, RowLoss
from influence_cli.model.spec import NEXT_TOKEN

if TYPE_CHECKING:
    from torch import Tensor

LOSS, TOKENS = 0, 1  # columns of a row's output


class NextTokens(RowLoss):
    """The first of a row's two outputs; labels count for nothing."""

    curved: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    has_margins: ClassVar[bool] = False

    @property
    def holds(self) -> str:
        """Nothing: there are no labels."""
        return NOTHING

    def name(self, outputs: int) -> str:
        """``next-token``."""
        return NEXT_TOKEN

    def rows(self, z: Tensor, y: Tensor) -> Tensor:
        """Losses [n], differentiable."""
        return z[:, LOSS]

    def losses(self, z: Outputs, y: Labels) -> Floats:
        """Losses [n]."""
        return z[:, LOSS].astype(np.float64)

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        """1 in the loss, 0 in the number of tokens, which has no derivative."""
        import torch

        a = torch.zeros(z.shape, dtype=torch.float64, device=z.device)
        a[:, LOSS] = 1.0
        return a

    def scores(self, z: Outputs, t: Outputs, y: Labels) -> tuple[Floats, None]:
        """The tangents of the loss [n]; there is no score with another label."""
        return t[:, LOSS].astype(np.float64), None

    def margins(self, z: Outputs, y: Labels) -> Floats:
        """NaN: there is no other label."""
        return np.full(len(z), np.nan)

    def hits(self, z: Outputs, y: Labels) -> None:
        """None: no label is predicted."""
        return

    def quality(self, z: Outputs, y: Labels) -> dict[str, float]:
        """Loss per token (of all rows, in nats), perplexity (its exponential), and mean loss of a row."""
        losses, tokens = self.losses(z, y), z[:, TOKENS].astype(np.float64)
        each = float(losses.sum() / tokens.sum())
        return {"token_loss": each, "perplexity": float(np.exp(min(each, 700.0))), "loss": float(losses.mean())}

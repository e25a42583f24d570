"""Target margin: minus the mean margin of the target rows.

Phi(theta) = -(1/m) sum_v f_v(theta),   f_v = z_v[y_v] - log sum_c!=y exp z_v[c] = log(p_v / (1 - p_v))

Unlike the loss it goes on counting rows that are predicted with confidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from influence_cli.objectives.protocol import Need

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.model.losses import RowLoss


@dataclass(frozen=True)
class TargetMargin:
    """Log-odds of the target rows' labels."""

    needs: ClassVar[frozenset[Need]] = frozenset({"rows", "classes"})

    def rows(self, logits: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
        """Each target row's term [m] of the mean Phi, from logits [m, C] and labels [m]."""
        import torch

        own = logits.gather(1, labels[:, None])[:, 0]
        return logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1) - own

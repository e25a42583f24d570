"""Utility: the mean loss of the target rows.

Phi(theta) = (1/m) sum_v l_v(theta),   l_v = logsumexp(z_v) - z_v[y_v] unless a Task has a loss of its own
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from influence_cli.objectives.protocol import Need

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.model.losses import RowLoss


@dataclass(frozen=True)
class Utility:
    """The plain loss: dropout, label smoothing and augmentation belong to training."""

    needs: ClassVar[frozenset[Need]] = frozenset({"rows"})

    def rows(self, logits: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
        """Each target row's term [m] of the mean Phi, from logits [m, C], labels [m] and the run's row loss."""
        return loss.rows(logits, labels)

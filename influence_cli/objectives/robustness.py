"""Robustness: the mean loss of the attacked target rows.

Phi(theta) = (1/m) sum_v l(x'_v, y_v; theta),  x'_v a constant, made once at the checkpoint    (methods.md 3.5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from influence_cli.engines.attacks import Attack
from influence_cli.objectives.protocol import Need

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.model.losses import RowLoss


@dataclass(frozen=True)
class Robustness(Attack):
    """The plain loss, on inputs that ``engines.attacked`` makes; its options are the attack's."""

    needs: ClassVar[frozenset[Need]] = frozenset({"rows", "attack"})

    def rows(self, logits: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
        """Each target row's term [m] of the mean Phi, from logits of x' [m, C], labels [m] and the run's row loss."""
        return loss.rows(logits, labels)

"""GEX by gradients: the mean of IP over members that training on from the checkpoint leads to.

    s_i = (1/M) sum_m < grad l_i(psi_m), grad Phi(psi_m) >

Yang, Yue, Chen, Liu (arXiv:2405.17490), Eq. 5, with the members of ``gex``.  It is another score than ``gex``, which
multiplies losses, not gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from influence_cli.methods.protocol import Linear
from influence_cli.methods.shapes.further_training import FurtherTraining
from influence_cli.methods.stored import Place

if TYPE_CHECKING:
    from influence_cli.model.checkpoints import Trajectory


@dataclass(frozen=True)
class GEXIP(FurtherTraining, Linear):
    """One member a stretch of further training."""

    called: ClassVar[str] = "gex-ip"

    def places(self, trajectory: Trajectory, seed: int, params: str) -> list[Place]:
        """The members."""
        return self.further(trajectory, seed, params)

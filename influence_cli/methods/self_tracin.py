"""Self-TracIn, self-influence without curvature: minus the squared norm of the row's gradient; ranking only.

    s_i = - | grad l_i(theta) |^2

at the last checkpoint (Pruthi et al., arXiv:2002.08484, self-influence; the last checkpoint alone as in Yang et al.,
arXiv:2405.17490), or with ``checkpoints=kept`` summed over those that training left, times their learning rates.  It is
what ip gives a row whose target is the row itself, negated so that suspicious rows come last again.  A large value
means atypical, memorised or mislabelled, not necessarily harmful; rare classes look suspicious.
No target rows are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from influence_cli.methods.protocol import RowMethod, RowValue
from influence_cli.methods.stored import Place
from influence_cli.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.engines.layerwise.blocks import Block
    from influence_cli.model.checkpoints import Trajectory


@dataclass(frozen=True)
class SelfTracIn(RowMethod):
    """The squared norm is a sum over blocks, exact from inputs and output gradients of every layer."""

    checkpoints: str = setting("last", "last, or kept: the sum over kept checkpoints times their learning rates")

    def __post_init__(self) -> None:
        if self.checkpoints not in ("last", "kept"):
            raise ValueError(f"checkpoints {self.checkpoints!r} is unknown; use last or kept")

    def places(self, trajectory: Trajectory, seed: int, params: str) -> list[Place]:
        """The last checkpoint, or every kept one by its rate.  Raises UsageError: none was kept."""
        if self.checkpoints == "last":
            return super().places(trajectory, seed, params)
        return [Place(k.checkpoint, weight=k.learning_rate) for k in trajectory.kept("self-tracin of checkpoints=kept")]

    def row_value(self, relative: bool = False) -> RowValue:
        """|g_i|^2."""
        return RowValue({"value": "squared gradient norm", "revision": 2}, self.of_block, quadratic=True)

    def of_block(self, block: Block) -> Tensor:
        """|g_i|^2 of one block, float64 [b]."""
        return block.squared_norms()

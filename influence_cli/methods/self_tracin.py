"""Self-TracIn, self-influence without curvature: minus the squared norm of the row's gradient; ranking only.

    s_i = - | grad l_i(theta) |^2

at the last checkpoint (Pruthi et al., arXiv:2002.08484, self-influence; the last checkpoint alone as in Yang et al.,
arXiv:2405.17490).  It is what ip gives a row whose target is the row itself, negated so that suspicious rows come last
again.  A large value means atypical, memorised or mislabelled, not necessarily harmful; rare classes look suspicious.
No target rows are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from influence_cli.methods.protocol import RowMethod, RowValue

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.engines.layerwise.blocks import Block


@dataclass(frozen=True)
class SelfTracIn(RowMethod):
    """The squared norm is a sum over blocks, exact from inputs and output gradients of every layer."""

    def row_value(self, relative: bool = False) -> RowValue:
        """|g_i|^2."""
        return RowValue({"value": "squared gradient norm", "revision": 2}, self.of_block, quadratic=True)

    def of_block(self, block: Block) -> Tensor:
        """|g_i|^2 of one block, float64 [b]."""
        return block.squared_norms()

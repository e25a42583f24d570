"""Row gradients by layer, from one forward pass and one backward pass for output gradients only.

Every module that owns selected parameters is watched.  Its input and the gradient of its output are enough for dot
products, norms and sums of row gradients, so that no row's gradient is made for the whole model.  Rows are of any
scalar of the logits: ``Tape.pull`` takes its gradient in them, a cotangent [b, C], as often as asked for one forward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from influence_cli.engines.layerwise.blocks import Block
from influence_cli.engines.layerwise.plan import plan_blocks
from influence_cli.engines.layerwise.tape import Tape, WatchedModel
from influence_cli.engines.point import Point, comparable
from influence_cli.errors import ModelError


class Layers(WatchedModel):
    """The blocks of a model at a point, planned and verified on some of its inputs."""

    def __init__(self, point: Point, x: Tensor) -> None:
        """``x`` [n, ...] are a batch of inputs, as large as those that follow.

        A few rows, the point's own where it has them, are run to see where rows are, and that nothing is missed; the
        batch, whether a module is called on some of its rows at a time: such a module gives no block.
        """
        super().__init__(point)
        few = comparable(point, x)
        self.coverage = plan_blocks(self, few)
        while found := self.called_on_parts(self.run(x)):
            self.parted |= found
            self.coverage = plan_blocks(self, few)

    def forward(self, x: Tensor) -> Tape:
        """One forward pass of rows whose blocks are wanted.

        Raises:
            ModelError: a module that was planned to see whole batches is called on some of the rows.
        """
        tape = self.run(x)
        if found := self.called_on_parts(tape):
            raise ModelError(
                f"module {min(found)} is called on some rows of a batch at a time, as no batch before was",
                fix="pass another --batch-size, or select other parameters with --params",
            )
        return tape

    def of_rows(self, x: Tensor, slope: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[Block]]:
        """Logits [b, C], and the blocks for rows' scalars whose gradient in the logits is ``slope(logits)`` [b, C]."""
        tape = self.forward(x)
        return tape.logits, tape.pull(slope(tape.logits))


def loss_slope(rows: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """From logits [b, C] to the gradient in them of every row's own scalar, such as its loss [b]."""

    def slope(logits: Tensor) -> Tensor:
        z = logits.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(rows(z).sum(), z)[0]

    return slope

"""Values of rows' own loss gradients: for every row a sum over blocks of a function of the block's row gradients.

One forward and one backward pass a batch, for output gradients only (see ``layers``); no row's gradient is made whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from influence_cli.errors import ModelError
from influence_cli.model.forward import Point
from influence_cli.model.layers import Block, Layers, loss_slope
from influence_cli.model.losses import CrossEntropy, RowLoss

OfBlock = Callable[[Block], Tensor]  # a block of b rows to its part of their values, float64 [b]
NAMED = 6  # parameters that a message names


class RowValues:
    """Values at a point; the layers are planned on the first batch that has usable rows."""

    def __init__(self, point: Point, loss: RowLoss, functions: Sequence[OfBlock]) -> None:
        """``functions`` are one for every value that is asked for."""
        self.point, self.loss, self.functions = point, loss, functions
        self.layers: Layers | None = None

    def of(self, x: Tensor, labels: Tensor) -> Tensor:
        """Values [b, k] in float64; NaN for rows whose logits are not finite.

        Raises:
            ModelError: there are selected parameters that the layers do not reach; names them.
        """
        found = torch.full((len(x), len(self.functions)), torch.nan, dtype=torch.float64, device=x.device)
        if not self.ready(x):
            return found
        logits, blocks = self.blocks(x, labels)
        for k, function in enumerate(self.functions):
            found[:, k] = torch.stack([function(block) for block in blocks]).sum(0)
        found[~torch.isfinite(logits).all(1)] = torch.nan
        return found

    def ready(self, x: Tensor) -> bool:
        """Whether the layers are known, after planning them on rows of ``x`` with finite logits, if any.

        Raises:
            ModelError: there are selected parameters that the layers do not reach; names them.
        """
        if self.layers is None:
            with torch.no_grad():
                usable = torch.isfinite(self.point.logits(x)).all(1)
            if usable.any():
                self.layers = self._planned(x[usable])
        return self.layers is not None

    def blocks(self, x: Tensor, labels: Tensor) -> tuple[Tensor, list[Block]]:
        """Logits [b, C], and the blocks of the rows' loss gradients; the layers must be known."""
        assert self.layers is not None
        return self.layers.of_rows(x, lambda z: self._slope(z, labels))

    def _slope(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The gradient of each row's loss in its logits [b, C]; that of cross-entropy to the last digits at any margin.

        In float32, or as p_y - 1, it would be 0 for a row that is predicted with confidence.
        """
        if not isinstance(self.loss, CrossEntropy):
            return loss_slope(lambda z: self.loss.rows(z, labels))(logits)
        p = logits.double().softmax(1).scatter(1, labels[:, None], 0.0)
        return p.scatter(1, labels[:, None], -p.sum(1, keepdim=True)).to(logits.dtype)

    def _planned(self, x: Tensor) -> Layers:
        layers = Layers(self.point, x)
        coverage = layers.coverage
        if coverage.missing:
            names = [name for some in coverage.missing.values() for name in some]
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise ModelError(
                f"no layer gives the row gradients of {', '.join(names[:NAMED])}{more}: "
                f"{coverage.parameters - coverage.covered:,} of {coverage.parameters:,} selected parameters",
                fix="select others with --params, such as --params last",
            )
        return layers

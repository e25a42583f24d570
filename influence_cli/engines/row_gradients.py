"""Rows' own loss gradients at a point, whole or sketched, with their exact squared norms by layer.

One forward and one backward pass a batch, for output gradients only (see ``layers``); of a sketched linear layer or
convolution no row's gradient is ever made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from influence_cli.engines.point import Point
from influence_cli.engines.row_values import RowValues
from influence_cli.engines.sketch import LayerColumns, Projection, as_plain, laid_out
from influence_cli.model.losses import RowLoss


class RowGradients:
    """Row gradients at a point; the layers, and so the columns, are found on the first rows with finite logits."""

    def __init__(self, point: Point, loss: RowLoss, sketch_dim: int | None = None, seed: int = 0) -> None:
        """Whole gradients, or with ``sketch_dim`` at most so many values a row."""
        self.point, self.sketch_dim, self.seed = point, sketch_dim, seed
        self._values = RowValues(point, loss, ())
        self.layers: list[LayerColumns] | None = None
        self._projections: list[Projection] = []

    @property
    def dim(self) -> int:
        """The most values a row: known before the layers are."""
        whole = sum(p.numel() for p in self.point.selected.values())
        return whole if self.sketch_dim is None else min(whole, self.sketch_dim)

    def layout(self) -> dict[str, Any]:
        """The columns as plain values; the layers must be known."""
        assert self.layers is not None
        how = {} if self.sketch_dim is None else {"sketch_dim": self.sketch_dim, "seed": self.seed}
        return as_plain(self.layers, how)

    def ready(self, x: Tensor) -> bool:
        """Whether the layers are known, after finding them on rows of ``x`` with finite logits, if any.

        Raises:
            ModelError: there are selected parameters that the layers do not reach; names them.
        """
        if self.layers is None and self._values.ready(x):
            assert self._values.layers is not None
            self.layers = laid_out(self._values.layers.blocks, self.sketch_dim)
            self._projections = [Projection(layer, self.seed) for layer in self.layers]
        return self.layers is not None

    def of(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values [b, p], squared norms by layer float64 [b, L], and logits [b, C]; NaN where logits are not finite."""
        logits, blocks = self._values.blocks(x, labels)
        values = logits.new_zeros(len(x), self.layout()["dim"])
        norms = torch.stack([p.add(block, values) for p, block in zip(self._projections, blocks, strict=True)], 1)
        unusable = ~torch.isfinite(logits).all(1)
        values[unusable], norms[unusable] = torch.nan, torch.nan
        return values, norms, logits

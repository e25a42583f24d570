"""Rows' own loss gradients as stored: whole, or all layers projected into the same columns (``maths.sketch``).

One forward and one backward pass a batch, for output gradients only (see ``layers``), and every layer's squared norms.

A layer (a block of ``layers``) is ``whole`` (its parameters as they are, in columns of their own), ``folded`` (its row
gradients are made, some rows at a time, and added up with random signs), or ``factors`` (a linear layer or convolution
without groups that is too large for that: input by position and output gradient are projected apart, and no row
gradient is made).  Sharing columns costs nothing where a layer's gradient is small, and gives the layers with the large
ones, which no count of parameters tells, all the columns there are.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from influence_cli.engines.layerwise.blocks import MATERIALISED, Block, BlockLayout
from influence_cli.engines.layerwise.protocol import total
from influence_cli.engines.point import Point
from influence_cli.engines.row_values import RowValues
from influence_cli.maths.sketch import (
    add_folded,
    add_shifted,
    factor_bound,
    factor_shape,
    factor_sketch,
    hash_key,
    shifts,
    signs,
)
from influence_cli.model.losses import RowLoss

FOLDED = 1 << 17  # most parameters of a linear layer or convolution whose row gradients are made, to be folded


@dataclass(frozen=True)
class LayerColumns:
    """How one layer's row gradients are stored."""

    name: str
    parameters: dict[str, tuple[int, ...]]  # shapes by name, in the order of a whole gradient
    how: str  # whole, folded or factors
    first: int  # its first column, before what the hash adds
    width: int
    variance: float = 0.0  # c: that of its <Sg, Sh> is at most c |g|^2 |h|^2
    groups: int = 0  # of factors: m, s_in and s_out
    s_in: int = 0
    s_out: int = 0

    @property
    def key(self) -> str:
        """Its name in the hash: that of its first parameter, which no other layer has."""
        return next(iter(self.parameters))


def laid_out(blocks: tuple[BlockLayout, ...], sketch_dim: int | None) -> list[LayerColumns]:
    """The columns of every layer: of whole gradients, or where they are more than ``sketch_dim``, of sketches."""
    sizes = [block.size for block in blocks]
    found: list[LayerColumns] = []
    first = 0
    for block, size in zip(blocks, sizes, strict=True):
        shapes = {n: tuple(s) for n, s in block.shapes.items()}
        if sketch_dim is None or sum(sizes) <= sketch_dim:
            made = LayerColumns(block.name, shapes, "whole", first, size)
            first += size
        else:
            made = _sketched(block, shapes, sketch_dim)
        found.append(made)
    return found


def _sketched(block: BlockLayout, shapes: dict[str, tuple[int, ...]], k: int) -> LayerColumns:
    if block.affine is None or block.size <= FOLDED:
        return LayerColumns(block.name, shapes, "folded", 0, k, 0.0 if block.size <= k else 2.0 / k)
    outputs = block.affine.shape[0]
    inputs = block.size // outputs
    shape = factor_shape(inputs, outputs, k)
    return LayerColumns(block.name, shapes, "factors", 0, k, factor_bound(inputs, outputs, *shape), *shape)


def as_plain(layers: list[LayerColumns], about: dict[str, Any]) -> dict[str, Any]:
    """The layout as plain values, for metadata; parameters as (name, shape), since a list keeps its order."""
    named = [{**asdict(layer), "parameters": [[n, list(s)] for n, s in layer.parameters.items()]} for layer in layers]
    return {**about, "dim": max(layer.first + layer.width for layer in layers), "layers": named}


class Projection:
    """Adds a block's part of b rows to their values [b, p]; gives the rows' exact squared norms, float64 [b]."""

    def __init__(self, layer: LayerColumns, seed: int) -> None:
        self.layer, self.seed = layer, seed
        self._signs: tuple[Tensor | None, ...] | None = None  # as drawn for the first batch
        self._shifts: list[int] = []

    def add(self, block: Block, values: Tensor) -> Tensor:
        """Add to ``values``; returns squared norms."""
        layer = self.layer
        if layer.how == "factors":
            self._add_factors(block, values)
            return block.squared_norms()
        step, norms = max(1, MATERIALISED // max(1, block.layout.size)), []
        for first in range(0, block.b, step):
            some = slice(first, min(first + step, block.b))
            rows = block.row_gradients(some)
            norms.append(total(rows.square()))
            if layer.how == "whole":
                values[some, layer.first : layer.first + layer.width] = rows
            else:
                self._add_folded(rows, values[some])
        return torch.cat(norms)

    def _key(self, what: str) -> int:
        return hash_key(self.seed, self.layer.key, what)

    def fold(self, rows: Tensor) -> tuple[Tensor, list[int]]:
        """Signs and places of a folded layer, for rows [b, d_block]."""
        if self._signs is None:
            self._signs = (signs(self._key("sign"), (rows.shape[1],), rows.device),)
            self._shifts = shifts(self._key("shift"), -(-rows.shape[1] // self.layer.width), self.layer.width)
        (sign,) = self._signs
        assert sign is not None
        return sign.to(rows.device), self._shifts

    def factors(self, a: Tensor, d: Tensor) -> tuple[Tensor | None, Tensor | None, int]:
        """R_in, R_out and the place of a layer of factors, for inputs [b, T, in] and output gradients [b, T, out]."""
        if self._signs is None:
            self._signs = self._factor("in", a, self.layer.s_in), self._factor("out", d, self.layer.s_out)
            self._shifts = shifts(self._key("shift"), 1, self.layer.width)
        r_in, r_out = (None if r is None else r.to(a) for r in self._signs)
        return r_in, r_out, self._shifts[0]

    def _add_folded(self, rows: Tensor, values: Tensor) -> None:
        add_folded(values, rows, *self.fold(rows))

    def _add_factors(self, block: Block, values: Tensor) -> None:
        for some, a, d in block.positions():
            r_in, r_out, shift = self.factors(a, d)
            add_shifted(values[some], factor_sketch(a, d, r_in, r_out, self.layer.groups), shift)

    def _factor(self, side: str, values: Tensor, s: int) -> Tensor | None:
        """R [m s, wide] for values [.., wide], with the scale of both; None where the side is kept whole."""
        wide = values.shape[-1]
        if self.layer.groups == 1 and s == wide:
            return None
        scale = 1.0 / math.sqrt(s * (self.layer.groups if side == "in" else 1))
        drawn = signs(self._key(side), (self.layer.groups * s, wide), values.device)
        return drawn.to(values.dtype) * scale


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

"""Row gradients as stored: whole, or projected layer by layer so that inner products are unbiased (``maths.sketch``).

A **column layout** says which columns of the stored value are which layer's (a block of ``layers``) and how they were
made: ``whole`` (its parameters as they are), ``factors`` (a linear layer or a convolution without groups: input by
position and output gradient are projected apart, and no row gradient is made), or ``plain`` (everything else: the
layer's row gradient is made, some rows at a time, and its entries are added up with random signs).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from influence_cli.errors import UsageError
from influence_cli.maths.sketch import (
    buckets,
    factor_shape,
    factor_sketch,
    hash_key,
    plain_sketch,
    shared_widths,
    signs,
)
from influence_cli.model.layer_rules import total
from influence_cli.model.layers import MATERIALISED, Block, BlockLayout
from influence_cli.model.row_slices import positions


@dataclass(frozen=True)
class LayerColumns:
    """How one layer's row gradients are stored, and where."""

    name: str
    parameters: dict[str, tuple[int, ...]]  # shapes by name, in the order of a whole gradient
    first: int  # its first column
    width: int
    how: str  # whole, plain or factors
    groups: int = 0  # of factors: m, s_in and s_out
    s_in: int = 0
    s_out: int = 0

    @property
    def columns(self) -> slice:
        """Its columns of a value."""
        return slice(self.first, self.first + self.width)

    @property
    def key(self) -> str:
        """Its name in the hash: that of its first parameter, which no other layer has."""
        return next(iter(self.parameters))


def laid_out(blocks: tuple[BlockLayout, ...], sketch_dim: int | None) -> list[LayerColumns]:
    """The columns of every layer, for at most ``sketch_dim`` values a row; None: the whole gradient.

    Raises:
        UsageError: fewer values than layers.
    """
    sizes = [block.size for block in blocks]
    try:
        widths = sizes if sketch_dim is None else shared_widths(sizes, sketch_dim)
    except ValueError as error:
        fix = f"pass --sketch-dim {max(4096, 8 * len(sizes))}"
        raise UsageError(f"--sketch-dim {sketch_dim}: {error}", fix=fix) from error
    found: list[LayerColumns] = []
    first = 0
    for block, size, width in zip(blocks, sizes, widths, strict=True):
        shapes = {n: tuple(s) for n, s in block.shapes.items()}
        if width == size:
            made = LayerColumns(block.name, shapes, first, width, "whole")
        elif block.affine is not None:
            outputs = block.affine.shape[0]
            groups, s_in, s_out = factor_shape(size // outputs, outputs, width)
            made = LayerColumns(block.name, shapes, first, groups * s_in * s_out, "factors", groups, s_in, s_out)
        else:
            made = LayerColumns(block.name, shapes, first, width, "plain")
        found.append(made)
        first += made.width
    return found


def as_plain(layers: list[LayerColumns], about: dict[str, Any]) -> dict[str, Any]:
    """The layout as plain values, for metadata; parameters as (name, shape), since a list keeps its order."""
    named = [{**asdict(layer), "parameters": [[n, list(s)] for n, s in layer.parameters.items()]} for layer in layers]
    return {**about, "dim": sum(layer.width for layer in layers), "layers": named}


class Projection:
    """From a block of b rows to its columns [b, width] and the rows' exact squared norms, float64 [b]."""

    def __init__(self, layer: LayerColumns, seed: int) -> None:
        self.layer, self.seed = layer, seed
        self._drawn: tuple[Tensor | None, Tensor | None] | None = None

    def of(self, block: Block) -> tuple[Tensor, Tensor]:
        """Columns and squared norms."""
        if self.layer.how == "factors":
            return self._factors(block), block.squared_norms()
        step = max(1, MATERIALISED // max(1, block.layout.size))
        values, norms = [], []
        for first in range(0, block.b, step):
            rows = block.row_gradients(slice(first, min(first + step, block.b)))
            norms.append(total(rows.square()))
            values.append(rows if self.layer.how == "whole" else self._plain(rows))
        return torch.cat(values), torch.cat(norms)

    def _key(self, what: str) -> int:
        return hash_key(self.seed, self.layer.key, what)

    def _plain(self, rows: Tensor) -> Tensor:
        if self._drawn is None:
            size = rows.shape[1]
            self._drawn = (
                signs(self._key("sign"), (size,), rows.device),
                buckets(self._key("bucket"), size, self.layer.width, rows.device),
            )
        sign, bucket = self._drawn
        assert sign is not None
        assert bucket is not None
        return plain_sketch(rows, sign, bucket, self.layer.width)

    def _factors(self, block: Block) -> Tensor:
        layer, found = self.layer, []
        for _, a, d in positions(block):
            if self._drawn is None:
                self._drawn = self._factor("in", a, layer.s_in), self._factor("out", d, layer.s_out)
            found.append(factor_sketch(a, d, *self._drawn, layer.groups))
        return torch.cat(found)

    def _factor(self, side: str, values: Tensor, s: int) -> Tensor | None:
        """R [m s, wide] for values [.., wide], with the scale of both; None where the side is kept whole."""
        wide = values.shape[-1]
        if self.layer.groups == 1 and s == wide:
            return None
        scale = 1.0 / math.sqrt(s * (self.layer.groups if side == "in" else 1))
        drawn = signs(self._key(side), (self.layer.groups * s, wide), values.device)
        return drawn.to(values.dtype) * scale

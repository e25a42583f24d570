"""Inner products of the loss gradients of held rows with those of other rows, layer by layer.

    < g_i, g_t > = sum over layers of  sum_pq (a_ip . a_tq)(d_ip . d_tq)

with inputs a (of a convolution, patches) and output gradients d at positions p and q; no gradient is made whole.  Of an
embedding, positions of the same token meet: sum_pq [token_ip = token_tq] (d_ip . d_tq).  With few positions that is far
cheaper than the product of the layer's two row gradients; where it is not, these are made and multiplied, layer by
layer.  A held row costs one forward and one backward pass, another row the same whatever the number of held rows, and a
pair the products alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from influence_cli.engines.layerwise.blocks import MATERIALISED, Block, BlockLayout
from influence_cli.engines.point import Point
from influence_cli.engines.row_values import RowValues
from influence_cli.errors import ModelError
from influence_cli.model.losses import RowLoss

LARGEST = 1 << 20  # most parameters of a block of another kind than layers and embeddings: its row gradients are made
PAIR_VALUES = 1 << 24  # most products of positions that are made at once


@dataclass(frozen=True)
class _Factors:
    """A block's part of b rows as inputs a [b, T, I] and output gradients d [b, T, O] by position."""

    a: Tensor
    d: Tensor

    @property
    def values(self) -> int:
        return self.a.numel() + self.d.numel()

    def products(self, other: Block) -> Tensor:
        """With the rows of another batch: float64 [held, b]."""
        found = other.homogeneous()
        assert found is not None
        a, d = found
        held, own = len(self.a), self.a.shape[1]
        step = max(1, PAIR_VALUES // max(1, held * own * a.shape[1]))
        parts = list[Tensor]()
        for first in range(0, len(a), step):
            some = slice(first, first + step)
            both = _gram(self.a, a[some]) * _gram(self.d, d[some])
            parts.append(both.sum((1, 3), dtype=torch.float64))
        return torch.cat(parts, 1)


@dataclass(frozen=True)
class _Tokens:
    """An embedding's part of b rows as tokens [b, T] and output gradients d [b, T, O] by position."""

    at: Tensor
    d: Tensor

    @property
    def values(self) -> int:
        return self.at.numel() + self.d.numel()

    def products(self, other: Block) -> Tensor:
        """With the rows of another batch: float64 [held, b]."""
        found = other.tokens()
        assert found is not None
        at, d = found
        step = max(1, PAIR_VALUES // max(1, self.at.numel() * at.shape[1]))
        parts = list[Tensor]()
        for first in range(0, len(at), step):
            some = slice(first, first + step)
            same = self.at[:, :, None, None] == at[some][None, None]
            parts.append((_gram(self.d, d[some]) * same).sum((1, 3), dtype=torch.float64))
        return torch.cat(parts, 1)


def _gram(a: Tensor, b: Tensor) -> Tensor:
    """Products of positions [m, T, n, S] of a [m, T, k] with those of b [n, S, k]."""
    m, t, _ = a.shape
    n, s, _ = b.shape
    return (a.flatten(0, 1) @ b.flatten(0, 1).T).reshape(m, t, n, s)


@dataclass(frozen=True)
class _Whole:
    """A block's part of b rows as their gradients [b, d_block]."""

    rows: Tensor

    @property
    def values(self) -> int:
        return self.rows.numel()

    def products(self, other: Block) -> Tensor:
        """With the rows of another batch: float64 [held, b]."""
        step = max(1, MATERIALISED // max(1, other.layout.size))
        parts = [self.rows @ other.row_gradients(slice(k, k + step)).T for k in range(0, other.b, step)]
        return torch.cat(parts, 1).double()


class PairProducts:
    """Rows whose gradients are held at a point, to be multiplied with those of others."""

    def __init__(self, point: Point, loss: RowLoss) -> None:
        """Nothing is held yet."""
        self._rows = RowValues(point, loss, ())
        self._held: list[list[_Factors | _Tokens | _Whole]] = []  # by batch that was held, and by block

    @property
    def values(self) -> int:
        """How many numbers are held."""
        return sum(part.values for parts in self._held for part in parts)

    def hold(self, x: Any, labels: Tensor) -> None:
        """Hold the rows of one more batch.

        Raises:
            ModelError: the layers do not give the gradient of every selected parameter, or one of them has too many
                for that; logits of no row are finite.
        """
        if not self._rows.ready(x):
            raise ModelError("the logits of no row are finite", fix="check the checkpoint and the inputs")
        assert self._rows.layers is not None
        for layout in self._rows.layers.blocks:
            if layout.affine is None and layout.embedding is None and layout.size > LARGEST:
                what = f"the row gradients of {layout.name} ({layout.size:,} parameters) are too large to be made"
                raise ModelError(what, fix="select others with --params")
        _, blocks = self._rows.blocks(x, labels)
        self._held.append([_part(block) for block in blocks])

    def drop(self) -> None:
        """Hold nothing any more."""
        self._held = []

    def of(self, x: Any, labels: Tensor) -> Tensor:
        """Inner products [b, held], float64, of the rows of a batch with those that are held, in the order of holding.

        Rows whose logits are not finite have products that are not.
        """
        logits, blocks = self._rows.blocks(x, labels)
        by_batch = list[Tensor]()
        for parts in self._held:
            found = [part.products(block) for part, block in zip(parts, blocks, strict=True)]
            by_batch.append(torch.stack(found).sum(0))
        products = torch.cat(by_batch).T.contiguous()
        products[~torch.isfinite(logits).all(1)] = torch.nan
        return products


def _part(block: Block) -> _Factors | _Tokens | _Whole:
    """The cheapest that the block has."""
    tokens = block.tokens()
    if tokens is not None and (
        tokens[0].shape[1] ** 2 < block.layout.size // tokens[1].shape[2] or block.layout.size > LARGEST
    ):
        return _Tokens(*tokens)
    places = _positions(block)
    if places is not None and places * places * _width(block.layout) < block.layout.size:
        found = block.homogeneous()
        assert found is not None
        return _Factors(*found)
    step = max(1, MATERIALISED // max(1, block.layout.size))
    return _Whole(torch.cat([block.row_gradients(slice(k, k + step)) for k in range(0, block.b, step)]))


def _positions(block: Block) -> int | None:
    """Positions a row of a linear layer or a convolution without groups; None of another block."""
    if block.layout.affine is None:
        return None
    return sum(call.d.numel() for _, call in block.calls) // max(1, block.b * block.layout.affine.shape[0])


def _width(layout: BlockLayout) -> int:
    """Input and output values of a position."""
    assert layout.affine is not None
    tall = layout.affine.shape[0]
    return tall + layout.size // tall

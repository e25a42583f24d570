"""g_i^T P g_i of rows, P by layer: in the eigenbasis of a Kronecker product, or a number times the identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.engines.layerwise.blocks import MATERIALISED, Block
from influence_cli.engines.layerwise.positions import positions
from influence_cli.engines.layerwise.protocol import total
from influence_cli.errors import ModelError
from influence_cli.maths.kronecker import inverse_forms


@dataclass(frozen=True)
class Turned:
    """P of one layer: Q_S [ shares (Q_S^T . Q_A) ] Q_A^T, for gradients [O, I] with the bias as their last column."""

    q_a: NDArray[Any]
    q_s: NDArray[Any]
    shares: NDArray[Any]  # float64 [O, I]


class KroneckerForm:
    """From the blocks of b rows to g_i^T P g_i, float64 [b]."""

    def __init__(self, layers: dict[str, Turned], shares: dict[str, float]) -> None:
        """``layers`` by the name of the weight; ``shares`` by that of every parameter that is in none."""
        self.layers, self.shares = layers, shares
        self._held: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, blocks: list[Block]) -> Tensor:
        """The sum over blocks."""
        return torch.stack([self._of(block) for block in blocks]).sum(0)

    def _of(self, block: Block) -> Tensor:
        affine = block.layout.affine is not None
        weight = block.layout.sites[0].names["weight"] if affine else None
        if weight in self.layers:
            return self._in_basis(block, weight)
        names = list(block.layout.shapes)
        if not set(names) <= set(self.shares):
            raise ModelError(
                f"layer {block.name} is not used as it was when its Kronecker factors were fitted",
                fix="fit them on rows like these: --fit-rows MANIFEST",
            )
        shares = {self.shares[name] for name in names}
        if shares == {0.0}:
            return torch.zeros(block.b, dtype=torch.float64, device=block.like.device)
        if len(shares) == 1:
            return block.squared_norms() * shares.pop()
        return _weighted_squares(block, self.shares)

    def _in_basis(self, block: Block, weight: str) -> Tensor:
        if weight not in self._held:
            turned, like = self.layers[weight], block.like
            q_a, q_s = (torch.from_numpy(q.copy()).to(like.device, like.dtype) for q in (turned.q_a, turned.q_s))
            self._held[weight] = q_a, q_s, torch.from_numpy(turned.shares).to(like.device)
        return torch.cat([inverse_forms(a, d, *self._held[weight]) for _, a, d in positions(block)])


def _weighted_squares(block: Block, shares: dict[str, float]) -> Tensor:
    """Squared norms of a block's parameters, each times its share; rows are taken some at a time."""
    found: list[Tensor] = []
    step = max(1, MATERIALISED // max(1, block.layout.size))
    for first in range(0, block.b, step):
        gradients = block.gradients(slice(first, first + step))
        found.append(torch.stack([total(g.square()) * shares[name] for name, g in gradients.items()]).sum(0))
    return torch.cat(found)

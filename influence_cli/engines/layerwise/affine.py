"""Row gradients of linear layers and convolutions.

    dW_i = sum_t d_it a_it^T,     db_i = sum_t d_it        (of a convolution, a_it is the patch at position t)

so that <g_i, U> = sum_t d_it . (U_W a_it + U_b) needs no g_i.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from influence_cli.engines.layerwise.protocol import Named, Pair, by_row, total


class Affine:
    """Linear layers: positions a [b, T, G, I] and d [b, T, G, O] of G groups, here 1."""

    def __init__(self, module: nn.Module) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        self.shape, self.groups = weight.shape, 1

    def positions(self, a: Tensor, d: Tensor, b: int) -> tuple[Tensor, Tensor]:
        """Inputs [b, T, G, I] and output gradients [b, T, G, O]."""
        return a.reshape(b, -1, 1, a.shape[-1]), d.reshape(b, -1, 1, d.shape[-1])

    def apply(self, a: Tensor, u: Named) -> Tensor:
        """The layer with u in place of its parameters."""
        if "weight" in u:
            return F.linear(a, u["weight"], u.get("bias"))
        return u["bias"]

    def dots(self, a: Tensor, d: Tensor, b: int, u: Named) -> Tensor:
        """<g_i, u> = sum_t d_it . (U_W a_it + U_b), float64 [b]."""
        return total((self.apply(a, u) * d).reshape(b, -1))

    def dots_by_position(self, a: Tensor, d: Tensor, b: int, u: Named) -> Tensor:
        """The summands d_it . (U_W a_it + U_b) of ``dots``, float64 [b, T]."""
        return (self.apply(a, u) * d).sum(-1, dtype=torch.float64).reshape(b, -1)

    def gradients(self, a: Tensor, d: Tensor, b: int, names: tuple[str, ...]) -> Named:
        """Gradients dW [b, *W] and db [b, out]."""
        at, dt = self.positions(a, d, b)
        found: Named = {}
        if "weight" in names:
            found["weight"] = torch.einsum("btgo,btgi->bgoi", dt, at).reshape(b, *self.shape)
        if "bias" in names:
            found["bias"] = dt.sum(1).reshape(b, -1)
        return found

    def norms(self, calls: list[Pair], b: int, names: tuple[str, ...]) -> Tensor | None:
        """sum_tt' (d_t . d_t') (a_t . a_t' + 1) over positions, where T^2 is below the size of the weight."""
        steps = sum(d.numel() for _, d in calls) // (b * self.shape[0])
        if "weight" not in names or steps * steps >= self.shape.numel() // self.groups:
            return None
        parts = [self.positions(a, d, b) for a, d in calls]
        at, dt = (torch.cat(some, 1).transpose(1, 2) for some in zip(*parts, strict=True))  # [b, G, T, .]
        gram = at @ at.mT + (1.0 if "bias" in names else 0.0)
        return total(gram * (dt @ dt.mT))

    def weighted(self, a: Tensor, d: Tensor, c: Tensor, names: tuple[str, ...]) -> Named:
        """sum_i c_i dW_i and sum_i c_i db_i."""
        d = by_row(d, c)
        found: Named = {}
        if "weight" in names:
            found["weight"] = d.flatten(0, -2).T @ a.flatten(0, -2)
        if "bias" in names:
            found["bias"] = d.flatten(0, -2).sum(0)
        return found


class Conv(Affine):
    """Convolutions with any stride, padding, dilation and groups: a position is a patch."""

    def __init__(self, module: nn.Conv2d) -> None:
        super().__init__(module)
        self.module, self.groups = module, module.groups
        self.padding = list(module._reversed_padding_repeated_twice)
        self.padding_mode = "constant" if module.padding_mode == "zeros" else module.padding_mode

    def padded(self, a: Tensor) -> Tensor:
        """The input as the convolution sees it."""
        return F.pad(a, self.padding, self.padding_mode) if any(self.padding) else a

    def positions(self, a: Tensor, d: Tensor, b: int) -> tuple[Tensor, Tensor]:
        """Patches [b, T, G, I] and output gradients [b, T, G, O]."""
        m = self.module
        patches = F.unfold(self.padded(a), m.kernel_size, m.dilation, 0, m.stride)  # [b k, C |kernel|, L]
        at = patches.unflatten(0, (b, -1)).unflatten(2, (m.groups, -1))  # [b, k, G, I, L]
        dt = d.flatten(2).unflatten(0, (b, -1)).unflatten(2, (m.groups, -1))
        return at.permute(0, 1, 4, 2, 3).flatten(1, 2), dt.permute(0, 1, 4, 2, 3).flatten(1, 2)

    def apply(self, a: Tensor, u: Named) -> Tensor:
        """The convolution with u in place of its parameters."""
        if "weight" in u:
            return self.module._conv_forward(a, u["weight"], u.get("bias"))
        return u["bias"][:, None, None]

    def dots_by_position(self, a: Tensor, d: Tensor, b: int, u: Named) -> Tensor:
        """The summands of ``dots`` by patch, float64 [b, T]."""
        return (self.apply(a, u) * d).sum(1, dtype=torch.float64).reshape(b, -1)

    def weighted(self, a: Tensor, d: Tensor, c: Tensor, names: tuple[str, ...]) -> Named:
        """sum_i c_i dW_i and sum_i c_i db_i, by one backward convolution."""
        d, m = by_row(d, c), self.module
        found: Named = {}
        if "weight" in names:
            steps: Any = (m.stride, 0, m.dilation, m.groups)  # annotated there as one number each
            found["weight"] = conv2d_weight(self.padded(a), list(self.shape), d, *steps)
        if "bias" in names:
            found["bias"] = d.sum((0, 2, 3))
        return found

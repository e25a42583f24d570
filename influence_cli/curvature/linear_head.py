"""Curvature of a head that is one linear layer: its Jacobian is the layer's inputs, so no Jacobian is made.

For logits z_i = W h_i + b and cross-entropy, with h = [h_i; 1] (or either part alone) and B_i = diag(p_i) - p_i p_i^T,

    sum_i w_i J_i^T B_i J_i   has the blocks   sum_i w_i B_i[c, k] h h^T   between classes c and k,

which are the Hessian's too, since the logits are linear in the parameters.  C (C + 1) / 2 products of [E, b] with
[b, E] take the place of one of [C E, b C] with [b C, C E].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LinearHead:
    """Where the layer's weight [C, D] and bias [C] begin among the selected parameters; None where one is not."""

    weight: int | None
    bias: int | None
    width: int  # D

    def add(self, matrix: Tensor, gradient: Tensor, h: Tensor, p: Tensor, residual: Tensor, w: Tensor) -> None:
        """Add a batch's sums to ``matrix`` [d, d] and ``gradient`` [d].

        Inputs of the layer h [b, D], probabilities p [b, C], residuals p - e_y [b, C], weights w [b]; all float64.
        """
        parts = [h] if self.weight is not None else []
        seen = torch.cat([*parts, torch.ones_like(h[:, :1])], dim=1) if self.bias is not None else h
        sums = (residual * w[:, None]).T @ seen
        classes = p.shape[1]
        for c in range(classes):
            for place, some in self._places(c):
                gradient[place] += sums[c, some]
            for k in range(c, classes):
                of_rows = -p[:, c] * p[:, k]
                if c == k:
                    of_rows = of_rows + p[:, c]
                block = (seen * (w * of_rows)[:, None]).T @ seen
                for row, rows in self._places(c):
                    for column, columns in self._places(k):
                        matrix[row, column] += block[rows, columns]
                        if c != k:
                            matrix[column, row] += block[rows, columns].T

    def _places(self, c: int) -> list[tuple[slice, slice]]:
        """Slices of the selected parameters, and of [h; 1], that belong to class c."""
        found = []
        if self.weight is not None:
            start = self.weight + c * self.width
            found.append((slice(start, start + self.width), slice(0, self.width)))
        if self.bias is not None:
            start = self.bias + c
            ones = self.width if self.weight is not None else 0
            found.append((slice(start, start + 1), slice(ones, ones + 1)))
        return found


def linear_head(module: nn.Module, path: str, shapes: Mapping[str, torch.Size]) -> LinearHead | None:
    """The head at ``path`` of selected parameters of these shapes, in their order; None where it is no linear layer."""
    if type(module) is not nn.Linear or not {f"{path}.weight", f"{path}.bias"} >= set(shapes):
        return None
    starts, at = {}, 0
    for name, shape in shapes.items():
        starts[name], at = at, at + shape.numel()
    return LinearHead(starts.get(f"{path}.weight"), starts.get(f"{path}.bias"), module.in_features)

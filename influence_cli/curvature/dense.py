"""The dense matrix of a curvature, summed batch by batch.

A batch's Jacobians are made some rows at a time, so that memory holds one block of them and the matrix [d, d], never
all rows' Jacobians.  Of a head that is one linear layer none is made: its Jacobian is the layer's inputs.

For outputs z_i = W h_i + b, with h = [h_i; 1] (or either part alone) and B_i the output curvature of the loss,

    sum_i w_i J_i^T B_i J_i   has the blocks   sum_i w_i B_i[c, k] h h^T   between outputs c and k,

which are the Hessian's too, since the outputs are linear in the parameters.  At most C (C + 1) / 2 products of
[E, b] with [b, E] take the place of one of [C E, b C] with [b C, C E].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from influence_cli.curvature.jacobians import Jacobians
from influence_cli.data.manifest import Rows
from influence_cli.errors import ManifestError
from influence_cli.model.losses.protocol import OutputCurvature

CurvatureKind = Literal["ggn", "hessian", "empirical"]

JACOBIAN_VALUES = 1 << 22  # most values of a block of Jacobians [b, C, d]: 32 MiB


@dataclass(frozen=True)
class LinearHead:
    """Where the layer's weight [C, D] and bias [C] begin among the selected parameters; None where one is not."""

    weight: int | None
    bias: int | None
    width: int  # D

    def add(self, matrix: Tensor, gradient: Tensor, h: Tensor, at: OutputCurvature, w: Tensor) -> None:
        """Add a batch's sums to ``matrix`` [d, d] and ``gradient`` [d].

        Inputs of the layer h [b, D], the outputs' curvature, and weights w [b]; all float64.
        """
        parts = [h] if self.weight is not None else []
        seen = torch.cat([*parts, torch.ones_like(h[:, :1])], dim=1) if self.bias is not None else h
        residual = at.residuals()
        sums = (residual * w[:, None]).T @ seen
        classes = residual.shape[1]
        for c in range(classes):
            for place, some in self._places(c):
                gradient[place] += sums[c, some]
            for k in range(c, classes):
                of_rows = at.entry(c, k)
                if of_rows is None:
                    continue
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


class DenseSums:
    """sum_i w_i of the rows' matrices [d, d] and of their gradients [d], in float64."""

    def __init__(self, kind: CurvatureKind, rows: Rows, size: int, device: torch.device) -> None:
        """Zeros; ``rows`` are for messages."""
        self.kind, self.rows = kind, rows
        self.matrix = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.gradient = torch.zeros(size, dtype=torch.float64, device=device)

    def add(
        self, jacobians: Jacobians, linear: LinearHead | None, index: NDArray[np.int64], x: Tensor, y: Tensor, w: Tensor
    ) -> None:
        """Add a batch.

        Raises:
            ManifestError: a row's logits or their derivatives are not finite; names it.
        """
        if self.kind != "empirical" and linear is not None and x.ndim == 2:
            z = jacobians.logits(x)
            check_rows(self.rows, index, z, x)
            linear.add(self.matrix, self.gradient, x, jacobians.loss.curvature(z, y), w)
        elif self.kind == "hessian":
            hessian, g = jacobians.hessian(x, y, w)
            check_rows(self.rows, index, jacobians.logits(x))
            self.matrix += hessian
            self.gradient += g
        else:
            self._add_by_jacobians(jacobians, index, x, y, w)

    def _add_by_jacobians(
        self, jacobians: Jacobians, index: NDArray[np.int64], x: Tensor, y: Tensor, w: Tensor
    ) -> None:
        block = max(1, JACOBIAN_VALUES // max(1, len(self.gradient) * jacobians.classes))
        for some in torch.arange(len(y), device=w.device).split(block):
            jacobian = jacobians.of_rows(x[some])
            at = jacobians.loss.curvature(jacobians.logits(x[some]), y[some])
            check_rows(self.rows, index[some.cpu().numpy()], at.of, jacobian)
            rows = torch.einsum("bc,bcd->bd", at.residuals(), jacobian)
            self.gradient += w[some] @ rows
            if self.kind == "ggn":
                rows = at.rooted(jacobian, w[some]).flatten(0, 1)
                self.matrix += rows.T @ rows
            else:
                self.matrix += (rows * w[some][:, None]).T @ rows


def check_rows(rows: Rows, index: NDArray[np.int64], *values: Tensor) -> None:
    """Refuse a manifest row of ``index`` [b] whose values [b, ...] are not finite.

    Raises:
        ManifestError: there is one; names it.
    """
    for value in values:
        bad = ~torch.isfinite(value.flatten(1)).all(dim=1)
        if bool(bad.any()):
            row = int(index[int(torch.nonzero(bad)[0])])
            raise ManifestError(
                "curvature cannot be fitted: the logits of a fit row, or their derivatives, are not finite",
                where=f"{rows.manifest.source}, row id={rows.manifest.ids[row]}",
                fix="repair the row, take it out or give it weight 0",
            )


def finite_sum(rows: Rows, total: Tensor) -> Tensor:
    """The sum over rows itself.

    Raises:
        ManifestError: it overflowed.
    """
    if not bool(torch.isfinite(total.sum())) and not bool(torch.isfinite(total).all()):
        raise ManifestError("the curvature is not finite", where=rows.manifest.source, fix="standardise the features")
    return total

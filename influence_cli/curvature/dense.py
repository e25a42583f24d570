"""The dense matrix of a curvature, summed batch by batch.

A batch's Jacobians are made some rows at a time, so that memory holds one block of them and the matrix [d, d], never
all rows' Jacobians.  Of a head that is one linear layer none is made.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.curvature.finite_rows import check_rows
from influence_cli.curvature.jacobians import Jacobians
from influence_cli.curvature.linear_head import LinearHead
from influence_cli.data.manifest import Rows

CurvatureKind = Literal["ggn", "hessian", "empirical"]

JACOBIAN_VALUES = 1 << 22  # most values of a block of Jacobians [b, C, d]: 32 MiB


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
            p = z.softmax(dim=1)
            linear.add(self.matrix, self.gradient, x, p, residuals(p, y), w)
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
            p = jacobians.logits(x[some]).softmax(dim=1)
            check_rows(self.rows, index[some.cpu().numpy()], p, jacobian)
            rows = torch.einsum("bc,bcd->bd", residuals(p, y[some]), jacobian)
            self.gradient += w[some] @ rows
            if self.kind == "ggn":  # K_c = sqrt(p_c) (J_c - sum_k p_k J_k), and sum_c K_c K_c^T = J^T B J
                mean = torch.einsum("bc,bcd->bd", p, jacobian)
                rows = ((jacobian - mean[:, None]) * (p.sqrt() * w[some].sqrt()[:, None])[:, :, None]).flatten(0, 1)
                self.matrix += rows.T @ rows
            else:
                self.matrix += (rows * w[some][:, None]).T @ rows


def residuals(p: Tensor, y: Tensor) -> Tensor:
    """Gradients of cross-entropy in the logits, p - e_y [b, C]."""
    return p - F.one_hot(y, p.shape[1])

"""Sums over the rows of a curvature, which of several processes each makes over rows of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.curvature.dense import CurvatureKind, DenseSums, check_rows
from influence_cli.curvature.linearised import Graph
from influence_cli.engines.engine import Directions
from influence_cli.model.parameters import named_views
from influence_cli.processes.messages import may_be_sent

Floats = NDArray[np.float64]
Batch = tuple[NDArray[np.int64], Tensor, Tensor, Tensor]


class RowSums:
    """What a curvature sums up over its rows; the curvature knows its batches, and where derivatives are taken."""

    def add_product(
        self: Any, kind: CurvatureKind, x: Tensor, y: Tensor, w: Tensor, directions: Directions, total: Tensor
    ) -> Tensor:
        """Add the sum over a batch's rows of w_i times their curvature, times every direction, to a row of [k, d] each.

        The logits [b, C] are returned.
        """
        if kind == "hessian" and not self._linearised.closed(x):
            graph = Graph(self.at, x)
            z, images = graph.logits.detach(), graph.hessian(y, w, directions, self.loss)
        else:
            z, images = self._linearised.ggn(x, y, w, directions)
        for row, image in zip(total, images, strict=True):
            self._add_to(row, image)
        return z

    @may_be_sent
    def dense_sums(self: Any, kind: CurvatureKind) -> list[Tensor]:
        """The matrix [d, d] and the gradient [d]."""
        sums = DenseSums(kind, self.rows, self.size, self.device)
        for index, x, y, w in self.head_batches(f"curvature ({kind})"):
            sums.add(self._jacobians, self._linear, index, x, y, w)
        return [sums.matrix, sums.gradient]

    @may_be_sent
    def product_sums(self: Any, kind: CurvatureKind, columns: Floats) -> list[Tensor]:
        """Products [k, d] with every column of [d, k]."""
        directions, total = self.directions(columns), self.zeros(columns.shape[1])
        for index, x, y, w in self.head_batches(f"curvature ({kind} product)"):
            z = self.add_product(kind, x, y, w, directions, total)
            if not self._checked:
                check_rows(self.rows, index, z)
        self._checked = True
        return [total]

    @may_be_sent
    def quadratic_sums(self: Any, columns: Floats) -> list[Tensor]:
        """v^T G v of every column of [d, k], and the gradient [1, d]."""
        directions = self.directions(columns)
        forms = torch.zeros(len(directions), dtype=torch.float64, device=self.device)
        gradient = self.zeros(1)
        for index, x, y, w in self.head_batches("curvature (size)"):
            z, tangents = self._linearised.push(x, directions)
            check_rows(self.rows, index, z)
            at = self.loss.curvature(z, y)
            (image,) = Graph(self.at, x).pull([w[:, None] * at.residuals()])
            self._add_to(gradient[0], image)
            for k, t in enumerate(tangents):
                forms[k] += (w * at.form(t)).sum()
        self._checked = True
        return [forms, gradient]

    def flat(self: Any, tensors: dict[str, NDArray[np.floating]]) -> Floats:
        """A direction by parameter name as one vector [d]."""
        return np.concatenate([tensors[n].astype(np.float64).ravel() for n in self.layout])

    def by_name(self: Any, vector: Floats) -> dict[str, Floats]:
        """A vector [d] by parameter name; 0 for selected parameters that are not in the layout."""
        parts = dict(zip(self.layout, np.split(vector, np.cumsum(self.sizes)[:-1]), strict=True))
        zero = lambda shape: np.zeros(shape.numel(), dtype=vector.dtype)  # noqa: E731
        return {n: (parts[n] if n in parts else zero(s)).reshape(s) for n, s in self._selected.items()}

    def directions(self: Any, columns: Floats) -> Directions:
        """Every column of [d, k] by parameter name, in the precision of products."""
        flat = (torch.from_numpy(np.ascontiguousarray(column)) for column in columns.T)
        return [named_views(v.to(self.device, self.dtype), self.layout) for v in flat]

    def zeros(self: Any, count: int) -> Tensor:
        """Sums to begin with, a row [d] a column, in float64."""
        return torch.zeros(count, self.size, dtype=torch.float64, device=self.device)

    def _add_to(self: Any, row: Tensor, image: dict[str, Tensor]) -> None:
        """Add an image by parameter name to sums [d]."""
        for part, of_it in zip(named_views(row, self.layout).values(), image.values(), strict=True):
            part += of_it

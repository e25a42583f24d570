"""Margins' gradients over the fit rows in the columns of a sketch (``maths.sketch``), and directions in and out of it.

A row's margin is f = z_y - log sum_c!=y exp z_c; cross-entropy is log(1 + exp(-f)), so grad l = -(1 - p_y) grad f.
The sketch S [k, d] is that of stored row gradients (``--rows sketch``): the same layers, signs and places for a seed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.engines.row_gradients import LayerColumns, Projection, laid_out
from influence_cli.errors import ModelError
from influence_cli.maths.sketch import add_folded, add_shifted, factor_sketch
from influence_cli.processes.messages import may_be_sent

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature

Floats = NDArray[np.float64]


def margin_slopes(z: Tensor, y: Tensor) -> Tensor:
    """Slopes df/dz [b, C] of the margin of labels y [b], float64: 1 at the label, minus the others' shares elsewhere.

    >>> margin_slopes(torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([0])).tolist()
    [[1.0, -0.5, -0.5]]
    """
    others = z.double().scatter(1, y[:, None], -torch.inf).softmax(1)
    return -others.scatter(1, y[:, None], -1.0)


class Sketched:
    """The sketch of a curvature's layers in at most ``dim`` columns."""

    def __init__(self, curvature: Curvature, dim: int, seed: int) -> None:
        """One batch is run, to find the layers.

        Raises:
            ModelError: a selected parameter is in no layer; names it.
        """
        self.curvature, self.dim, self.seed = curvature, dim, seed
        self.layers = curvature.layers()
        self.columns = laid_out(self.layers.blocks, dim)
        self.projections = [Projection(layer, seed) for layer in self.columns]
        self.width = max(layer.first + layer.width for layer in self.columns)
        self._of = dict(zip((b.name for b in self.layers.blocks), self.projections, strict=True))
        outside = set(curvature.layout) - {n for layer in self.columns for n in layer.parameters}
        if outside:
            what = f"no layer gives rows' own gradients of {', '.join(sorted(outside)[:5])}"
            raise ModelError(what, fix="select others with --params")

    def gram(self, what: str) -> tuple[Floats, float]:
        """(1/n) sum_i w_i (S grad f_i) (S grad f_i)^T [k, k], and the largest share of one row in its trace."""
        c, of = self.curvature, functools.partial(_gram_sums, dim=self.dim, seed=self.seed, what=what)
        total, sizes = self.gram_sums(what) if c.divided is None else c.sums(of)
        trace = float(total.trace())
        return (total / c.weight).cpu().numpy(), float(sizes.max()) / trace if trace > 0 else 0.0

    def gram_sums(self, what: str) -> list[Tensor]:
        """The sum of w_i (S grad f_i) (S grad f_i)^T over the rows [k, k], and every row's part of its trace [n].

        A row's part stands at its place in the manifest, so that what several processes add up are all rows' parts.
        """
        c = self.curvature
        total = torch.zeros(self.width, self.width, dtype=torch.float64, device=c.device)
        sizes = torch.zeros(len(c.rows.manifest), dtype=torch.float64, device=c.device)
        for index, tape, y, w in c.tapes(self.layers, what):
            slopes = margin_slopes(tape.logits, y).to(tape.logits.dtype)
            rows = torch.zeros(len(y), self.width, dtype=tape.logits.dtype, device=c.device)
            for block in tape.pull(slopes):
                self._of[block.name].add(block, rows)
            scaled = rows.double() * w.double().sqrt()[:, None]
            total += scaled.T @ scaled
            sizes[torch.from_numpy(index).to(c.device)] = scaled.square().sum(1)
        return [total, sizes]

    def into(self, columns: Floats) -> Floats:
        """S q [k, j] for every column of [d, j]."""
        return np.stack([self._into(torch.from_numpy(np.ascontiguousarray(q))).numpy() for q in columns.T], axis=1)

    def out_of(self, columns: Floats) -> Floats:
        """S^T w [d, j] for every column of [k, j]."""
        found: list[NDArray[np.float64]] = []
        for w in columns.T:
            at = torch.zeros(self.curvature.size, dtype=torch.float64, requires_grad=True)
            with torch.enable_grad():
                image = self._into(at)
            (back,) = torch.autograd.grad(image, at, torch.from_numpy(np.ascontiguousarray(w)))
            found.append(back.numpy())
        return np.stack(found, axis=1)

    def _into(self, q: Tensor) -> Tensor:
        """S q [k] of one vector [d], float64, differentiable."""
        named = dict(zip(self.curvature.layout, q.split(self.curvature.sizes), strict=True))
        total = torch.zeros(1, self.width, dtype=torch.float64)
        for layer, projection in zip(self.columns, self.projections, strict=True):
            parts = {n: named[n].reshape(shape) for n, shape in layer.parameters.items()}
            if layer.how == "factors":
                self._add_factors(total, layer, projection, parts)
                continue
            row = torch.cat([p.reshape(1, -1) for p in parts.values()], 1)
            if layer.how == "whole":
                total[:, layer.first : layer.first + layer.width] += row
            else:
                sign, shift = projection.fold(row)
                add_folded(total, row, sign, shift)
        return total[0]

    @staticmethod
    def _add_factors(total: Tensor, layer: LayerColumns, projection: Projection, parts: dict[str, Tensor]) -> None:
        """The gradient matrix [O, I] as O positions: an output gradient that is a unit vector, and its row."""
        weight, *bias = sorted(parts.values(), key=lambda p: -p.dim())
        matrix = torch.cat([weight.flatten(1), *(b[:, None] for b in bias)], 1)
        eye = torch.eye(len(matrix), dtype=torch.float64)
        r_in, r_out, shift = projection.factors(matrix[None], eye[None])
        add_shifted(total, factor_sketch(matrix[None], eye[None], r_in, r_out, layer.groups), shift)


@may_be_sent
def _gram_sums(curvature: Curvature, dim: int, seed: int, what: str) -> list[Tensor]:
    return Sketched(curvature, dim, seed).gram_sums(what)

"""Jacobians of logits in the selected parameters, and Hessians of a batch's loss, as dense matrices.

A model that torch cannot batch over rows or over directions is taken one by one: the same numbers, slowly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.maths.forward_mode import FORWARD_MODE
from influence_cli.model.lean_imports import compiler_put_off
from influence_cli.model.losses import RowLoss
from influence_cli.model.named_tensors import as_argument
from influence_cli.model.parameters import named_views

Way = Literal["auto", "reverse", "forward"]

VECTORS = 32  # basis vectors taken through a model at once


class Jacobians:
    """Of the model of a point, whose d selected parameters are one vector, in the order of ``shapes``."""

    def __init__(
        self, point: Point, shapes: Mapping[str, torch.Size], recurrent: bool, classes: int, way: Way, loss: RowLoss
    ) -> None:
        """``way`` takes C backward passes a row (reverse) or d tangents of the batch; auto the cheaper that works."""
        self.point, self.shapes, self.recurrent, self.classes = point, shapes, recurrent, classes
        self.loss = loss
        self.theta = torch.cat([p.reshape(-1) for p in point.selected.values()])
        self.reverse = way == "reverse" or (way == "auto" and classes <= len(self.theta))
        self.must = way == "reverse"
        self._batched = True  # until an operator of the model turns out to have no batching rule

    def logits(self, x: Tensor, theta: Tensor | None = None) -> Tensor:
        """Z [b, C], at the point's parameters or others [d]."""
        with differentiable_kernels(self.recurrent):
            return self.point.logits(x, named_views(self.theta if theta is None else theta, self.shapes))

    def of_rows(self, x: Tensor) -> Tensor:
        """J [b, C, d]."""
        if self.reverse and self._batched:
            try:
                return self._by_rows(x)
            except (RuntimeError, NotImplementedError):
                if self.must:
                    raise
                self._batched = False
        along = functools.partial(self.logits, x)
        with FORWARD_MODE:
            columns = self._over(lambda v: jvp(along, (self.theta,), (v,))[1], self._basis())
        return columns.permute(1, 2, 0)

    def hessian(self, x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The Hessian [d, d] and the gradient [d] of the batch's loss, summed with weights."""

        def loss(theta: Tensor) -> Tensor:
            return (w * self.loss.rows(self.logits(x, theta), y)).sum()

        with compiler_put_off():
            gradient, pull = vjp(grad(loss), self.theta)[:2]
            return self._over(lambda v: pull(v)[0], self._basis()), gradient

    def _by_rows(self, x: Tensor) -> Tensor:
        def of_row(theta: Tensor, row: Tensor) -> Tensor:
            return functional_call(self.point.model, named_views(theta, self.shapes), (as_argument(row[None]),))[0]

        with torch.no_grad(), differentiable_kernels(self.recurrent), compiler_put_off():
            return vmap(jacrev(of_row), in_dims=(None, 0))(self.theta, x)

    def _basis(self) -> Iterator[Tensor]:
        """The rows of the identity [d, d], some at a time."""
        size = len(self.theta)
        for first in range(0, size, VECTORS):
            some = self.theta.new_zeros(min(VECTORS, size - first), size)
            some[:, first : first + len(some)].fill_diagonal_(1.0)
            yield some

    def _over(self, function: Callable[[Tensor], Tensor], chunks: Iterable[Tensor]) -> Tensor:
        """A function of every row of [k, d], a chunk at once; one by one where the model cannot be batched so."""
        out: list[Tensor] = []
        with differentiable_kernels(self.recurrent):
            for some in chunks:
                if self._batched:
                    try:
                        out.append(vmap(function)(some))
                        continue
                    except (RuntimeError, NotImplementedError):
                        self._batched = False
                out.append(torch.stack([function(v) for v in some]))
        return torch.cat(out)

"""A batch's logits as a function of the selected parameters, to first and second order around a point.

    J V     the logits' tangents [b, C] along k directions: one pass, by the engine that can (``engine``)
    J^T C   one forward pass that is kept, and a backward pass for each of k cotangents [b, C]
    H V     one forward and one backward pass that are kept, and a pass back through both for each of k directions

so that k columns never pay k times for what does not depend on them.  Where the logits are a linear layer's, W h + b,
all of it has a closed form: J u = U h + c, and J^T v = (v h^T, v).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from influence_cli.engines.engine import Directions, Engine
from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.model.losses import CROSS_ENTROPY, RowLoss
from influence_cli.model.parameters import pulled

TANGENT_VALUES = 1 << 26  # most values of the directions [k, d] that share a pass: 256 MiB in float32
TANGENTS = 32  # most directions that share a pass


class Graph:
    """The logits of a batch [b, C], to be differentiated backwards as often as is asked for."""

    def __init__(self, point: Point, x: Tensor) -> None:
        """One forward pass; what it keeps is let go with this object."""
        self.point = point
        self.selected = point.leaves()
        with torch.enable_grad(), differentiable_kernels(point.recurrent):
            self.logits = point.logits(x, self.selected)

    def pull(self, cotangents: Iterable[Tensor]) -> Iterator[dict[str, Tensor]]:
        """J^T c by parameter name for every c [b, C], one backward pass each."""
        for c in cotangents:
            yield self._back([self.logits], [c])

    def hessian(
        self, y: Tensor, w: Tensor, directions: Directions, loss: RowLoss = CROSS_ENTROPY
    ) -> Iterator[dict[str, Tensor]]:
        """By parameter name, sum_i w_i times the Hessian of row i's loss, times every direction."""
        with torch.enable_grad(), differentiable_kernels(self.point.recurrent):
            total = (w * loss.rows(self.logits, y)).sum()
            gradient = dict(zip(self.selected, self._gradient(total), strict=True))
        for u in directions:
            yield self._back(list(gradient.values()), [u[n] for n in gradient])

    def _gradient(self, loss: Tensor) -> tuple[Tensor, ...]:
        own = list(self.selected.values())
        if not loss.requires_grad:
            return tuple(torch.zeros_like(p) for p in own)
        return torch.autograd.grad(loss, own, create_graph=True, materialize_grads=True)

    def _back(self, outputs: list[Tensor], cotangents: list[Tensor]) -> dict[str, Tensor]:
        """The gradient of <outputs, cotangents>; zeros where nothing depends on a parameter."""
        with differentiable_kernels(self.point.recurrent):
            found = pulled(outputs, list(self.selected.values()), cotangents, keep=True)
        return dict(zip(self.selected, found, strict=True))


class Linearised:
    """Products of a point's Jacobians and Hessians, a batch at a time."""

    def __init__(self, point: Point, loss: RowLoss = CROSS_ENTROPY, linear: str | None = None) -> None:
        """The engine is picked on the first batch; none is needed where the point's model is the layer ``linear``."""
        self.point, self.engine, self.loss = point, Engine(point), loss
        self._layer = None
        if linear is not None and point.dtype != torch.bfloat16:  # whose sums the engine has in float32
            own = {**dict(point.model.named_parameters()), **point.selected}
            self._layer = f"{linear}.weight", f"{linear}.bias", own

    def closed(self, x: Tensor) -> bool:
        """Whether products with inputs ``x`` have a closed form."""
        return self._layer is not None and x.ndim == 2

    def push(self, x: Tensor, directions: Directions) -> tuple[Tensor, list[Tensor]]:
        """Logits [b, C], and J u [b, C] for every direction; as many as fit share a pass.

        Raises:
            ModelError: no engine can take these derivatives.
        """
        if self.closed(x):
            return self._push_by_layer(x, directions)
        size = sum(p.numel() for p in self.point.selected.values())
        most = max(1, min(TANGENTS, TANGENT_VALUES // max(1, size)))
        z, tangents = self.engine.outputs(x, directions[:most])
        for first in range(most, len(directions), most):
            tangents = [*tangents, *self.engine.outputs(x, directions[first : first + most])[1]]
        return z, tangents

    def ggn(
        self, x: Tensor, y: Tensor, w: Tensor, directions: Directions
    ) -> tuple[Tensor, Iterator[dict[str, Tensor]]]:
        """Logits [b, C], and by parameter name J^T W B J u for every direction, B the output curvature."""
        z, tangents = self.push(x, directions)
        at = self.loss.curvature(z, y)
        if self.closed(x):
            return z, self._pull_by_layer(x, [at.times(t, w) for t in tangents])
        return z, Graph(self.point, x).pull([at.times(t, w) for t in tangents])

    @torch.no_grad()
    def _push_by_layer(self, h: Tensor, directions: Directions) -> tuple[Tensor, list[Tensor]]:
        assert self._layer is not None
        weight, bias, own = self._layer
        z = F.linear(h, own[weight], own.get(bias))
        nothing = torch.zeros_like(own[weight])
        return z, [F.linear(h, u.get(weight, nothing), u.get(bias)) for u in directions]

    def _pull_by_layer(self, h: Tensor, cotangents: list[Tensor]) -> Iterator[dict[str, Tensor]]:
        assert self._layer is not None
        weight = self._layer[0]
        for v in cotangents:
            yield {name: v.T @ h if name == weight else v.sum(0) for name in self.point.selected}

"""The last layer tuned to its minimum on a half of the target rows, and what a training row's pull on it costs there.

With inputs a_i = [h_i; 1] of the layer, theta the optimum of mean cross-entropy over that half plus (l2/2) |theta|^2,
found from the model's own weights, H its Hessian there and g_i = (p_i - e_y) a_i^T the gradient of any other row:

    v_i = g_i^T H^-1 g_i

A row of weight epsilon moves the optimum by -epsilon H^-1 g_i, where the half's loss has no slope: it rises by
(epsilon^2 / 2) v_i.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.curvature.curvature import Curvature
from influence_cli.errors import ModelError, UsageError
from influence_cli.maths.hashed_draws import keyed_uniform
from influence_cli.maths.labels import softmax
from influence_cli.maths.softmax_regression import Regression, fit

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.engines.point import Point
    from influence_cli.model.losses import RowLoss
    from influence_cli.model.spec import ModelSpec

Floats = NDArray[np.float64]

LARGEST = 10_000  # parameters of the layer, whose matrix is dense
LEAST = 10  # rows that it is tuned on
SURE = 4 * LEAST  # target rows of which the half is as many but for one case in 3,000


def tuning_rows(target: Rows, seed: int) -> Rows:
    """The seeded half of the target rows, by their keys: others that come or go change nothing for a row."""
    return target.take(keyed_uniform(target.row_keys, seed, 0) < 0.5)


class TunedHead:
    """The tuned layer, and its Hessian."""

    def __init__(
        self, point: Point, spec: ModelSpec, target: Rows, loss: RowLoss, seed: int, l2: float, size: int
    ) -> None:
        """It is tuned now, on rows taken ``size`` at a time.

        Raises:
            UsageError: the loss is not cross-entropy, or target rows or memory are too few.
            ModelError: the model does not end in one linear layer on a vector a row.
        """
        if loss.name(2) != "cross-entropy":
            raise UsageError("head-vm tunes a layer by cross-entropy, and the task has another loss", fix="use ip")
        rows = tuning_rows(target, seed)
        if len(rows) < LEAST:
            found = f"{len(rows)} of {len(target)} rows"
            what = f"head-vm tunes a layer on half of the target rows: that is {found}, and at least {LEAST} are needed"
            raise UsageError(what, fix=f"give {SURE} target rows or more: each is in that half by chance")
        precision = "fp64" if point.dtype == torch.float64 else "fp32"
        self.curvature = Curvature(
            point.model, spec, rows, "last", device=point.device, batch_size=size, precision=precision, loss=loss
        )
        batches = [(h, y) for _, h, y, _ in self.curvature.head_batches("head-vm (target rows)")]
        head = self.curvature.found_head
        if head is None or type(head.module) is not torch.nn.Linear or batches[0][0].dim() != 2:
            raise ModelError("the model does not end in one linear layer, which head-vm tunes", fix="use self-lissa")
        self.head, self.bias = head, head.module.bias is not None
        weight = head.module.weight.detach()
        start = weight if not self.bias else torch.cat([weight, head.module.bias.detach()[:, None]], 1)
        if start.numel() > LARGEST:
            what = f"head-vm holds the Hessian of the last layer, of {start.numel():,} parameters (at most {LARGEST:,})"
            raise UsageError(what, fix="use self-lissa")
        a, y = self._inputs(torch.cat([h for h, _ in batches])), torch.cat([y for _, y in batches]).cpu().numpy()
        problem = Regression(a, y, np.ones(len(a)), spec.num_classes, l2)
        best = fit(problem, start.double().cpu().numpy())
        if not best.converged:
            what = f"the last layer cannot be tuned: a gradient of {best.gradient_norm:.3g} is left"
            raise ModelError(what, fix="raise --set head-vm.l2")
        self.theta = best.theta
        self.factor = np.linalg.cholesky(problem.hessian(problem.value(best.theta)[2]))

    def values(self, x: Tensor, y: Tensor) -> Tensor:
        """What is above, float64 [b], of rows with these inputs of the model and labels."""
        from scipy.linalg import solve_triangular

        a = self._inputs(self.head.inputs(x))
        residual = softmax(a @ self.theta.T)
        residual[np.arange(len(a)), y.cpu().numpy()] -= 1.0
        g = (residual[:, :, None] * a[:, None, :]).reshape(len(a), -1)
        return torch.from_numpy(np.square(solve_triangular(self.factor, g.T, lower=True)).sum(0))

    def _inputs(self, h: Tensor) -> Floats:
        """The layer's inputs, with a column of ones where it has a bias."""
        a = h.detach().double().cpu().numpy()
        return np.hstack([a, np.ones((len(a), 1))]) if self.bias else a

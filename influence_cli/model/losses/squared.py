"""Squared error and Huber's loss of a number y, where the model has one output z; r = z - y.

    squared    l = r^2 / 2,   dl/dz = r,   B = 1
    huber      the same where |r| <= delta; beyond l = delta (|r| - delta / 2),   dl/dz = +-delta,   B = 0

Huber 1964, Robust estimation of a location parameter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.label_kinds import NUMBERS
from influence_cli.maths.outputs_apart import Parts, huber, squared
from influence_cli.model.losses.protocol import Floats, Labels, OutputCurvature, Outputs, RowLoss, Uniform

if TYPE_CHECKING:
    from torch import Tensor


class DiagonalCurvature(OutputCurvature):
    """Outputs whose losses add up: B is a diagonal [b, C]."""

    def __init__(self, of: Tensor, residuals: Tensor, diagonal: Tensor) -> None:
        self.of, self._residuals, self.diagonal = of, residuals, diagonal

    def residuals(self) -> Tensor:
        """The gradients as they are given."""
        return self._residuals

    def times(self, t: Tensor, w: Tensor) -> Tensor:
        """The product w B t."""
        return w[:, None] * self.diagonal * t

    def form(self, t: Tensor) -> Tensor:
        """The sum of B_c t_c^2 over outputs."""
        return (self.diagonal * t * t).sum(dim=1)

    def entry(self, c: int, k: int) -> Tensor | None:
        """B_c on the diagonal, nothing beside it."""
        return self.diagonal[:, c] if c == k else None

    def rooted(self, jacobian: Tensor, w: Tensor) -> Tensor:
        """The rows sqrt(w B_c) J_c."""
        return jacobian * (self.diagonal.sqrt() * w.sqrt()[:, None])[:, :, None]

    def root(self) -> Tensor:
        """diag(sqrt B)."""
        import torch

        return torch.diag_embed(self.diagonal.sqrt())

    def drawn(self, uniform: Uniform) -> Tensor:
        """Sqrt(B) with random signs: of all draws with covariance B those whose squares vary least."""
        import torch

        signs = torch.stack([(uniform(c) < 0.5).to(self.of.dtype) * 2.0 - 1.0 for c in range(self.of.shape[1])], 1)
        return self.diagonal.sqrt() * signs


class SquaredError(RowLoss):
    """Half the squared error, whose optimum is the mean."""

    @property
    def holds(self) -> str:
        """A number a row."""
        return NUMBERS

    def name(self, outputs: int) -> str:
        """``squared``."""
        return "squared"

    def rows(self, z: Tensor, y: Tensor) -> Tensor:
        """Losses [n], differentiable."""
        r = z[:, 0] - y.to(z.dtype)
        return 0.5 * r * r

    def losses(self, z: Outputs, y: Labels) -> Floats:
        """Losses [n] of stored outputs, in float64."""
        return 0.5 * _errors(z, y) ** 2

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        """The error r, in float64 [n, 1]."""
        return z.double() - y.double()[:, None]

    def margins(self, z: Outputs, y: Labels) -> Floats:
        """Minus the size of the error [n]: the worst comes last."""
        return -np.abs(_errors(z, y))

    def says(self, z: Outputs, y: Labels) -> dict[str, NDArray[Any]]:
        """The prediction."""
        return {"prediction": z[:, 0].astype(np.float64)}

    def hits(self, z: Outputs, y: Labels) -> Floats | None:
        """None: no prediction is right or wrong."""
        return None

    def curvature(self, z: Tensor, y: Tensor) -> OutputCurvature:
        """B = 1."""
        import torch

        return DiagonalCurvature(z, z - y.to(z.dtype)[:, None], torch.ones_like(z))

    def apart(self) -> Parts | None:
        """Squared error, with its derivatives."""
        return squared

    def some_labels(self, values: Floats) -> Labels:
        """The first of each row's values [n]."""
        return values[:, 0].copy()

    def quality(self, z: Outputs, y: Labels) -> dict[str, float]:
        """Root of the mean squared error, mean absolute error, share of variance explained (R2), and mean loss.

        R2 is left out where all labels are equal.
        """
        r = _errors(z, y)
        around = float(((y - y.mean()) ** 2).mean())
        found = {"rmse": float(np.sqrt((r**2).mean())), "mae": float(np.abs(r).mean())}
        explained = {} if around == 0.0 else {"r2": 1.0 - float((r**2).mean()) / around}
        return {**found, **explained, "loss": float(self.losses(z, y).mean())}


class Huber(SquaredError):
    """Squared error near 0, absolute error beyond ``delta``, in the unit of the labels."""

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = delta

    def name(self, outputs: int) -> str:
        """``huber:DELTA``."""
        return f"huber:{self.delta!r}"

    def rows(self, z: Tensor, y: Tensor) -> Tensor:
        """Losses [n], differentiable."""
        import torch.nn.functional as F

        return F.huber_loss(z[:, 0], y.to(z.dtype), reduction="none", delta=self.delta)

    def losses(self, z: Outputs, y: Labels) -> Floats:
        """Losses [n] of stored outputs, in float64."""
        size = np.abs(_errors(z, y))
        return np.where(size <= self.delta, 0.5 * size**2, self.delta * (size - 0.5 * self.delta))

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        """The error cut at +-delta, in float64 [n, 1]."""
        return super().slopes(z, y).clamp(-self.delta, self.delta)

    def apart(self) -> Parts | None:
        """Huber's loss, with its derivatives."""
        return huber(self.delta)

    def curvature(self, z: Tensor, y: Tensor) -> OutputCurvature:
        """B = 1 where the error is at most delta, else 0."""
        r = z - y.to(z.dtype)[:, None]
        return DiagonalCurvature(z, r.clamp(-self.delta, self.delta), (r.abs() <= self.delta).to(z.dtype))


def _errors(z: Outputs, y: Labels) -> Floats:
    return z[:, 0].astype(np.float64) - y

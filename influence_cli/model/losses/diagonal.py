"""Outputs whose losses add up: the output curvature is a diagonal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from influence_cli.model.losses.protocol import OutputCurvature, Uniform

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

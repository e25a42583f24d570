"""Summed binary losses of several labels a row: l = sum_c softplus(-s_c z_c), s_c = +1 where label c is there, else -1.

With p = sigmoid(z), dl/dz = p - y and B = diag(p (1 - p)): the labels are independent, given the outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.label_kinds import SEVERAL
from influence_cli.maths.outputs_apart import Parts, logistic
from influence_cli.model.losses.protocol import (
    Floats,
    Labels,
    OutputCurvature,
    Outputs,
    RowLoss,
    Uniform,
    over_power_of_two,
)
from influence_cli.model.losses.squared import DiagonalCurvature

if TYPE_CHECKING:
    from torch import Tensor


class BernoulliCurvature(DiagonalCurvature):
    """B of independent labels."""

    def drawn(self, uniform: Uniform) -> Tensor:
        """The gradients p - y of labels y that are drawn from p, each by itself."""
        import torch

        p = self.of.sigmoid()
        draws = torch.stack([uniform(c) for c in range(p.shape[1])], 1)
        return p - (draws < p.double()).to(p.dtype)


class SummedBinary(RowLoss):
    """The sum over labels 0 or 1, int8 [n, C], of their binary cross-entropies."""

    @property
    def holds(self) -> str:
        """0 or 1 for each of several labels a row."""
        return SEVERAL

    def name(self, outputs: int) -> str:
        """``binary``."""
        return "binary"

    def rows(self, z: Tensor, y: Tensor) -> Tensor:
        """Losses [n], differentiable."""
        import torch.nn.functional as F

        return F.binary_cross_entropy_with_logits(z, y.to(z.dtype), reduction="none").sum(1)

    def losses(self, z: Outputs, y: Labels) -> Floats:
        """Losses [n] of stored logits, in float64."""
        return np.logaddexp(0.0, -_signed(z, y)).sum(axis=1)

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        """The gradient p - y, exact at any margin: p where y is 0, and -sigmoid(-z) where it is 1."""
        signs = 1.0 - 2.0 * y.double()
        return signs * (signs * z.double()).sigmoid()

    def slopes_over_size(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The same over a size of each row; where every label is certain beyond float64, by their logarithms."""
        import torch
        import torch.nn.functional as F

        a = self.slopes(z, y)
        certain = a.abs().amax(1) < torch.finfo(torch.float64).tiny
        a, size = over_power_of_two(a)
        if bool(certain.any()):
            signs = 1.0 - 2.0 * y[certain].double()
            logs = F.logsigmoid(signs * z[certain].double())
            top = logs.amax(1)
            a[certain], size[certain] = signs * (logs - top[:, None]).exp(), top.exp()
        return a, size

    def margins(self, z: Outputs, y: Labels) -> Floats:
        """The least signed logit of any label [n]: below 0 where one is predicted otherwise."""
        return _signed(z, y).min(axis=1)

    def says(self, z: Outputs, y: Labels) -> dict[str, NDArray[Any]]:
        """The label of the least signed logit, and the probability of what the row says of it."""
        m = _signed(z, y)
        worst = m.argmin(axis=1)
        least = np.take_along_axis(m, worst[:, None], axis=1)[:, 0]
        known = np.isfinite(least)
        probability = np.where(known, np.exp(-np.logaddexp(0.0, -least)), np.nan)
        return {"doubted_label": np.where(known, worst, -1).astype(np.int64), "doubted_probability": probability}

    def hits(self, z: Outputs, y: Labels) -> Floats:
        """The share of its labels that are predicted [n]."""
        return ((z > 0) == (y > 0)).mean(axis=1)

    def curvature(self, z: Tensor, y: Tensor) -> OutputCurvature:
        """B = diag(p (1 - p))."""
        p = z.sigmoid()
        return BernoulliCurvature(z, p - y.to(z.dtype), p * (-z).sigmoid())

    def apart(self) -> Parts | None:
        """Binary cross-entropy, with its derivatives."""
        return logistic

    def some_labels(self, values: Floats) -> Labels:
        """1 where a value is above 0 [n, C]."""
        return (values > 0).astype(np.int8)

    def quality(self, z: Outputs, y: Labels) -> dict[str, float]:
        """Accuracy (of all labels of all rows), F1 (micro and macro), exact match (rows with every label), mean loss.

        A label that neither rows nor predictions have is left out of the mean of macro F1.
        """
        said, true = z > 0, y > 0
        both, either = (said & true).sum(axis=0), said.sum(axis=0) + true.sum(axis=0)
        used = either > 0
        micro = 2.0 * float(both.sum()) / max(1.0, float(either.sum()))
        macro = float((2.0 * both[used] / either[used]).mean()) if used.any() else 0.0
        exact = float((said == true).all(axis=1).mean())
        found = {"accuracy": float((said == true).mean()), "micro_f1": micro, "macro_f1": macro, "exact_match": exact}
        return {**found, "loss": float(self.losses(z, y).mean())}


def _signed(z: Outputs, y: Labels) -> Floats:
    """s_c z_c [n, C]."""
    return np.where(y > 0, 1.0, -1.0) * z.astype(np.float64)

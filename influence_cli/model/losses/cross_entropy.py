"""Cross-entropy of hard labels, exact at any margin: l = logsumexp(z) - z_y, B = diag(p) - p p^T, p = softmax(z)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.labels import cross_entropy, label_scores, margin, of_label
from influence_cli.model.losses.protocol import (
    Floats,
    Labels,
    OutputCurvature,
    Outputs,
    RowLoss,
    Uniform,
    over_power_of_two,
)

if TYPE_CHECKING:
    from torch import Tensor


class SoftmaxCurvature(OutputCurvature):
    """B of probabilities p [b, C], and labels y [b]."""

    def __init__(self, p: Tensor, y: Tensor) -> None:
        self.of, self.y = p, y

    def residuals(self) -> Tensor:
        """The gradients p - e_y."""
        return self._against(self.y)

    def _against(self, y: Tensor) -> Tensor:
        import torch.nn.functional as F

        return self.of - F.one_hot(y, self.of.shape[1])

    def times(self, t: Tensor, w: Tensor) -> Tensor:
        """The product w p (t - p . t), row by row."""
        return w[:, None] * self.of * (t - (self.of * t).sum(dim=1, keepdim=True))

    def form(self, t: Tensor) -> Tensor:
        """The variance of t under p."""
        centred = t - (self.of * t).sum(dim=1, keepdim=True)
        return (self.of * centred * centred).sum(dim=1)

    def entry(self, c: int, k: int) -> Tensor | None:
        """-p_c p_k, and p_c more on the diagonal."""
        of_rows = -self.of[:, c] * self.of[:, k]
        return of_rows + self.of[:, c] if c == k else of_rows

    def rooted(self, jacobian: Tensor, w: Tensor) -> Tensor:
        """K_c = sqrt(w p_c) (J_c - sum_k p_k J_k)."""
        import torch

        mean = torch.einsum("bc,bcd->bd", self.of, jacobian)
        return (jacobian - mean[:, None]) * (self.of.sqrt() * w.sqrt()[:, None])[:, :, None]

    def root(self) -> Tensor:
        """diag(sqrt p) - p sqrt(p)^T."""
        from influence_cli.maths.kronecker import output_root

        return output_root(self.of)

    def drawn(self, uniform: Uniform) -> Tensor:
        """The same of labels y that are drawn from p."""
        from influence_cli.maths.kronecker import label_at

        return self._against(label_at(self.of, uniform(0)))


class CrossEntropy(RowLoss):
    """Cross-entropy with hard labels, int64 [n]."""

    def name(self, outputs: int) -> str:
        """``cross-entropy``, whatever the number of classes."""
        return "cross-entropy"

    def rows(self, z: Tensor, y: Tensor) -> Tensor:
        """Losses [n], differentiable."""
        import torch.nn.functional as F

        return F.cross_entropy(z, y, reduction="none")

    def losses(self, z: Outputs, y: Labels) -> Floats:
        """Losses [n] of stored logits, in float64."""
        return cross_entropy(z, y)

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        """The gradient p - e_y, exact at any margin: its own label's entry is minus the sum of the others.

        As p_y - 1 in float32 it would be 0 for a row that is predicted with confidence.
        """
        p = z.double().softmax(1).scatter(1, y[:, None], 0.0)
        return p.scatter(1, y[:, None], -p.sum(1, keepdim=True))

    def slopes_over_size(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The same over a size of each row.

        Where the other classes' probabilities are below float64 too, the size is their sum, which may then be 0.
        """
        import torch

        a = self.slopes(z, y)
        certain = (a.abs().amax(1) < torch.finfo(torch.float64).tiny) & (z.shape[1] > 1)
        a, size = over_power_of_two(a)
        if bool(certain.any()):
            few = z[certain].double()
            others = few.scatter(1, y[certain][:, None], -torch.inf)
            a[certain] = others.softmax(1).scatter(1, y[certain][:, None], -1.0)
            size[certain] = (others.logsumexp(1) - few.logsumexp(1)).exp()
        return a, size

    def scores(self, z: Outputs, t: Outputs, y: Labels) -> tuple[Floats, Floats | None]:
        """Scores with the rows' own labels [n] and with each label [n, C] (``maths.labels.label_scores``)."""
        every = label_scores(z, t)
        return of_label(every, y), every

    def margins(self, z: Outputs, y: Labels) -> Floats:
        """The labelled class's logit minus the best other one [n]."""
        return margin(z, y)

    def hits(self, z: Outputs, y: Labels) -> Floats | None:
        """1 where the label's logit is the highest [n]."""
        return (z.argmax(axis=1) == y).astype(np.float64)

    def curvature(self, z: Tensor, y: Tensor) -> OutputCurvature:
        """B = diag(p) - p p^T."""
        return SoftmaxCurvature(z.softmax(dim=1), y)

    def quality(self, z: Outputs, y: Labels) -> dict[str, float]:
        """Accuracy, balanced accuracy (mean recall of the classes present) and mean loss."""
        return of_classes(self, z, y)


def of_classes(loss: RowLoss, z: Outputs, y: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, balanced accuracy (mean recall of the classes present) and mean loss."""
    hit = z.argmax(axis=1) == y
    balanced = float(np.mean([float(hit[y == c].mean()) for c in np.unique(y)]))
    return {"accuracy": float(hit.mean()), "balanced_accuracy": balanced, "loss": float(loss.losses(z, y).mean())}

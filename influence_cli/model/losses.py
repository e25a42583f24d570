"""The loss of a row: cross-entropy, exact at any margin, or a loss of the user's own through a Task.

Both are functions of a row's logits and label, so scores with every label are arithmetic on stored logits and tangents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.kinds.own_input import errors_of_own_code
from influence_cli.errors import ModelError
from influence_cli.maths.labels import Floats, cross_entropy, label_scores
from influence_cli.store.keys import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.model.task import Task

Loss = Callable[[Any, Any], Any]  # logits [n, C] and labels [n] to losses [n], in torch


class CrossEntropy:
    """Cross-entropy with hard labels."""

    def name(self, classes: int) -> str:
        """What goes into a fingerprint."""
        return "cross-entropy"

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Losses [n], differentiable."""
        import torch.nn.functional as F

        return F.cross_entropy(logits, labels, reduction="none")

    def losses(self, logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Floats:
        """Losses [n] of stored logits, in float64."""
        return cross_entropy(logits, labels)

    def label_scores(self, logits: NDArray[np.floating], tangents: NDArray[np.floating]) -> Floats:
        """The score with each label [n, C], s(c) = < d l(z, c) / dz, t >, in float64."""
        return label_scores(logits, tangents)


class OwnLoss:
    """A loss of the user's own, in the dtype of the logits."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def name(self, classes: int) -> str:
        """Its name by what it does (see ``loss_name``)."""
        return loss_name(self.loss, classes)

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Losses [n], differentiable.  Raises ModelError: it fails, or does not give one value a row."""
        failed = f"the task's loss failed on logits {tuple(logits.shape)}"
        fix = "repair the loss: it takes logits [n, C] and labels [n]"
        with errors_of_own_code(lambda why: ModelError(f"{failed} ({why})", fix=fix)):
            values = self.loss(logits, labels)
        if tuple(values.shape) != (len(labels),):
            what = f"the task's loss is of shape {tuple(values.shape)}, not one value for each of {len(labels)} rows"
            raise ModelError(what, fix='give a loss without reduction, such as cross_entropy(..., reduction="none")')
        return values

    def losses(self, logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Floats:
        """Losses [n] of stored logits."""
        import torch

        with torch.no_grad():
            return self.rows(torch.from_numpy(logits), torch.from_numpy(labels)).double().numpy()

    def label_scores(self, logits: NDArray[np.floating], tangents: NDArray[np.floating]) -> Floats:
        """The score with each label [n, C], one backward pass through the loss for each."""
        import torch

        t = torch.from_numpy(tangents)
        out = np.empty(logits.shape)
        for c in range(logits.shape[1]):
            z = torch.from_numpy(logits.copy()).requires_grad_()
            with torch.enable_grad():
                total = self.rows(z, torch.full((len(logits),), c, dtype=torch.int64)).sum()
                (slope,) = torch.autograd.grad(total, z)
            out[:, c] = (slope.double() * t.double()).sum(1).numpy()
        return out


RowLoss = CrossEntropy | OwnLoss  # a loss as the stages need it
CROSS_ENTROPY = CrossEntropy()


def quality(logits: NDArray[np.floating], labels: NDArray[np.int64], loss: RowLoss = CROSS_ENTROPY) -> dict[str, float]:
    """Accuracy, balanced accuracy (mean recall of the classes present) and mean loss."""
    hit = logits.argmax(axis=1) == labels
    balanced = float(np.mean([float(hit[labels == c].mean()) for c in np.unique(labels)]))
    mean_loss = float(loss.losses(logits, labels).mean())
    return {"accuracy": float(hit.mean()), "balanced_accuracy": balanced, "loss": mean_loss}


def loss_of(task: Task | None) -> RowLoss:
    """The loss of a run."""
    return CROSS_ENTROPY if task is None or task.loss is None else OwnLoss(task.loss)


def loss_name(loss: Loss, classes: int) -> str:
    """Name of a loss by what it does: its values and slopes on fixed logits with every label, to five digits.

    Raises:
        ModelError: it does not give one value a row.
    """
    rng = np.random.default_rng(20_240_517)
    logits = (rng.normal(size=(6, classes)) * 3.0).astype(np.float32)
    labels = np.tile(np.arange(classes), 6)
    own = OwnLoss(loss)
    values = own.losses(np.repeat(logits, classes, axis=0), labels)
    slopes = own.label_scores(logits, rng.normal(size=logits.shape).astype(np.float32))
    rounded = [f"{v:.5g}" for v in (*values.tolist(), *slopes.ravel().tolist())]
    return fingerprint("loss", 1, values=rounded)

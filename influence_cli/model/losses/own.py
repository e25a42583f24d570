"""A loss of the user's own, in the dtype of the logits: what it is good for follows from calling it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from influence_cli.data.kinds.own_input import errors_of_own_code
from influence_cli.errors import ModelError
from influence_cli.maths.labels import of_label
from influence_cli.model.losses.cross_entropy import of_classes
from influence_cli.model.losses.protocol import Floats, Labels, Outputs, RowLoss
from influence_cli.store.keys import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[[Any, Any], Any]  # logits [n, C] and labels [n] to losses [n], in torch


class OwnLoss(RowLoss):
    """A loss that a Task gives; its labels are classes."""

    by_class: ClassVar[bool] = True
    curved: ClassVar[bool] = False

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def name(self, outputs: int) -> str:
        """Its name by what it does (see ``loss_name``)."""
        return loss_name(self.loss, outputs)

    def rows(self, z: Tensor, y: Tensor) -> Tensor:
        """Losses [n], differentiable.  Raises ModelError: it fails, or does not give one value a row."""
        failed = f"the task's loss failed on logits {tuple(z.shape)}"
        fix = "repair the loss: it takes logits [n, C] and labels [n]"
        with errors_of_own_code(lambda why: ModelError(f"{failed} ({why})", fix=fix)):
            values = self.loss(z, y)
        if tuple(values.shape) != (len(y),):
            what = f"the task's loss is of shape {tuple(values.shape)}, not one value for each of {len(y)} rows"
            raise ModelError(what, fix='give a loss without reduction, such as cross_entropy(..., reduction="none")')
        return values

    def losses(self, z: Outputs, y: Labels) -> Floats:
        """Losses [n] of stored logits."""
        import torch

        with torch.no_grad():
            return self.rows(torch.from_numpy(z), torch.from_numpy(y)).double().numpy()

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        """One backward pass through the loss, in the dtype of the logits."""
        import torch

        leaf = z.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.rows(leaf, y).sum(), leaf)[0].double()

    def label_scores(self, z: Outputs, t: Outputs) -> Floats:
        """The score with each label [n, C], one backward pass through the loss for each."""
        import torch

        tangents = torch.from_numpy(t)
        out = np.empty(z.shape)
        for c in range(z.shape[1]):
            slope = self.slopes(torch.from_numpy(z.copy()), torch.full((len(z),), c, dtype=torch.int64))
            out[:, c] = (slope * tangents.double()).sum(1).numpy()
        return out

    def scores(self, z: Outputs, t: Outputs, y: Labels) -> tuple[Floats, Floats | None]:
        """Scores with the rows' own labels [n] and with each label [n, C]."""
        every = self.label_scores(z, t)
        return of_label(every, y), every

    def quality(self, z: Outputs, y: Labels) -> dict[str, float]:
        """Accuracy, balanced accuracy (mean recall of the classes present) and mean loss."""
        return of_classes(self, z, y)


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

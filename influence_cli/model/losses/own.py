"""A loss of the user's own, in the dtype of the logits: what it is good for follows from calling it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.kinds.own_input import errors_of_own_code
from influence_cli.errors import ModelError
from influence_cli.maths.labels import of_label
from influence_cli.model.losses.cross_entropy import CrossEntropy
from influence_cli.model.losses.protocol import Floats, Labels, Outputs, RowLoss
from influence_cli.store.keys import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[[Any, Any], Any]  # logits [n, C] and labels [n] to losses [n], in torch


class OwnLoss(RowLoss):
    """A loss that a Task gives, of labels as the task of the rows says."""

    curved: ClassVar[bool] = False

    def __init__(self, loss: Loss, like: RowLoss | None = None) -> None:
        """``like`` is the usual loss of such labels, whose measures are taken beside this one's values."""
        self.loss, self.like = loss, like or CrossEntropy()

    @property
    def holds(self) -> str:
        """What its labels are."""
        return self.like.holds

    def name(self, outputs: int) -> str:
        """Its name by what it does (see ``loss_name``)."""
        return loss_name(self.loss, outputs, self.like)

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
        """Scores with the rows' own labels [n], and with each label [n, C] where these are classes."""
        if not self.by_class:
            return super().scores(z, t, y)
        every = self.label_scores(z, t)
        return of_label(every, y), every

    def margins(self, z: Outputs, y: Labels) -> Floats:
        """Those of the usual loss of such labels [n]."""
        return self.like.margins(z, y)

    def says(self, z: Outputs, y: Labels) -> dict[str, NDArray[Any]]:
        """What the model says, whatever the loss."""
        return self.like.says(z, y)

    def hits(self, z: Outputs, y: Labels) -> Floats | None:
        """Those of the usual loss of such labels [n]."""
        return self.like.hits(z, y)

    def quality(self, z: Outputs, y: Labels) -> dict[str, float]:
        """The measures of the usual loss of such labels, with the mean of this one."""
        return {**self.like.quality(z, y), "loss": float(self.losses(z, y).mean())}


def loss_name(loss: Loss, outputs: int, like: RowLoss | None = None) -> str:
    """Name of a loss by what it does: its values and slopes on fixed outputs with fixed labels, to five digits.

    Raises:
        ModelError: it does not give one value a row.
    """
    own = OwnLoss(loss, like)
    rng = np.random.default_rng(20_240_517)
    z = (rng.normal(size=(6, outputs)) * 3.0).astype(np.float32)
    if own.by_class:
        values = own.losses(np.repeat(z, outputs, axis=0), np.tile(np.arange(outputs), 6))
        slopes = own.label_scores(z, rng.normal(size=z.shape).astype(np.float32))
    else:
        import torch

        y = own.like.some_labels(rng.normal(size=z.shape))
        values, slopes = own.losses(z, y), own.slopes(torch.from_numpy(z), torch.from_numpy(y)).numpy()
    rounded = [f"{v:.5g}" for v in (*values.tolist(), *slopes.ravel().tolist())]
    return fingerprint("loss", 1, values=rounded)

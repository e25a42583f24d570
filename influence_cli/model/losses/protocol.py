"""What the loss of a row is: l(z, y) of the model's outputs z [n, C] and the label y, and all that follows from it.

Nothing else asks which loss a run has.  A loss whose labels are classes has the score with every label too; one that
bends (``curved``) has an output curvature B, from which the Gauss-Newton matrix J^T B J and the Fisher are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.label_kinds import CLASSES
from influence_cli.maths.outputs_apart import Parts

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]
Outputs = NDArray[np.floating]  # [n, C]
Labels = NDArray[Any]  # int64 classes [n], or numbers of another kind: those that the loss takes
Uniform = Callable[[int], "Tensor"]  # the k-th of independent uniform draws in [0, 1) for every row of a batch [b]


class OutputCurvature:
    """Derivatives of rows' losses in their outputs: the gradients [b, C], and the positive Hessian B [b, C, C]."""

    of: Tensor  # [b, C]: what B is made of; not finite where the row cannot be used

    def residuals(self) -> Tensor:
        """The gradients [b, C] of the losses in the outputs, in the dtype of the outputs."""
        raise NotImplementedError

    def times(self, t: Tensor, w: Tensor) -> Tensor:
        """w_i B_i t_i [b, C] for weights [b]."""
        raise NotImplementedError

    def form(self, t: Tensor) -> Tensor:
        """t_i^T B_i t_i [b]."""
        raise NotImplementedError

    def entry(self, c: int, k: int) -> Tensor | None:
        """B_i[c, k] [b] for c <= k; None where it is 0 of every row."""
        raise NotImplementedError

    def rooted(self, jacobian: Tensor, w: Tensor) -> Tensor:
        """Rows K [b, C, d] with sum_c K_ic K_ic^T = w_i J_i^T B_i J_i, for Jacobians J [b, C, d]."""
        raise NotImplementedError

    def root(self) -> Tensor:
        """R [b, C, C] with R R^T = B."""
        raise NotImplementedError

    def drawn(self, uniform: Uniform) -> Tensor:
        """Random gradients [b, C] of mean 0 and covariance B, as of labels that are drawn from what the model gives."""
        raise NotImplementedError


class RowLoss:
    """One loss; what it does unless it says otherwise."""

    curved: ClassVar[bool] = True  # whether it has an output curvature
    draws: ClassVar[bool] = False  # whether the model itself can be made to give labels, though B is not known
    likelihood: ClassVar[bool] = False  # whether it is minus the log of the label's probability
    has_margins: ClassVar[bool] = True  # whether a row can be said to be near to another prediction

    def name(self, outputs: int) -> str:
        """What goes into a fingerprint, for a model with so many outputs."""
        raise NotImplementedError

    @property
    def holds(self) -> str:
        """What its labels are: classes, numbers, several or nothing (see ``data.label_kinds``)."""
        return CLASSES

    @property
    def by_class(self) -> bool:
        """Whether labels are classes, so that a row has a score with each of them."""
        return self.holds == CLASSES

    def rows(self, z: Tensor, y: Tensor) -> Tensor:
        """Losses [n], differentiable."""
        raise NotImplementedError

    def losses(self, z: Outputs, y: Labels) -> Floats:
        """Losses [n] of stored outputs, in float64."""
        raise NotImplementedError

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        """The gradient of each row's loss in its outputs, float64 [n, C], to the last digits wherever it can be."""
        raise NotImplementedError

    def slopes_over_size(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """``slopes`` over a size of each row, float64 [n, C], and these sizes [n]: powers of two round nothing."""
        return over_power_of_two(self.slopes(z, y))

    def scores(self, z: Outputs, t: Outputs, y: Labels) -> tuple[Floats, Floats | None]:
        """Scores < dl/dz, t > of tangents t [n, C] with the rows' own labels [n], and with each label [n, C].

        The second is None where labels are no classes.
        """
        import torch

        a = self.slopes(torch.from_numpy(np.asarray(z)), torch.from_numpy(np.asarray(y)))
        return (a.numpy() * t.astype(np.float64)).sum(axis=1), None

    def margins(self, z: Outputs, y: Labels) -> Floats:
        """How far each row is from being predicted otherwise [n]: the higher the safer, in float64."""
        raise NotImplementedError

    def says(self, z: Outputs, y: Labels) -> dict[str, NDArray[Any]]:
        """What the model says of each row, by column of a score table, where labels are no classes."""
        return {}

    def hits(self, z: Outputs, y: Labels) -> Floats | None:
        """How much of each label is predicted [n], between 0 and 1; None where no prediction is right or wrong."""
        raise NotImplementedError

    def curvature(self, z: Tensor, y: Tensor) -> OutputCurvature:
        """The output curvature of rows with outputs z [b, C]; asked for only where it is ``curved``."""
        raise NotImplementedError

    def apart(self) -> Parts | None:
        """The loss of one output where a row's is their sum, for fits of linear models; None where it is none."""
        return None

    def some_labels(self, values: Floats) -> Labels:
        """Labels [n] such as it takes, from any values [n, C]: a loss of the user's own is known by its values."""
        raise NotImplementedError

    def quality(self, z: Outputs, y: Labels) -> dict[str, float]:
        """What a model with these outputs is worth, by the name of the measure; ``loss`` is the mean loss."""
        raise NotImplementedError


def over_power_of_two(a: Tensor) -> tuple[Tensor, Tensor]:
    """Values [n, C] over a power of two of each row that is as large as they are, and that power [n].

    >>> import torch
    >>> over_power_of_two(torch.tensor([[3.0, -5.0]], dtype=torch.float64))
    (tensor([[ 0.3750, -0.6250]], dtype=torch.float64), tensor([8.], dtype=torch.float64))
    """
    import torch

    largest = a.abs().amax(1)
    usual = torch.isfinite(largest) & (largest > 0)
    exponent = torch.where(usual, torch.frexp(largest).exponent, 0)
    size = torch.pow(torch.tensor(2.0, dtype=torch.float64, device=a.device), exponent.double())
    return a / size[:, None], size

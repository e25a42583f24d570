"""A training on part of the train rows, and what is measured after it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Refit:
    """A training: which train rows it has [n], with which seed.

    The loss is a mean over the rows it has; with ``fixed_divisor`` their sum is divided by the weight of all rows in
    use, as if the others had weight 0 (``loo`` in methods of influence; the mean is ``renorm_loo``).
    """

    kept: NDArray[np.bool_]
    seed: int
    fixed_divisor: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """Loss and margin of every target row [m] and test row [t] after a training."""

    target_loss: Floats
    target_margin: Floats
    test_loss: Floats
    test_margin: Floats

    @property
    def phi(self) -> float:
        """The objective: the mean target loss."""
        return float(self.target_loss.mean())

    def metrics(self) -> dict[str, float]:
        """Mean loss and accuracy of target rows, and of test rows where there are any."""
        found = {"target_loss": self.phi, "target_accuracy": float((self.target_margin > 0).mean())}
        if len(self.test_loss):
            found["test_loss"] = float(self.test_loss.mean())
            found["test_accuracy"] = float((self.test_margin > 0).mean())
        return found

"""Utility: the mean cross-entropy of the target rows.

Phi(theta) = (1/m) sum_v l_v(theta),   l_v = logsumexp(z_v) - z_v[y_v]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Utility:
    """Plain cross-entropy: dropout, label smoothing and augmentation belong to training."""

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Each target row's term [m] of the mean Phi, from logits [m, C] and labels [m]."""
        import torch.nn.functional as F

        return F.cross_entropy(logits, labels, reduction="none")

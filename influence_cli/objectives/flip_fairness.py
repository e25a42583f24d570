"""Fairness by changed texts: how far predictions move when words that name a group are swapped (Qian et al. 2022).

Phi(theta) = (1/m) sum_v D(p_v, p'_v),  p_v and p'_v the model's probabilities of a text and of its changed twin

with D the Jensen-Shannon divergence (``js``) or the squared distance (``l2``); both are 0 where nothing changes, and
the gradient flows through both branches (methods.md 3.4).  What is counted for people is how often the prediction
flips: of all rows, and of those whose text changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from influence_cli.objectives.protocol import Need
from influence_cli.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

SURROGATES = ("js", "l2")


@dataclass(frozen=True)
class FlipFairness:
    """The mean divergence between what the model says of a text and of its changed twin."""

    needs: ClassVar[frozenset[Need]] = frozenset({"rows", "pairs"})

    column: str | None = setting(None, "column with changed texts; without one words for men and women are swapped")
    surrogate: str = setting("js", "js (Jensen-Shannon divergence, in nats) or l2 (squared distance)")

    def __post_init__(self) -> None:
        if self.surrogate not in SURROGATES:
            raise ValueError(f"surrogate {self.surrogate!r} is unknown: one of {', '.join(SURROGATES)}")

    def pairs(self, logits: Tensor, changed: Tensor) -> Tensor:
        """Each target row's term [m] of the mean Phi, from its logits and those of its changed twin [m, C]."""
        import torch

        a, b = logits.log_softmax(1), changed.log_softmax(1)
        if self.surrogate == "l2":
            return (a.exp() - b.exp()).square().sum(1)
        middle = torch.logaddexp(a, b) - math.log(2.0)
        return 0.5 * (a.exp() * (a - middle) + b.exp() * (b - middle)).sum(1)

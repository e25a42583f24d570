"""Further training as data: which copy of a model a member is that training went on to from a checkpoint.

Member k starts where member k - 1 ended; each is reached by stochastic gradient descent on the fit rows, whose rate
falls along half a cosine.  How it is done is in ``stages.grads.walked``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Walk:
    """The way to one member: so many epochs from the member before it, or from the checkpoint."""

    seed: int
    member: int  # from 0
    epochs: float
    rate: float  # the highest
    momentum: float
    batch: int  # rows of a step, at most all
    l2: float
    params: str

    @property
    def before(self) -> Walk | None:
        """The way to the member that this one starts from; None: the checkpoint itself."""
        return replace(self, member=self.member - 1) if self.member else None

    def steps(self, rows: int) -> int:
        """Steps from the member before it, for so many fit rows."""
        return max(1, math.ceil(self.epochs * rows / min(self.batch, rows)))

    def rate_at(self, step: int, steps: int) -> float:
        """The rate of a step, from the highest to nearly 0.

        >>> walk = Walk(0, 0, 2.0, 0.1, 0.9, 32, 0.0, "all")
        >>> [round(walk.rate_at(step, 4), 3) for step in range(4)], walk.steps(100)
        ([0.1, 0.085, 0.05, 0.015], 7)
        """
        return self.rate * 0.5 * (1.0 + math.cos(math.pi * step / steps))

    def describe(self) -> dict[str, Any]:
        """Plain values for a fingerprint."""
        return asdict(self)

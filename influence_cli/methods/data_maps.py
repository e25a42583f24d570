"""Data maps: the mean and spread over epochs of the probability of a row's label; ranking only.

confidence    s_i =   (1/E) sum_e p_e,   p_e = softmax(z_i)[y] in the training pass of epoch e
variability   s_i = - sqrt( (1/E) sum_e (p_e - mean p)^2 )

Swayamdipta, Schwartz, Lourie, Wang, Hajishirzi, Smith and Choi (arXiv:2009.10795), section 2.  Low confidence with low
variability is where wrong labels are; high variability is of rows that are ambiguous, and few of those are wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from influence_cli.maths.epochs import mean_and_spread
from influence_cli.methods.protocol import Floats
from influence_cli.methods.shapes.by_epochs import ByEpochs
from influence_cli.settings import setting

BY = ("confidence", "variability")


@dataclass(frozen=True)
class DataMaps(ByEpochs):
    """Rows of low confidence, or by choice of high variability, come last."""

    name: ClassVar[str] = "data-maps"
    value: ClassVar[str] = "probability"
    by: str = setting("confidence", "what ranks: confidence, or variability")

    def __post_init__(self) -> None:
        if self.by not in BY:
            raise ValueError(f"by {self.by!r} is unknown; use one of {', '.join(BY)}")

    def of_epochs(self, epochs: Iterator[Floats]) -> Floats:
        """Confidence, or minus variability, of each row [m]."""
        mean, spread = mean_and_spread(epochs)
        return mean if self.by == "confidence" else -spread

"""AUM, the area under the margin: a row's mean margin over the epochs of training; ranking only.

s_i = (1/E) sum_e ( z_i[y] - max_{c != y} z_i[c] ),   z_i the logits in the training pass of epoch e

Pleiss, Zhang, Elenberg and Weinberger (arXiv:2001.10528), Eq. 1.  A wrong label pulls against the rows of the class
that the row belongs to, so its margin stays low for as long as the model has not memorised it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from influence_cli.maths.epochs import mean_over_epochs
from influence_cli.methods.protocol import Floats
from influence_cli.methods.shapes.by_epochs import ByEpochs


@dataclass(frozen=True)
class AUM(ByEpochs):
    """Suspicious rows, whose margin was low through training, come last."""

    name: ClassVar[str] = "aum"

    def of_epochs(self, epochs: Iterator[Floats]) -> Floats:
        """The mean margin of each row [m]."""
        return mean_over_epochs(epochs)

"""EL2N: minus the mean length of a row's error early in training; ranking only.

s_i = - (1/E) sum_{e <= E} | softmax(z_i) - e_y |_2,   z_i the logits in the training pass of epoch e

Paul, Ganguli and Dziugaite (arXiv:2107.07075), Definition 2.3, who average over several models at one early epoch; here
it is the first epochs of one model.  High errors are of rows that are hard, among them those with a wrong label.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from influence_cli.maths.epochs import mean_over_epochs
from influence_cli.methods.protocol import Floats
from influence_cli.methods.shapes.by_epochs import ByEpochs
from influence_cli.settings import setting


@dataclass(frozen=True)
class EL2N(ByEpochs):
    """Suspicious rows, whose error was large early on, come last."""

    name: ClassVar[str] = "el2n"
    value: ClassVar[str] = "error"
    first: int = setting(10, "epochs that count, from the first on; fewer where training had fewer")

    def __post_init__(self) -> None:
        if self.first < 1:
            raise ValueError(f"first {self.first} is no number of epochs; use 1 or more")

    def of_epochs(self, epochs: Iterator[Floats]) -> Floats:
        """Minus the mean error of each row [m]."""
        return -mean_over_epochs(itertools.islice(epochs, self.first))

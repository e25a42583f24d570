"""Forgetting: how often a row went from right to wrong between epochs; ranking only.

s_i = - #{ e : margin_i(e) > 0 and margin_i(e+1) <= 0 },   and -E - 1 of a row that was never right in E epochs

Toneva, Sordoni, Tachet des Combes, Trischler, Bengio and Gordon (arXiv:1812.05159), who rank rows that were never
learned above all that were forgotten.  Counts have many ties, which detection treats as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from influence_cli.maths.epochs import times_forgotten
from influence_cli.methods.protocol import Floats
from influence_cli.methods.shapes.by_epochs import ByEpochs


@dataclass(frozen=True)
class Forget(ByEpochs):
    """Suspicious rows, never learned or often forgotten, come last."""

    name: ClassVar[str] = "forget"

    def of_epochs(self, epochs: Iterator[Floats]) -> Floats:
        """Minus the count of each row [m]."""
        times, learned, seen = times_forgotten(epochs)
        return -np.where(learned, times, times + seen + 1.0)

"""Outlier: minus the mean distance from a row to its k nearest rows, by penultimate features.

    s_i = - (1/k) sum_{j in N(i)} d_ij

N(i) are the k nearest other train rows, or with ``among=target`` the k nearest target rows.  No label is looked at.
Angiulli and Pizzuti 2002; Sun, Ming, Zhu and Li (arXiv:2204.06507) take the features of a trained network, and the k-th
distance alone.  Ranking only: rows unlike all others come last, which need not be wrong: it finds wrong labels hardly
better than chance (``tests/benchmarks/results/neighbours.md``).  Column ``outlier_nearest``
has the ids of the nearest three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.label_kinds import NOTHING
from influence_cli.errors import UsageError
from influence_cli.maths.neighbours import Nearest
from influence_cli.methods.protocol import Floats
from influence_cli.methods.shapes.neighbours import NeighbourMethod
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.model.losses import RowLoss


@dataclass(frozen=True)
class Outlier(NeighbourMethod):
    """Rows that are far from all others come last."""

    k: int = setting(10, "neighbours of a row", "rows")
    among: str = setting("train", "whose neighbours: target rows, or the other train rows: target, train")

    def check_run(self, name: str, loss: RowLoss, train: int, target: int) -> None:
        """Refuse (UsageError) language models, and fewer rows than neighbours are asked for."""
        if loss.holds == NOTHING:
            what = f"{name} compares one vector of features a row, and a language model has one for every token"
            raise UsageError(what, fix="use --method loss, or self-tracin")
        super().check_run(name, loss, train, target)

    def of_neighbours(
        self, found: Nearest, labels: NDArray[np.int64], others: NDArray[np.int64]
    ) -> tuple[Floats, dict[str, NDArray[np.int64]]]:
        """Minus the mean distance; NaN where a row has fewer neighbours."""
        return -found.distances.mean(axis=1), {}

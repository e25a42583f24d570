"""Nearest neighbours: minus the share of a row's k nearest rows, by penultimate features, whose label is another.

    s_i = - sum_{j in N(i)} w_ij [y_j != y_i] / sum_{j in N(i)} w_ij

N(i) are the k nearest target rows, or with ``among=train`` the k nearest other train rows, whose own labels may be
wrong.  w_ij is 1 / d_ij with d the distance (where some are 0, these count alone), or 1 with ``weights=uniform``.
Bahri, Jiang and Gupta (arXiv:2004.12289) find wrong labels so, and take the features of a trained
network too.  Ranking only.  Column ``knn_label`` is the label that weighs most among the neighbours (the lowest number
where several do), ``knn_nearest`` has the ids of the nearest three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.maths.neighbours import NONE, Nearest
from influence_cli.methods.checks import check_options
from influence_cli.methods.protocol import Floats
from influence_cli.methods.shapes.neighbours import NeighbourMethod
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.model.losses import RowLoss

WEIGHTS = ("distance", "uniform")


@dataclass(frozen=True)
class KNN(NeighbourMethod):
    """Rows that their neighbours contradict come last."""

    weights: str = setting("distance", "of neighbours: distance (1 / distance), uniform (1)")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, {"weights": WEIGHTS}, {})

    def check_run(self, name: str, loss: RowLoss, train: int, target: int) -> None:
        """Refuse (UsageError) labels that are no classes, and fewer rows than neighbours are asked for."""
        if not loss.by_class:
            what = f"{name} counts neighbours with another label, and these labels are no classes"
            raise UsageError(what, fix="use --method outlier, which looks at no label")
        super().check_run(name, loss, train, target)

    def of_neighbours(
        self, found: Nearest, labels: NDArray[np.int64], others: NDArray[np.int64]
    ) -> tuple[Floats, dict[str, NDArray[np.int64]]]:
        """Minus the share of other labels, and the label that weighs most."""
        whole = (found.places != NONE).all(axis=1)
        theirs, weights = others[found.places], self._weights(found)
        with np.errstate(invalid="ignore"):
            share = (weights * (theirs != labels[:, None])).sum(axis=1) / weights.sum(axis=1)
        best, heaviest = np.full(len(labels), -1, dtype=np.int64), np.full(len(labels), -np.inf)
        for label in np.unique(others).tolist():
            total = (weights * (theirs == label)).sum(axis=1)
            more = total > heaviest
            best[more], heaviest[more] = label, total[more]
        return np.where(whole, -share, np.nan), {"label": np.where(whole, best, -1)}

    def _weights(self, found: Nearest) -> Floats:
        """The weight of every neighbour [n, k], of which the nearest has 1."""
        if self.weights == "uniform":
            return np.ones_like(found.distances)
        nearest = found.distances[:, :1]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(nearest == 0.0, found.distances == 0.0, nearest / found.distances).astype(np.float64)

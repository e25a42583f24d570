"""Methods that hold a row against its nearest neighbours, by penultimate features: exact search, in blocks.

A row's neighbours are the k nearest target rows, or the k nearest other train rows, by the cosine or the Euclidean
distance of what the layer that makes the logits is given.  Equal distances are in the order of row keys.  Another row
of the same payload is a neighbour like any, and the row itself is none.  Weights of rows change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.maths.neighbours import METRICS, NONE, Nearest, nearest
from influence_cli.methods.checks import check_options
from influence_cli.methods.protocol import Floats, Kind, Method, Scores
from influence_cli.methods.stored import Stored
from influence_cli.settings import setting
from influence_cli.store.shards import key_order

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.model.losses import RowLoss

AMONG = ("target", "train")
SHOWN = 3  # neighbours that the table names
BETWEEN = ", "  # their ids


@dataclass(frozen=True)
class NeighbourMethod(Method):
    """Ranking only; one member, the checkpoint itself."""

    needs: ClassVar[str] = "features"
    kind: ClassVar[Kind] = "ranking"

    k: int = setting(50, "neighbours of a row", "rows")
    among: str = setting("target", "whose neighbours: target rows, or the other train rows: target, train")
    metric: str = setting("cosine", "distance of features: cosine (1 - cos), euclidean")

    def __post_init__(self) -> None:
        check_options(self, {"among": AMONG, "metric": METRICS}, {}, ("k",))

    def needs_target(self) -> bool:
        """For neighbours among them."""
        return self.among == "target"

    def depends_on_others(self) -> bool:
        """With neighbours among the train rows."""
        return self.among == "train"

    def pairs(self, train: int, target: int) -> int:
        """Every row with every row that may be its neighbour."""
        return train * (target if self.needs_target() else train)

    def check_run(self, name: str, loss: RowLoss, train: int, target: int) -> None:
        """Refuse (UsageError) where there are fewer rows than neighbours are asked for."""
        rows, what = (target, "target rows") if self.needs_target() else (train - 1, "other train rows")
        if rows < self.k:
            fix = f"pass --set {name}.k={rows}" if rows else "give more train rows"
            raise UsageError(f"{name}.k={self.k}: a row has {rows} {what} that can be its neighbours", fix=fix)

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        """The value of each row, with the ids of its nearest neighbours."""
        (member,) = stored.members
        own = stored.read("features", member)["features"]
        others, among, itself = rows, own, np.arange(len(rows), dtype=np.int64)
        if self.needs_target():
            others, itself = stored.target, np.full(len(rows), NONE, dtype=np.int64)
            among = stored.read("features", member, others)["features"]
        order = np.empty(len(others), dtype=np.int64)
        order[key_order(others.row_keys)] = np.arange(len(others))
        with stored.progress(f"neighbours among {self.among} rows", len(rows)) as progress:
            found = nearest(own, among, self.k, self.metric, order=order, own=itself, done=progress.advance)
        scores, also = self.of_neighbours(found, rows.labels, others.labels)
        return [Scores(scores, also={**also, "nearest": _named(found, others.ids)})]

    def of_neighbours(
        self, found: Nearest, labels: NDArray[np.int64], others: NDArray[np.int64]
    ) -> tuple[Floats, dict[str, NDArray[np.int64]]]:
        """Scores [n] and more columns from neighbours [n, k], labels [n], and the labels of all rows among which."""
        raise NotImplementedError


def _named(found: Nearest, ids: Sequence[str]) -> NDArray[np.str_]:
    """The ids of the nearest few of each row; an empty text where it has none."""
    near: list[list[int]] = found.places[:, :SHOWN].tolist()
    return np.array([BETWEEN.join(ids[place] for place in some if place != NONE) for some in near], dtype=np.str_)

"""What lies near to a few train rows by penultimate features: helpful rows, rows of another label, and duplicates.

Similarity is the cosine of features.  Two rows are near-duplicates where 1 - cos is no more than a share of the median
distance of a train row to its nearest other one, which is taken on a sample; rows of one payload are exact duplicates.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.maths.linked import Linked
from influence_cli.maths.neighbours import nearest, pairs_within
from influence_cli.store import Keys
from influence_cli.store.shards import key_order

Places = NDArray[np.int64]
Features = NDArray[np.floating]

SHARE = 0.1  # of the median distance to the nearest row: what `evaluate --duplicates 10%` takes
SAMPLE = 500  # train rows whose nearest other one is looked for
BLOCK = 4096  # rows whose similarities are taken at once


@dataclass(frozen=True)
class Near:
    """A row that is near to another: its place among the rows that were looked at, and the cosine of both."""

    place: int
    similarity: float


def near_limit(features: Features, rows: Rows) -> float:
    """The largest 1 - cos of near-duplicates, from the features [n, d] of train rows; 0 where there are no two.

    The sample is drawn by row key: it stays the same as other rows come and go.
    """
    if len(rows) < 2:
        return 0.0
    some = np.sort(key_order(rows.row_keys)[:SAMPLE])
    apart = nearest(features[some], features, 1, own=some.astype(np.int64)).distances[:, 0]
    apart = apart[np.isfinite(apart)]
    return SHARE * float(np.median(apart)) if len(apart) else 0.0


def similarities(features: Features, among: Features) -> NDArray[np.float64]:
    """Cosines [k, n] of features [k, d] with others [n, d]; NaN where one is not finite or has no direction."""
    own, found = _unit(features), np.empty((len(features), len(among)))
    for first in range(0, len(among), BLOCK):
        with np.errstate(invalid="ignore"):
            found[:, first : first + BLOCK] = own @ _unit(among[first : first + BLOCK]).T
    return found


def _unit(vectors: Features) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        exact = vectors.astype(np.float64)
        return exact / np.sqrt((exact**2).sum(axis=1, keepdims=True))


def most_similar(cosines: NDArray[np.float64], allowed: NDArray[np.bool_], top: int) -> list[Near]:
    """The ``top`` most similar of the rows that are allowed [n], by one row's cosines [n]; equal ones in order."""
    places = np.flatnonzero(allowed & np.isfinite(cosines))
    order = places[np.argsort(-cosines[places], kind="stable")[:top]]
    return [Near(int(k), float(np.clip(cosines[k], -1.0, 1.0))) for k in order.tolist()]


def duplicate_groups(keys: Keys, features: Features | None, limit: float) -> list[list[int]]:
    """Groups of two or more rows, by place, that pairs of duplicates link, however long the chain.

    Rows with equal payload ``keys`` [n, 16] are duplicates, and where there are features [n, d] those up to ``limit``
    of 1 - cos apart.  Groups are in the order of their first rows, and so are the rows of each.
    """
    linked = Linked(len(keys))
    first: dict[bytes, int] = {}
    same = np.array([first.setdefault(key.tobytes(), k) for k, key in enumerate(keys)], dtype=np.int64)
    linked.add(np.arange(len(keys), dtype=np.int64), same)
    if features is not None:
        for i, j, _ in pairs_within(features, limit):
            linked.add(i, j)
    lowest = linked.lowest()
    order = np.argsort(lowest, kind="stable").tolist()
    groups = [list(some) for _, some in itertools.groupby(order, key=lambda k: int(lowest[k]))]
    return [group for group in groups if len(group) > 1]

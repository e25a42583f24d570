"""The nearest of many vectors, and all pairs that are near: exact, in blocks, whatever the blocks are.

A matrix product gives the squared distances of a block of pairs up to a bound on its rounding.  Pairs that may count by
that bound are measured again one by one, in float64 and in an order that no block changes; only these distances decide.
So the result is that of measuring all pairs, and equal distances are told apart by an order of the rows.

Cosine distances are 1 - cos(a, b) = |a / |a| - b / |b||^2 / 2, which loses no digits where a and b are alike.  A vector
of zeros has no direction: it is at distance 1 of every other and at 0 of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
Vectors = NDArray[np.floating]  # [n, d]

METRICS = ("cosine", "euclidean")
QUERIES, AMONG = 1024, 4096  # vectors of a block of pairs
PAIR_VALUES = 1 << 18  # values of the pairs that are measured at once
CROWD = 16  # times the neighbours asked for: more pairs are not held without measuring them
NONE = -1  # the place of a neighbour that is not there


@dataclass(frozen=True, eq=False)
class Nearest:
    """The K nearest of m vectors, nearest first: their places [m, K] among the others, and distances [m, K].

    ``NONE`` and NaN stand where there are not so many, and for vectors that are not finite.
    """

    places: Places
    distances: Floats


class _Measured:
    """Vectors [n, d] as distances are taken of them: as they are, or over their lengths."""

    def __init__(self, vectors: Vectors, metric: str) -> None:
        self.vectors, self.cosine = vectors, metric == "cosine"
        self.zeros = False  # whether some of these, or of those that they are held against, are of length 0
        self.lengths = _lengths(vectors)
        self.usable = np.isfinite(self.lengths)
        if self.cosine:
            self.squares = np.where(self.usable, 1.0, np.inf)
        else:
            self.squares = np.where(self.usable, self.lengths**2, np.inf)

    def take(self, which: Places | slice) -> Floats:
        """Some of them in float64; zeros where one is not finite."""
        some = self.vectors[which].astype(np.float64)
        lengths = self.lengths[which]
        some[~np.isfinite(lengths)] = 0.0
        if not self.cosine:
            return some
        some /= np.where((lengths > 0.0) & np.isfinite(lengths), lengths, 1.0)[:, None]
        if self.zeros:  # a direction of their own
            some = np.concatenate([some, (lengths == 0.0).astype(np.float64)[:, None]], axis=1)
        return some


def _lengths(vectors: Vectors) -> Floats:
    """The length of every vector [n]; not finite where a value is not, or where the square is too large."""
    found = np.empty(len(vectors))
    with np.errstate(over="ignore", invalid="ignore"):
        for some in _blocks(len(vectors), AMONG):
            found[some] = np.sqrt((vectors[some].astype(np.float64) ** 2).sum(axis=1))
    return found


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def _measured(a: Vectors, b: Vectors, metric: str) -> tuple[_Measured, _Measured]:
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is unknown; use one of {', '.join(METRICS)}")
    first = _Measured(a, metric)
    second = first if b is a else _Measured(b, metric)
    first.zeros = second.zeros = first.cosine and any(bool((m.lengths == 0.0).any()) for m in (first, second))
    return first, second


def _rough(a: _Measured, own: slice, others: slice, b: _Measured, taken: Floats) -> Floats:
    """Squared distances [p, q] of a block of pairs by a product; infinite where one of a pair is not finite."""
    found = a.squares[own, None] + b.squares[None, others]
    found -= 2.0 * (taken @ b.take(others).T)
    return found


def _off(a: _Measured, own: slice, b: _Measured) -> Floats:
    """For each of some vectors [p] the most that a rough squared distance of it is off by rounding."""
    largest = np.sqrt(b.squares[b.usable].max(initial=0.0))
    length = np.sqrt(np.where(a.usable[own], a.squares[own], 0.0))
    return 8.0 * (a.vectors.shape[1] + 8) * np.finfo(np.float64).eps * (length + largest) ** 2


def _squared(a: _Measured, b: _Measured, first: Places, second: Places) -> Floats:
    """The squared distance of every pair [p], by itself: sums that depend on the pair alone."""
    found, width = np.empty(len(first)), a.vectors.shape[1] + 1
    for some in _blocks(len(first), max(1, PAIR_VALUES // width)):
        apart = a.take(first[some]) - b.take(second[some])
        found[some] = (apart * apart).sum(axis=1)
    return found


def _as_distances(squared: Floats, metric: str) -> Floats:
    return squared / 2.0 if metric == "cosine" else np.sqrt(squared)


def nearest(
    vectors: Vectors, among: Vectors, k: int, metric: str = "cosine", *, order: Places | None = None,
    own: Places | None = None, blocks: tuple[int, int] = (QUERIES, AMONG), done: Callable[[int], None] = lambda _: None,
) -> Nearest:  # fmt: skip
    """The k nearest of ``among`` [n, d] for each of ``vectors`` [m, d].

    Equal distances are in the order of ``order`` [n] (default: their places).  ``own`` [m] is the place of each vector
    itself, which is not its own neighbour (``NONE``: it is not among them).  ``done`` is told how many more vectors
    have their neighbours.  Memory beside the two arrays and the result is that of a block of pairs.

    Raises:
        ValueError: k is not positive, or the metric is unknown.

    >>> found = nearest(np.array([[0.0, 1.0]]), np.array([[2.0, 0.0], [3.0, 3.0], [0.0, 9.0]]), 2)
    >>> found.places.tolist(), found.distances.round(3).tolist()
    ([[2, 1]], [[0.0, 0.293]])
    """
    if k < 1:
        raise ValueError(f"k={k} is not positive")
    a, b = _measured(vectors, among, metric)
    rank = np.arange(len(among), dtype=np.int64) if order is None else order
    own = np.full(len(vectors), NONE, dtype=np.int64) if own is None else own
    places = np.full((len(vectors), k), NONE, dtype=np.int64)
    squared = np.full((len(vectors), k), np.nan)
    for some in _blocks(len(vectors), blocks[0]):
        best = _Best(_off(a, some, b), k)
        taken = a.take(some)
        for others in _blocks(len(among), blocks[1]):
            rough = _rough(a, some, others, b, taken)
            inside = np.flatnonzero((own[some] >= others.start) & (own[some] < others.stop))
            rough[inside, own[some][inside] - others.start] = np.inf
            best.add(rough, others.start)
            if best.crowded:
                best.measured(lambda row, place, first=some.start: _squared(a, b, row + first, place), rank)
        best.measured(lambda row, place, first=some.start: _squared(a, b, row + first, place), rank)
        row, at = best.row, best.at
        places[some][row, at], squared[some][row, at] = best.place, best.value
        done(some.stop - some.start)
    return Nearest(places, _as_distances(squared, metric))


class _Best:
    """The pairs of a block of vectors that may be among their k nearest: row, place, and a squared distance [c]."""

    def __init__(self, off: Floats, k: int) -> None:
        """``off`` [p] is how far the squared distances of each vector are off at most."""
        self.k, self.off = k, off
        self.limit = np.full(len(off), np.inf)  # by row: no nearest one seems to be farther
        self.row, self.place = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        self.value, self.at = np.empty(0), np.empty(0, dtype=np.int64)

    @property
    def crowded(self) -> bool:
        """Whether so many are equally near that they are to be told apart now."""
        return len(self.row) > CROWD * self.k * len(self.limit)

    def add(self, rough: Floats, start: int) -> None:
        """Take what may be among the nearest from rough squared distances [p, q] of the vectors from ``start`` on."""
        if self.k <= rough.shape[1] and not np.isfinite(self.limit).all():  # k of the block are no farther than this
            least = np.partition(rough, self.k - 1, axis=1)[:, self.k - 1]
            self.limit = np.minimum(self.limit, least + 2 * self.off)
        row, column = np.nonzero((rough <= self.limit[:, None]) & (rough < np.inf))
        if not len(row):
            return
        self._sorted(
            np.concatenate([self.row, row]),
            np.concatenate([self.place, column + start]),
            np.concatenate([self.value, rough[row, column]]),
        )
        farthest = self.at == self.k - 1
        rows = self.row[farthest]
        self.limit[rows] = np.minimum(self.limit[rows], self.value[farthest] + 2 * self.off[rows])
        self._keep(self.value <= self.limit[self.row])

    def measured(self, squared: Callable[[Places, Places], Floats], rank: Places) -> None:
        """Put exact squared distances in place of rough ones, and keep the k nearest of each row."""
        self._sorted(self.row, self.place, squared(self.row, self.place), rank)
        self._keep(self.at < self.k)

    def _sorted(self, row: Places, place: Places, value: Floats, rank: Places | None = None) -> None:
        sort = np.lexsort((value, row) if rank is None else (rank[place], value, row))
        self.row, self.place, self.value = row[sort], place[sort], value[sort]
        self.at = np.arange(len(row)) - np.searchsorted(self.row, self.row)  # its place among its row's

    def _keep(self, kept: NDArray[np.bool_]) -> None:
        self.row, self.place, self.value, self.at = self.row[kept], self.place[kept], self.value[kept], self.at[kept]


def pairs_within(
    vectors: Vectors, limit: float, metric: str = "cosine", *, blocks: tuple[int, int] = (QUERIES, AMONG),
    done: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[Places, Places, Floats]]:  # fmt: skip
    """(i, j, distance) of all pairs i < j of ``vectors`` [n, d] that are no farther apart than ``limit``, by blocks.

    Vectors that are not finite are in no pair.  ``done`` is told how many more vectors have met all that follow them.

    >>> found = list(pairs_within(np.array([[0.0], [1.0], [5.0]]), 1.0, "euclidean"))
    >>> [(i.tolist(), j.tolist(), d.tolist()) for i, j, d in found]
    [([0], [1], [1.0])]
    """
    a, _ = _measured(vectors, vectors, metric)
    most = 2.0 * limit if metric == "cosine" else limit**2
    for some in _blocks(len(vectors), blocks[0]):
        taken, off = a.take(some), _off(a, some, a)
        for others in _blocks(len(vectors), blocks[1]):
            if others.stop <= some.start + 1:
                continue
            near = most * (1.0 + 1e-12) + off
            mine, theirs = np.nonzero(_rough(a, some, others, a, taken) <= near[:, None])
            mine, theirs = mine.astype(np.int64) + some.start, theirs.astype(np.int64) + others.start
            later = theirs > mine
            mine, theirs = mine[later], theirs[later]
            distances = _as_distances(_squared(a, a, mine, theirs), metric)
            kept = distances <= limit
            if kept.any():
                yield mine[kept], theirs[kept], distances[kept]
        done(some.stop - some.start)

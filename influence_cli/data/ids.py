"""The ids of rows as a sequence of texts that stays in Arrow's memory, where a text takes a fifth of Python's bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from influence_cli.store.arrow import array_of, values_of
from influence_cli.store.keys import key_order, stack, taken, words_of
from influence_cli.store.parquet import column_digest

BLOCK = 65_536  # ids that are Python's at once
MOST = 1 << 31  # bytes that a column of plain texts holds
TOGETHER = 4  # times as long as new digests: shorter arrays of them become one with the new
Words = tuple[NDArray[np.uint64], NDArray[np.uint64]]  # [n] each: the halves of digests, sorted by the first


def places_of(ids: Ids, among: Ids) -> NDArray[np.int64]:
    """For each of ``ids`` [n] its place ``among`` others, which are distinct, or -1."""
    sought = pc.SetLookupOptions(among.column.cast(pa.large_string()))
    return values_of(pc.call_function("index_in", [ids.column.cast(pa.large_string())], sought), -1).astype(np.int64)


def distinct(ids: Ids) -> bool:
    """Whether no id stands twice; of a table by hashes half of the memory would be the table."""
    order = values_of(pc.call_function("sort_indices", [ids.column]), 0).astype(np.int64)
    for first in range(0, len(order) - 1, BLOCK):
        some = ids.column.take(array_of(order[first : first + BLOCK + 1]))
        if pc.call_function("any", [pc.call_function("equal", [some[1:], some[:-1]])]).as_py():
            return False
    return True


def perhaps_twice(columns: Iterable[pa.ChunkedArray]) -> bool:
    """Whether an id may stand twice in columns of them, by hashes of 8 bytes each; where it does, this is true.

    >>> perhaps_twice([pa.chunked_array([["a", "b"]]), pa.chunked_array([["c", None, None]])])
    False
    >>> perhaps_twice([pa.chunked_array([["a", "b"]]), pa.chunked_array([["b"]])])
    True
    """
    hashes = [np.zeros(0, np.int64)]
    for column in columns:
        there = column.drop_null()
        hashes.append(np.fromiter(map(hash, map(str, there.to_pylist())), np.int64, len(there)))
    every = np.concatenate(hashes)
    every.sort()
    return bool((every[1:] == every[:-1]).any())


class SeenIds:
    """Which ids of rows that come some at a time have come before: 16 bytes each, in sorted arrays of doubling sizes.

    >>> seen = SeenIds()
    >>> seen.twice(["a", "b", "a", None, None]), seen.twice(["c", "b"])
    ([False, False, True, False, False], [False, True])
    """

    def __init__(self) -> None:
        self._sorted: list[Words] = []  # of digests, the longest first

    def twice(self, ids: Sequence[str | None]) -> list[bool]:
        """Whether each of the next ids has come before, among them or earlier; null counts as new."""
        there = np.array([k for k, name in enumerate(ids) if name is not None], dtype=np.int64)
        keys = stack([hashlib.blake2b(str(name).encode(), digest_size=16).digest() for name in ids if name is not None])
        order = key_order(keys)
        high, low = words_of(taken(keys, order))
        old = np.zeros(len(keys), dtype=bool)
        old[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])  # equal ones stand as they stood: the first one first
        for known in self._sorted:
            old |= _are_in(known, (high, low))
        self._add((high[~old], low[~old]))
        found = np.zeros(len(ids), dtype=bool)
        found[there[order[old]]] = True
        return found.tolist()

    def _add(self, words: Words) -> None:
        """Take new digests, sorted; arrays of about one length become one, so that there are few."""
        while self._sorted and len(self._sorted[-1][0]) < TOGETHER * len(words[0]):
            high, low = (np.concatenate(both) for both in zip(self._sorted.pop(), words, strict=True))
            order = np.argsort(high, kind="stable")
            words = high[order], low[order]
        if len(words[0]):
            self._sorted.append(words)


def _are_in(known: Words, words: Words) -> NDArray[np.bool_]:
    """Whether each of some digests is among others, both sorted by their first words.

    >>> some, others = np.array([4, 5, 6], np.uint64), np.array([5, 5, 6], np.uint64)
    >>> _are_in((others, np.array([1, 2, 3], np.uint64)), (some, np.array([1, 2, 4], np.uint64))).tolist()
    [False, True, False]
    """
    (high, low), found = known, np.zeros(len(words[0]), dtype=bool)
    at = np.searchsorted(high, words[0])
    left = np.flatnonzero(at < len(high))
    while len(left := left[high[at[left]] == words[0][left]]):  # once, unless several have one first word
        same = low[at[left]] == words[1][left]
        found[left[same]] = True
        left = left[~same]
        at[left] += 1
        left = left[at[left] < len(high)]
    return found


class Ids(Sequence[str]):
    """Ids [n] in order."""

    def __init__(self, column: pa.ChunkedArray | pa.Array) -> None:
        self.column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if isinstance(self.column, pa.ChunkedArray):  # no chunk, or more text than one array holds
            self.column = pa.concat_arrays([chunk.cast(pa.large_string()) for chunk in column.chunks] or [pa.array([])])
        if pa.types.is_large_string(self.column.type) and self.column.nbytes < MOST:
            self.column = self.column.cast(pa.string())  # as files have it, so that rows in memory are the same rows

    def __len__(self) -> int:
        return len(self.column)

    def digest(self) -> str:
        """Digest of the ids in order, which is another for any other ids.

        >>> Ids(pa.array(["a", "bc"])).digest() == Ids(pa.array(["ab", "c"])).digest()
        False
        """
        return column_digest("id", pa.chunked_array([self.column]))

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | np.integer[Any] | slice) -> str | list[str]:
        return self.column[index].to_pylist() if isinstance(index, slice) else self.column[int(index)].as_py()

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), BLOCK):
            yield from self.column.slice(first, BLOCK).to_pylist()

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, Ids):
            same = self.column.type == other.column.type
            return self.column.equals(other.column if same else other.column.cast(self.column.type))
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(list(self), dtype)

    def __repr__(self) -> str:
        return repr(list(self))

    def take(self, index: NDArray[np.int64]) -> Ids:
        """Those at some places."""
        if len(index) == len(self) and np.array_equal(index, np.arange(len(self))):
            return self
        return Ids(self.column.take(array_of(np.asarray(index, dtype=np.int64))))

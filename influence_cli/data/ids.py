"""The ids of rows as a sequence of texts that stays in Arrow's memory, where a text takes a fifth of Python's bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from influence_cli.store.arrow import array_of, values_of
from influence_cli.store.parquet import column_digest

BLOCK = 65_536  # ids that are Python's at once
MOST = 1 << 31  # bytes that a column of plain texts holds


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


class SeenIds:
    """Which ids of rows that come some at a time have come before: 16 bytes each, in sorted arrays of doubling sizes.

    >>> seen = SeenIds()
    >>> seen.twice(["a", "b", "a", None, None]), seen.twice(["c", "b"])
    ([False, False, True, False, False], [False, True])
    """

    def __init__(self) -> None:
        self._sorted: list[NDArray[np.bytes_]] = []  # digests, the longest array first

    def twice(self, ids: Sequence[str | None]) -> list[bool]:
        """Whether each of the next ids has come before, among them or earlier; null counts as new."""
        there = np.array([k for k, name in enumerate(ids) if name is not None], dtype=np.int64)
        digests = [hashlib.blake2b(str(name).encode(), digest_size=16).digest() for name in ids if name is not None]
        keys = np.array(digests, dtype="S16")
        order = np.argsort(keys, kind="stable")
        keys, old = keys[order], np.zeros(len(keys), dtype=bool)
        old[1:] = keys[1:] == keys[:-1]  # equal ones stand as they stood: the first of them first
        for known in self._sorted:
            old |= known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys
        self._add(keys[~old])
        found = np.zeros(len(ids), dtype=bool)
        found[there[order[old]]] = True
        return found.tolist()

    def _add(self, keys: NDArray[np.bytes_]) -> None:
        """Take new digests, sorted; arrays of about one length become one."""
        while self._sorted and len(self._sorted[-1]) < 2 * len(keys):
            keys = np.sort(np.concatenate([self._sorted.pop(), keys]), kind="stable")
        if len(keys):
            self._sorted.append(keys)


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

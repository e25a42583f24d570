"""Arrays [n, C] of stored rows, such as logits, that are read a block of rows at a time however many rows there are.

In memory are the keys, and where each row stands; never the values of all rows, unless a caller asks for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import StoreError
from influence_cli.store.files import DamagedFile
from influence_cli.store.keys import Keys, taken
from influence_cli.store.mapped import Located, LostRows, MappedFolder
from influence_cli.store.shards import (
    MERGE_ROWS,
    TRIES,
    Arrays,
    ShardFolder,
    first_ones,
    most_rows,
    positions,
    remove_others,
)
from influence_cli.store.tensors import Outline

BLOCK_ROWS = 65_536  # at most, that are read at once
BLOCK_VALUES = 1 << 20  # at most, of the rows that are read at once, but for a single row
MANY = 4  # times the rows that are asked for, a shard's are read together: it costs less than to map it
SMALL = 1 << 16  # bytes of an array that is read whole for the sake of a row

Index = NDArray[np.int64]


class BlockFolder(MappedFolder):
    """The rows stored under one fingerprint; small shards are merged, and who reads meanwhile lists them anew."""

    def array(self, keys: Keys, name: str) -> StoredArray:
        """One of the values of rows, in the order of ``keys`` [n, 16]; KeyError where one is not stored."""
        return StoredArray(self, keys, name)

    def of_rows(self, keys: Keys, name: str, function: Callable[..., NDArray[Any]], *beside: NDArray[Any]) -> Any:
        """A function [n, ...] of a value of rows, and of arrays [n, ...] beside it, whose every row is its own."""
        return self.array(keys, name).of_rows(function, *beside)

    def read(self, keys: Keys) -> Arrays:
        """Values in the order of ``keys`` [n, 16], all of them in memory; KeyError where one is not stored."""
        self._places(keys)
        shards = self._index().shards
        names = self._read(shards[0]).keys() - {"keys", "payload_keys"} if shards else ()
        return {name: self.array(keys, name).whole() for name in sorted(names)}

    def compact(self, full: int) -> int:
        """As of any folder of shards."""
        return ShardFolder.compact(self, full)

    def collect(self, keep: Keys | None) -> tuple[int, int]:
        """(rows dropped, shards merged): rows of no payload in ``keep`` go, small shards become large ones.

        The values of one shard's rows are in memory at a time.

        Raises:
            LostRows: a shard turned out to be damaged; it was set aside.
        """
        stored = self._index()
        keys, first = stored.keys, first_ones(stored.keys)
        wanted = first if keep is None else first & (positions(keys, keep) >= 0)
        rows = MERGE_ROWS if not stored.shards else min(MERGE_ROWS, most_rows(stored.shards[0]))
        if wanted.all() and len(stored.shards) <= max(-(-len(keys) // rows), 1):
            return 0, 0
        names = self._read(stored.shards[0]).keys() - {"keys"}
        chosen, written = np.flatnonzero(wanted), set[Path]()
        for start in range(0, len(chosen), rows):
            some = chosen[start : start + rows]
            try:
                values = {name: self.rows_at(some, stored, name) for name in sorted(names)}
            except StoreError as error:
                raise LostRows(some) from error
            written.add(self.write(keys[some], values))
        return int((first & ~wanted).sum()), remove_others(stored.shards, written)

    def look(self, keys: Keys) -> tuple[Index, Located]:
        """The number of each of ``keys`` [n, 16] among all rows as they are stored now; KeyError where one is not."""
        return self._places(keys), self._index()

    def look_again(self, before: Located) -> None:
        """List the shards anew, unless that was done since."""
        if self._index() is before:
            self._forget()

    def rows_at(self, where: Index, stored: Located, name: str) -> NDArray[Any]:
        """Values [b, ...] of rows by their number among all that are ``stored``.

        Raises:
            FileNotFoundError: another run has merged a shard meanwhile.
            StoreError: a shard is damaged; it was set aside.
        """
        owner = stored.shard_of(where)
        if not len(where) or owner.min() == owner.max():  # of no rows, what they are like
            return self._rows_of(stored, int(owner[0]) if len(owner) else 0, where, name)
        order = np.argsort(owner, kind="stable")
        found: NDArray[Any] | None = None
        for mine in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
            values = self._rows_of(stored, int(owner[mine[0]]), where[mine], name)
            found = np.empty((len(where), *values.shape[1:]), values.dtype) if found is None else found
            found[mine] = values
        assert found is not None
        return found

    def _rows_of(self, stored: Located, k: int, where: Index, name: str) -> NDArray[Any]:
        """``rows_at`` of rows of one shard: of many the whole array is read, of a few only these."""
        shard, rows = stored.shards[k], where - stored.starts[k]
        try:
            if shard not in self._outlines:
                self._outlines[shard] = Outline.of(shard)
            outline = self._outlines[shard]
            whole = outline.rows(name) <= MANY * len(rows) or outline.nbytes(name) <= SMALL
            return taken(outline.read(shard, name) if whole else self._read(shard)[name], rows)
        except (DamagedFile, KeyError) as error:
            self._lose(shard, error)
            what = f"{len(rows):,} rows that were stored are damaged"
            raise StoreError(what, where=str(self.path), fix="run the same command again") from error

    @functools.cached_property
    def _outlines(self) -> dict[Path, Outline]:
        return {}

    def _forget(self) -> None:
        super()._forget()
        self._outlines.clear()


class StoredArray:
    """One array [n, ...] of stored rows, of which those are read that are asked for."""

    def __init__(self, folder: BlockFolder, keys: Keys, name: str) -> None:
        """The rows are in the order of ``keys`` [n, 16]; KeyError where one is not stored (fill it first)."""
        self.folder, self.keys, self.name = folder, keys, name
        self._where, self._stored = folder.look(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: Index | slice) -> NDArray[Any]:
        """Values [b, ...] of some of the rows.

        Raises:
            StoreError: they were damaged, or taken away, since the folder was filled.
        """
        for _ in range(TRIES):
            try:
                return self.folder.rows_at(self._where[rows], self._stored, self.name)
            except FileNotFoundError:  # another run has merged shards
                self.folder.look_again(self._stored)
            try:
                self._where, self._stored = self.folder.look(self.keys)
            except KeyError:
                break
        what = "rows that were stored are gone"
        raise StoreError(what, where=str(self.folder.path), fix="run the same command again")

    def blocks(self) -> Iterator[Index]:
        """The places [b] of all rows, some at a time that are read together, ascending in each."""
        if not len(self.keys):
            return
        width = max(1, int(np.prod(self[:1].shape[1:])))
        most = int(np.clip(BLOCK_VALUES // width, 1, BLOCK_ROWS))
        owner = self._stored.shard_of(self._where)
        order = np.argsort(owner, kind="stable")
        cuts = np.searchsorted(owner[order], np.arange(len(self._stored.shards) + 1))
        del owner
        for first, last in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            for start in range(first, last, most):
                yield order[start : min(start + most, last)]

    def of_rows(self, function: Callable[..., NDArray[Any]], *beside: NDArray[Any]) -> NDArray[Any]:
        """A function [n, ...] of them and of arrays [n, ...] beside them, whose every row is its own."""
        found: NDArray[Any] | None = None
        for some in self.blocks():
            part = function(self[some], *(values[some] for values in beside))
            if found is None:
                found = np.empty((len(self), *part.shape[1:]), part.dtype)
            found[some] = part
        return function(self[:0], *(values[:0] for values in beside)) if found is None else found

    def whole(self) -> NDArray[Any]:
        """The values of all rows, in memory."""
        return self.of_rows(lambda values: values)

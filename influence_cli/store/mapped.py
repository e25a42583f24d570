"""A folder of shards that are mapped and read one at a time, since together they may be very large.

Which rows are there is read from the keys alone, which a shard's name vouches for.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import StoreError
from influence_cli.store.files import DamagedFile
from influence_cli.store.keys import KEY_BYTES, Keys, digest_of_sorted, taken
from influence_cli.store.layout import refuse_moved, set_aside
from influence_cli.store.shards import AGAIN, Arrays, ShardFolder, unique
from influence_cli.store.tensors import map_tensors

FILE_BYTES = 1 << 30  # values that are read at once beyond this are in a temporary file


class LostRows(Exception):
    """Rows that were stored when reading began, and are not there now: their shard is damaged, or gone."""

    def __init__(self, index: NDArray[np.int64]) -> None:
        super().__init__(f"{len(index)} rows")
        self.index = index  # positions in the keys that were asked for


@dataclass(frozen=True, eq=False)
class Located:
    """Where every stored row [m] stands: the rows of a shard follow those of the one before it."""

    shards: list[Path]
    keys: Keys
    starts: NDArray[np.int64]  # [shards + 1]: the first row of each, and the number of all

    def shard_of(self, where: NDArray[np.int64]) -> NDArray[np.int64]:
        """In which shard rows are, by their number among all."""
        return np.searchsorted(self.starts, where, side="right") - 1


class MappedFolder(ShardFolder):
    """The rows stored under one fingerprint; of a shard only the keys are held in memory."""

    checked_first: ClassVar[bool] = True  # whether a shard's checksum is looked at with its keys, or with its values
    _indexed: Located | None = None

    @functools.cached_property
    def _verified(self) -> set[Path]:
        return set()

    def _index(self) -> Located:
        if self._indexed is None:
            read = self._read_each(self._keys_of)
            keys = [own for _, own in read]
            starts = np.cumsum([0, *(len(k) for k in keys)], dtype=np.int64)
            every = np.concatenate([np.zeros((0, KEY_BYTES), np.uint8), *keys])
            self._indexed = Located([shard for shard, _ in read], self._sought.shared(every), starts)
        return self._indexed

    def _keys(self) -> Keys:
        return self._index().keys

    def _forget(self) -> None:
        super()._forget()
        self._indexed = None

    def _keys_of(self, shard: Path) -> Keys:
        tensors, meta = map_tensors(shard, verify=self.checked_first)
        refuse_moved(shard, meta)
        own = np.array(tensors["keys"])
        if digest_of_sorted(own) != shard.stem:
            raise DamagedFile("its keys are not those of its name")
        if self.checked_first:
            self._verified.add(shard)
        self._look_at(meta)
        return own

    def _look_at(self, meta: dict[str, Any]) -> None:
        """Take what a shard's metadata says; DamagedFile where it lacks something."""

    @property
    def stored(self) -> Keys:
        """Keys of the distinct rows that are stored [n, 16]."""
        keys = self._keys()
        return taken(keys, unique(keys))

    def blocks(self, keys: Keys, names: tuple[str, ...]) -> Iterator[tuple[NDArray[np.int64], Arrays]]:
        """(positions in ``keys`` [m], their values by name), a shard at a time; equal keys all have their place.

        Raises:
            KeyError: a key is not stored (callers fill the folder first).
            LostRows: at the end, where a shard turned out to be damaged; it was set aside.
        """
        stored, where = self._index(), self._places(keys)
        lost: list[NDArray[np.int64]] = []
        owner = stored.shard_of(where)
        order = np.argsort(owner, kind="stable")
        cuts = np.searchsorted(owner[order], np.arange(len(stored.shards) + 1))
        for k, shard in enumerate(stored.shards):
            index = order[cuts[k] : cuts[k + 1]]
            if len(index) == 0:
                continue
            try:
                tensors = self._read(shard)
                rows = where[index] - stored.starts[k]
                values = {name: tensors[name][rows] for name in names}
            except (DamagedFile, KeyError, FileNotFoundError) as error:
                self._lose(shard, error)
                lost.append(index)
                continue
            yield index, values
        if lost:
            raise LostRows(np.sort(np.concatenate(lost)))

    def read(self, keys: Keys) -> Arrays:
        """Values in the order of ``keys`` [n, 16]: in memory, or in a temporary file that goes with them.

        Raises:
            KeyError: a key is not stored (callers fill the folder first).
            StoreError: a shard was damaged, or taken away, since the folder was filled.
        """
        self._places(keys)
        shards = self._index().shards
        if not shards:
            return {}
        found: Arrays = {}
        for name, like in self._read(shards[0]).items():
            if name not in ("keys", "payload_keys"):
                found[name] = _room((len(keys), *like.shape[1:]), like.dtype)
        try:
            for index, values in self.blocks(keys, tuple(found)):
                for name, array in values.items():
                    found[name][index] = array
        except LostRows as lost:
            what = f"{lost} that were stored are damaged, or gone"
            raise StoreError(what, where=str(self.path), fix="run the same command again") from lost
        return found

    def compact(self, full: int) -> int:
        """Nothing: another run may have read which shards there are, and come back for their values."""
        return 0

    def _lose(self, shard: Path, error: Exception) -> None:
        """Set a damaged shard aside; one that another run has taken away is none."""
        if not isinstance(error, FileNotFoundError):
            set_aside(shard, error, self.listener, AGAIN)
        self._forget()

    def _read(self, shard: Path) -> Arrays:
        """A shard's tensors, mapped; verified once."""
        tensors, _ = map_tensors(shard, verify=shard not in self._verified)
        self._verified.add(shard)
        return tensors


def _room(shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    """An array to be filled; a large one is in a file that has no name any more."""
    if kind.itemsize * int(np.prod(shape)) <= FILE_BYTES:
        return np.empty(shape, kind)
    with tempfile.NamedTemporaryFile(prefix="influence-rows-") as handle:
        return np.memmap(handle, dtype=kind, mode="w+", shape=shape)

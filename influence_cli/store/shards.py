"""A folder of immutable shards: rows of one spec, looked up by key, appended in new files.

1. A shard holds ``keys`` u8[n, 16] and one or more value tensors [n, ...], or ragged ones (see ``ragged``); rows are
   sorted by key.
2. Its name is the BLAKE2b-128 of its sorted keys, so writing the same rows twice writes the same file.
3. A shard is never rewritten.  Two shards may hold the same row: the lowest name wins.
4. A damaged shard is named, set aside as ``.damaged-NAME``, and its rows count as missing.
5. It says of which folder it is: shards of two folders may have one name, and an intact one of another is damage.
6. ``spec.json`` is for people; nothing reads it to decide anything.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from influence_cli.events import SILENT, Listener
from influence_cli.store.arrow import values_of
from influence_cli.store.files import DamagedFile, write_json
from influence_cli.store.keys import KEY_BYTES, Keys, digest_of_sorted, key_order, taken, unique, words_of
from influence_cli.store.layout import OF, SPEC, refuse_moved, set_aside, shards_of, thing_of
from influence_cli.store.ragged import flattened, unflattened
from influence_cli.store.tensors import (
    map_tensors,
    read_header,
    read_metadata,
    read_tensors,
    tensor_names,
    write_tensors,
)

Arrays = dict[str, NDArray[Any]]
Claim = Callable[[], None]
Read = TypeVar("Read")
AGAIN = "its rows are computed again"
MERGE_ROWS = 16_384  # shards are merged up to this many rows
BUCKET_ROWS = 16_384  # keys that are sought among at once: so few that they stay in a core's own memory
FEW = 16  # times fewer keys than they are sought among: then these are sought among the few
LOOKUPS = 2  # that are remembered
SHARD_BYTES = 64 << 20  # most bytes of a value in a shard, but for a single row
MANY_SMALL = 16  # shards that are left as they are
LEAST_KEPT = 1000  # keys of one that is
TRIES = 5  # how often a folder is read again because another run has merged shards meanwhile


def as_arrow(keys: Keys) -> pa.Array:
    """Keys [n, 16] as an Arrow array of 16-byte values, without a copy."""
    buffer = pa.py_buffer(np.ascontiguousarray(keys))
    return pa.Array.from_buffers(pa.binary(KEY_BYTES), len(keys), [None, buffer])


def positions(keys: Keys, among: Keys) -> NDArray[np.int64]:
    """For each of ``keys`` [n, 16] the first index of it ``among`` [m, 16], or -1; exact.

    Both are gone through in the order of their bytes, ``BUCKET_ROWS`` at a time, so that a row takes as long among many
    as among few: a table by hashes is looked up all over the memory.
    """
    found = np.full(len(keys), -1, dtype=np.int64)
    if len(among) == 0 or len(keys) == 0:
        return found
    if len(keys) * FEW < len(among):  # to sort the many for the sake of a few would take long
        distinct = taken(keys, unique(keys))
        there = index_in(among, distinct)
        hits = np.flatnonzero(there >= 0)[::-1]
        first = np.full(len(distinct), -1, dtype=np.int64)
        first[there[hits]] = hits  # of several the last that is written, which is the first that there is
        return first[index_in(keys, distinct)]
    sought = key_order(keys)
    stored = sought if among is keys else key_order(among)
    for here, there in _side_by_side(keys, sought, among, stored):
        inside = _among_sorted(taken(keys, here), taken(among, there))
        found[here] = np.where(inside < 0, -1, there[inside] if len(there) else -1)
    return found


def _side_by_side(
    keys: Keys, sought: NDArray[np.int64], among: Keys, stored: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The sorted places of keys some at a time, and the sorted places of those among others from the same range."""
    begun, ends = 0, [*range(BUCKET_ROWS, len(stored), BUCKET_ROWS), len(stored)]
    for first, end in zip([0, *ends], ends, strict=False):
        until = len(sought) if end == len(stored) else _before(keys, sought, bytes(among[stored[end]]))
        lowest = first if first == 0 else _before(among, stored, bytes(among[stored[first]]))
        if until > begun:
            yield sought[begun:until], stored[lowest:end]
        begun = max(begun, until)


def _before(keys: Keys, order: NDArray[np.int64], key: bytes) -> int:
    """How many keys, by their sorted places, come before one."""
    return bisect.bisect_left(order, key, key=lambda row: bytes(keys[row]))


def _among_sorted(keys: Keys, among: Keys) -> NDArray[np.int64]:
    """``positions`` of sorted keys among sorted ones."""
    words, others = words_of(keys), words_of(among)
    if np.array_equal(keys, among) and bool((others[0][1:] != others[0][:-1]).all()):
        return np.arange(len(keys), dtype=np.int64)
    if bool((others[0][1:] == others[0][:-1]).any()):
        return index_in(keys, among)
    at = np.minimum(np.searchsorted(others[0], words[0]), len(among) - 1)
    same = np.logical_and.reduce([other[at] == word for other, word in zip(others, words, strict=True)])
    return np.where(same, at, -1)


def index_in(keys: Keys, among: Keys) -> NDArray[np.int64]:
    """``positions``, by one table of all that are sought among."""
    if len(among) == 0 or len(keys) == 0:
        return np.full(len(keys), -1, dtype=np.int64)
    found = pc.call_function("index_in", [as_arrow(keys)], pc.SetLookupOptions(as_arrow(among)))
    return values_of(found, -1).astype(np.int64)


class Sought:
    """Where keys were found, for folders of one store that are asked one after another.

    A run asks for the same array of keys to see what is missing, and once for each of its columns; and folders that
    were filled together hold the same keys in the same order.
    """

    def __init__(self) -> None:
        self._known: list[tuple[Keys, Keys, NDArray[np.int64]]] = []  # the last ones: sought, among, where

    def places(self, keys: Keys, among: Keys) -> NDArray[np.int64]:
        """``positions``, looked up once."""
        for sought, stored, where in self._known:
            if sought is keys and (stored is among or np.array_equal(stored, among)):
                return where
        found = positions(keys, among)
        if len(among) and len(keys) >= LEAST_KEPT and len(keys) * FEW >= len(among):  # few keys are found at once
            self._known = [*self._known, (keys, among, found)][-LOOKUPS:]
        return found

    def shared(self, among: Keys) -> Keys:
        """The same keys, or those of another folder in their place, so that they are in memory once."""
        return next((stored for _, stored, _ in self._known if np.array_equal(stored, among)), among)


class ShardFolder:
    """The rows stored under one fingerprint.  Reading verifies checksums; writing needs no lock."""

    def __init__(
        self, path: Path, spec: dict[str, Any], listener: Listener = SILENT, claim: Claim = lambda: None,
        sought: Sought | None = None,
    ) -> None:  # fmt: skip
        self.path, self.spec, self.listener, self._claim = path, spec, listener, claim
        self._sought = sought or Sought()
        self._loaded: tuple[list[Path], Keys, Arrays] | None = None

    def _shards(self) -> list[Path]:
        return shards_of(self.path)

    def _read_each(self, read: Callable[[Path], Read]) -> list[tuple[Path, Read]]:
        """What ``read`` makes of every intact shard; a damaged one is set aside and named.

        Where another run takes a shard away meanwhile, which leaves its rows in a larger one, all are listed and read
        anew.
        """
        found: list[tuple[Path, Read]] = []
        for _ in range(TRIES):
            found, whole = [], True
            for shard in self._shards():
                try:
                    found.append((shard, read(shard)))
                except FileNotFoundError:
                    whole = False
                except (DamagedFile, KeyError) as error:
                    set_aside(shard, error, self.listener, AGAIN)
            if whole:
                break
        return found

    def _load(self) -> tuple[list[Path], Keys, Arrays]:
        """The intact shards, and all of their rows, lowest name first."""
        if self._loaded is None:
            found = self._read_each(_tensors_of)
            parts: dict[str, list[NDArray[Any]]] = {"keys": [np.zeros((0, KEY_BYTES), np.uint8)]}
            shards = [shard for shard, _ in found]
            while found:  # a shard's bytes go as soon as its last array is one of the whole
                for name, array in found.pop(0)[1].items():
                    parts.setdefault(name, []).append(array.copy() if len(shards) > 1 else array)
            arrays = {name: np.concatenate(parts.pop(name)) for name in list(parts)}
            self._loaded = shards, self._sought.shared(arrays.pop("keys")), arrays
        return self._loaded

    def _keys(self) -> Keys:
        """Keys of all rows [m, 16], lowest shard name first; a row may stand twice."""
        return self._load()[1]

    def _forget(self) -> None:
        self._loaded = None

    def missing(self, keys: Keys) -> NDArray[np.bool_]:
        """True for each of ``keys`` [n, 16] that no intact shard holds."""
        return self._sought.places(keys, self._keys()) < 0

    def _places(self, keys: Keys) -> NDArray[np.int64]:
        """Where each of ``keys`` [n, 16] stands among all rows; KeyError where one is not stored (fill it first)."""
        where = self._sought.places(keys, self._keys())
        if len(where) and where.min() < 0:
            raise KeyError(f"{int((where < 0).sum())} rows are not in {self.path}")
        return where

    def read(self, keys: Keys) -> Arrays:
        """Values in the order of ``keys`` [n, 16]; KeyError where one is not stored (fill it first)."""
        where = self._places(keys)
        return {name: taken(array, where) for name, array in self._load()[2].items()}

    def load_all(self) -> tuple[Keys, Arrays]:
        """Every stored row: keys [n, 16] and values, lowest shard name first; a row may stand twice."""
        return self._load()[1:]

    def write(self, keys: Keys, values: Arrays, layout: dict[str, Any] | None = None) -> Path:
        """Write one shard of distinct rows, ValueError for none; named by its content: a second writer does no harm."""
        if len(keys) == 0:
            raise ValueError("a shard without rows")
        self._claim()
        order = key_order(keys)
        sorted_keys = taken(keys, order)
        if not (self.path / SPEC).exists():
            write_json(self.path / SPEC, self.spec)
        path = self.path / f"{digest_of_sorted(sorted_keys)}.safetensors"
        sorted_values = {name: taken(np.asarray(v), order) for name, v in values.items()}
        tensors = {"keys": sorted_keys, **flattened(sorted_values)}
        about = {} if layout is None else {"layout": layout}
        write_tensors(path, tensors, {**about, "rows": len(keys), OF: thing_of(path)})
        self._forget()
        return path

    def compact(self, full: int) -> int:
        """Merge the small shards that appends leave into some of ``full`` rows, where there are many; returns how many.

        Every row keeps its value: of several shards that hold it the lowest name wins among those that are merged, and
        a shard of which another one holds a row stays as it is.  New shards are written before old ones go, and who
        reads meanwhile lists them anew.
        """
        try:
            rows = {shard: int(read_metadata(shard)["rows"]) for shard in self._shards()}
            full = min([full, *(most_rows(shard) for shard in list(rows)[:1])])
            small = [shard for shard, count in rows.items() if 2 * count < full]
            if len(small) <= MANY_SMALL:
                return 0
            found = [(shard, _keys_of(shard)) for shard in small]  # of values some shards' at a time
            stored = np.concatenate([keys for _, keys in found])
            owner = np.repeat(np.arange(len(found)), [len(keys) for _, keys in found])
            held = np.zeros(len(found), dtype=bool)  # which have a row that stands elsewhere too
            for shard in rows.keys() - set(small):
                others = _keys_of(shard)
                held[owner[positions(stored, others) >= 0]] = True
            before = -1
            while before != (before := int(held.sum())):  # nor one that shares a row with such a shard
                held[owner[positions(stored, stored[held[owner]]) >= 0]] = True
            merged = [(shard, keys) for (shard, keys), elsewhere in zip(found, held, strict=True) if not elsewhere]
            names = [frozenset(tensor_names(shard)) for shard, _ in merged]
            if len(merged) < 2 or len(set(names)) > 1:
                return 0
            written = self._merged(merged, full)
        except (FileNotFoundError, DamagedFile, KeyError, TypeError, ValueError):
            return 0  # another run is at it, or whoever reads it next names the damage
        return remove_others([shard for shard, _ in merged], written)

    def _merged(self, shards: list[tuple[Path, Keys]], full: int) -> set[Path]:
        """Write the rows of shards, each once, in shards of ``full`` rows."""
        keys, written = np.concatenate([own for _, own in shards]), set[Path]()
        first, start = first_ones(keys), 0
        waiting, rows = list[Arrays](), 0

        def write(count: int) -> None:
            nonlocal rows
            whole = {name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]}
            own = {name: array[:count] for name, array in whole.items()}
            written.add(self.write(own.pop("keys"), own))
            rows -= count
            waiting[:] = [{name: array[count:] for name, array in whole.items()}]

        for shard, own in shards:
            chosen = np.flatnonzero(first[start : start + len(own)])
            waiting.append({name: array[chosen] for name, array in _tensors_of(shard).items()})
            start, rows = start + len(own), rows + len(chosen)
            while rows >= full:
                write(full)
        if rows:
            write(rows)
        return written

    def collect(self, keep: Keys | None) -> tuple[int, int]:
        """(rows dropped, shards merged): rows of no payload in ``keep`` go, small shards become large ones.

        New shards are written before old ones go.
        """
        old, keys, values = self._load()
        first = first_ones(keys)
        payloads = values.get("payload_keys", keys)  # what is named by row says whose payload it is
        wanted = first if keep is None else first & (positions(payloads, keep) >= 0)
        if wanted.all() and len(old) <= max(-(-len(keys) // MERGE_ROWS), 1):
            return 0, 0
        chosen = np.flatnonzero(wanted)
        written: set[Path] = set()
        for start in range(0, len(chosen), MERGE_ROWS):
            rows = chosen[start : start + MERGE_ROWS]
            written.add(self.write(keys[rows], {name: array[rows] for name, array in values.items()}))
        return int((first & ~wanted).sum()), remove_others(old, written)


def _tensors_of(shard: Path) -> Arrays:
    tensors, meta = read_tensors(shard)
    refuse_moved(shard, meta)
    return unflattened(tensors)


def _keys_of(shard: Path) -> Keys:
    """The keys alone, unverified."""
    return np.array(map_tensors(shard, verify=False)[0]["keys"])


def first_ones(keys: Keys) -> NDArray[np.bool_]:
    """Whether each of keys [n, 16] is the first one of its value."""
    first = np.zeros(len(keys), dtype=bool)
    first[unique(keys)] = True
    return first


def most_rows(shard: Path) -> int:
    """How many rows like those of a shard one may have, by its bytes."""
    header, rows = read_header(shard), int(read_metadata(shard)["rows"])
    places = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    return max(1, SHARD_BYTES // max(1, *((last - first) // rows for first, last in places)))


def remove_others(old: list[Path], written: set[Path]) -> int:
    """Remove old shards that were not written again; returns how many."""
    gone = [shard for shard in old if shard not in written]
    for shard in gone:
        shard.unlink(missing_ok=True)
    return len(gone)

"""Decoded rows that another pass will ask for, in the three ways that passes ask: by key, by batch, and by place."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.kinds.protocol import Decoded
from influence_cli.model.named_tensors import Inputs, NamedTensors, from_arrays
from influence_cli.model.spec import ModelSpec

IN_MEMORY_BYTES = 1 << 28  # of rows or batches that are kept between passes
FILE_BYTES = 1 << 30  # decoded rows by place beyond this are in a temporary file

Batches = list[tuple[NDArray[np.int64], Any]]  # rows, and their values [b, ...]


class DecodedByKey:
    """Decoded payloads, as many as fit in so many bytes, the first ones to come.

    They are known by their payload keys, since rows of other manifests have the same places and may have the same
    source's name; and for one spec alone, which says how a payload becomes an input.
    """

    def __init__(self, spec: ModelSpec, most: int | None = None) -> None:
        """Payloads as ``spec`` decodes them, of which ``most`` bytes are held at once."""
        self.spec, self.room = spec, IN_MEMORY_BYTES if most is None else most
        self._rows, self._lock = dict[bytes, Decoded](), threading.Lock()

    def get(self, key: bytes, spec: ModelSpec) -> Decoded | None:
        """The payload of a key as it was decoded, or None."""
        return self._rows.get(key) if spec is self.spec else None

    def put(self, key: bytes, spec: ModelSpec, value: Decoded) -> None:
        """Hold a decoded payload where there is room for it."""
        size = sum(v.nbytes for v in value.values()) if isinstance(value, dict) else value.nbytes
        with self._lock:  # rows are decoded on several threads
            if spec is self.spec and key not in self._rows and size <= self.room:
                self.room -= size
                self._rows[key] = value


class DecodedBatches:
    """Batches as they came, for further passes over the same rows in the same order; none where all are too large.

    A batch is kept in the memory layout that decoding gave it, on which rounding depends.
    """

    def __init__(self) -> None:
        self._bytes, self._items = 0, Batches()

    def add(self, index: NDArray[np.int64], values: Inputs) -> None:
        """Keep a batch, unless they have become too large."""
        self._bytes += values.nbytes
        self._items.append((index, values))
        if self._bytes > IN_MEMORY_BYTES:
            self._items.clear()

    def all(self) -> Batches | None:
        """All that was added; None where that is too large."""
        return self._items if self._bytes <= IN_MEMORY_BYTES else None


class OddRows(ValueError):
    """Rows from ``row`` on are of another shape or type than those before."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(what)
        self.row = row


def decoded_by_place(
    batches: Iterable[tuple[NDArray[np.int64], Inputs]],
    place: Mapping[int, int],
    in_memory: int = FILE_BYTES,
    ragged: bool = False,
) -> Decoded:
    """Rows [n, ...], row r at ``place[r]``, in memory or in a temporary file; an empty array where no batch comes.

    ``ragged`` rows of several lengths [n, T] are filled up with 0 to the longest.

    Raises:
        OddRows: a batch has rows of another shape or type than those before.
    """
    found: dict[str, NDArray[Any]] = {}
    for index, rows in batches:
        parts = rows.tensors if isinstance(rows, NamedTensors) else {"": rows}
        at = [place[row] for row in index.tolist()]
        for name, tensor in parts.items():
            values = tensor.cpu().numpy()
            into = found.setdefault(name, values)
            if into is values:
                into = found[name] = _room(values, len(place), in_memory)
            if ragged and values.shape[1] != into.shape[1]:
                values, into = _as_long(values, into, len(place), in_memory)
                found[name] = into
            if values.shape[1:] != into.shape[1:] or values.dtype != into.dtype:
                raise OddRows(int(index[0]), f"inputs of {values.shape[1:]} and of {into.shape[1:]}")
            into[at] = values
    return found if found and "" not in found else found.get("", np.empty((0,)))


def rows_at(decoded: Decoded, places: NDArray[np.int64] | slice) -> Any:
    """Some of the rows that ``decoded_by_place`` gave."""
    return from_arrays({n: v[places] for n, v in decoded.items()} if isinstance(decoded, dict) else decoded[places])


def _as_long(values: NDArray[Any], into: NDArray[Any], rows: int, in_memory: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """A batch [b, T] and the rows so far [n, U], both filled up with 0 to the longer of T and U."""
    more = into.shape[1] - values.shape[1]
    if more > 0:
        return np.pad(values, ((0, 0), (0, more))), into
    longer = _room(values, rows, in_memory)
    longer[:] = 0
    longer[:, : into.shape[1]] = into
    return values, longer


def _room(like: NDArray[Any], rows: int, in_memory: int) -> NDArray[Any]:
    """An empty array for ``rows`` values as those of ``like`` [b, ...], in memory or in a temporary file."""
    shape = (rows, *like.shape[1:])
    if math.prod(shape) * like.dtype.itemsize > in_memory:
        with tempfile.NamedTemporaryFile(prefix="influence-decoded-") as handle:
            return np.memmap(handle, dtype=like.dtype, mode="w+", shape=shape)
    return np.empty(shape, dtype=like.dtype)

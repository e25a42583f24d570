"""Computed rows on their way into the store: a shard is written as soon as it is full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from influence_cli.stages.run.quantities import Part
from influence_cli.store import Keys
from influence_cli.store.shards import SHARD_BYTES, Arrays

Write = Callable[[Keys, Arrays], Any]


class ShardWriter:
    """Collects the rows of several parts, and writes each part's shards when they are full, by rows or by bytes."""

    def __init__(self, shard_rows: int, whole_batches: bool = True) -> None:
        """Shards of so many rows, and of those over that are in the same batch unless ``whole_batches`` is off."""
        self.shard_rows, self.whole_batches = shard_rows, whole_batches
        self._pending: dict[Part, list[tuple[Keys, Arrays]]] = {}
        self._write: dict[Part, Write] = {}

    def add(self, part: Part, write: Write, keys: Keys, arrays: Arrays) -> None:
        """Take a batch of a part: keys [b, 16] and arrays [b, ...]; ``write`` stores a shard of them."""
        self._write[part] = write
        pending = self._pending.setdefault(part, [])
        pending.append((keys, arrays))
        rows, row_bytes = sum(len(k) for k, _ in pending), max(array[0].nbytes for array in arrays.values())
        most = max(1, min(self.shard_rows, SHARD_BYTES // max(1, row_bytes)))
        while rows >= most:
            taken = rows if self.whole_batches else most
            self._shard(part, taken)
            rows -= taken

    def flush(self) -> None:
        """Write what is left."""
        for part, pending in self._pending.items():
            rows = sum(len(keys) for keys, _ in pending)
            if rows:
                self._shard(part, rows)

    def _shard(self, part: Part, rows: int) -> None:
        """Write the first ``rows`` rows that wait as one shard."""
        pending = self._pending[part]
        keys = np.concatenate([k for k, _ in pending])
        arrays = {name: np.concatenate([a[name] for _, a in pending]) for name in pending[0][1]}
        self._write[part](keys[:rows], {name: a[:rows] for name, a in arrays.items()})
        left = (keys[rows:], {name: a[rows:] for name, a in arrays.items()})
        pending[:] = [left] if len(keys) > rows else []

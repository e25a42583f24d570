"""A folder of row gradients: shards that are mapped and read one at a time, since together they may be very large.

A shard is as in ``shards``: immutable, named by its keys, the lowest name wins.  It holds

    keys u8[n, 16] (row)   payload_keys u8[n, 16]   value [n, p]   loss f64[n]   norms f64[n, L]

and in its metadata the **layout**, which is the same in all of a folder: the layers, and which columns of ``value`` are
whose.  Which rows are there is read from the keys alone, which a shard's name vouches for; a shard's checksum is looked
at when its values are first read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from influence_cli.store.files import DamagedFile
from influence_cli.store.keys import Keys
from influence_cli.store.mapped import LostRows, MappedFolder
from influence_cli.store.shards import SHARD_BYTES, Arrays, first_ones, positions, remove_others
from influence_cli.store.tensors import map_tensors

READ = ("value", "loss", "norms")


class GradientFolder(MappedFolder):
    """The row gradients stored under one fingerprint; of a shard only the keys are read at first."""

    checked_first: ClassVar[bool] = False
    _layout: dict[str, Any] | None = None

    def _look_at(self, meta: dict[str, Any]) -> None:
        if "layout" not in meta:
            raise DamagedFile("its keys are not those of its name")
        self._layout = meta["layout"]

    @property
    def layout(self) -> dict[str, Any] | None:
        """The layers and their columns; None where no row is stored."""
        self._index()
        return self._layout

    def blocks(self, keys: Keys, names: tuple[str, ...] = READ) -> Iterator[tuple[NDArray[np.int64], Arrays]]:
        """As of any mapped folder, by default with all that a row has."""
        return super().blocks(keys, names)

    def collect(self, keep: Keys | None) -> tuple[int, int]:
        """(rows dropped, shards merged): rows of no payload in ``keep`` go, small shards become large ones.

        A shard at a time; shards that are nearly full and keep all of their rows stay as they are.

        Raises:
            LostRows: a shard turned out to be damaged; it was set aside.
        """
        stored = self._index()
        shards, keys, starts = stored.shards, stored.keys, stored.starts
        first = first_ones(keys)
        wanted = first.copy()
        for k, shard in enumerate(shards if keep is not None else ()):
            mine = slice(starts[k], starts[k + 1])
            assert keep is not None
            try:
                payloads = np.array(self._read(shard)["payload_keys"])
            except DamagedFile as error:
                self._lose(shard, error)
                raise LostRows(np.arange(starts[k], starts[k + 1])) from error
            wanted[mine] &= positions(payloads, keep) >= 0
        sizes = [map_tensors(shard, verify=False)[0]["value"].nbytes for shard in shards]
        changed = [k for k in range(len(shards)) if not wanted[starts[k] : starts[k + 1]].all()]
        small = [k for k in range(len(shards)) if sizes[k] < SHARD_BYTES // 2 and k not in changed]
        chosen = changed + (small if len(small) > 1 or changed else [])
        among = np.repeat(np.isin(np.arange(len(shards)), chosen), np.diff(starts))
        written = self._rewrite(keys[wanted & among]) if chosen else set()
        merged = remove_others([shards[k] for k in chosen], written)
        self._forget()
        return int((first & ~wanted).sum()), merged

    def _rewrite(self, keys: Keys) -> set[Path]:
        """Write stored rows again, in shards as large as they may be."""
        layout, written = self.layout, set[Path]()
        assert layout is not None
        parts: list[tuple[Keys, Arrays]] = []
        rows, bytes_a_row = 0, 1
        for index, values in self.blocks(keys, (*READ, "payload_keys")):
            bytes_a_row = max(1, values["value"].nbytes // len(index))
            parts.append((keys[index], values))
            rows += len(index)
            full = max(1, SHARD_BYTES // bytes_a_row)
            while rows >= full:
                taken, parts = _split(parts, full)
                written.add(self.write(*taken, layout))
                rows -= full
        if rows:
            written.add(self.write(*_split(parts, rows)[0], layout))
        return written


def _split(parts: list[tuple[Keys, Arrays]], count: int) -> tuple[tuple[Keys, Arrays], list[tuple[Keys, Arrays]]]:
    """The first ``count`` rows, and the parts that are left."""
    keys = np.concatenate([k for k, _ in parts])
    values = {name: np.concatenate([v[name] for _, v in parts]) for name in parts[0][1]}
    rest = (keys[count:], {name: v[count:] for name, v in values.items()})
    return (keys[:count], {name: v[:count] for name, v in values.items()}), [rest] if len(rest[0]) else []

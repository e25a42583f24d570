"""Chunks of a file that is slow to parse and too large to be held: parsed once, then read from a temporary file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from influence_cli.data.tables import temporary_folder


class Spooled:
    """What gives the same chunks at every call; where there is no room for them they are parsed again."""

    def __init__(self, read: Callable[[], Iterator[pa.Table]]) -> None:
        """The chunks that ``read`` gives, all of one schema."""
        self._read = read
        self._place: str | None = None  # where all of them are
        self._room = True

    def __call__(self) -> Iterator[pa.Table]:
        """All chunks, in order."""
        if self._place is None:
            yield from self._first()
            return
        with pa.OSFile(self._place, "rb") as source, pa.ipc.open_stream(source) as stream:
            yield from (pa.Table.from_batches([batch]) for batch in stream)

    def _first(self) -> Iterator[pa.Table]:
        """The chunks as they are parsed, each written before it is given."""
        place = _new_file() if self._room else None
        sink: Any = None
        writer: Any = None
        whole = False
        try:
            for chunk in self._read():
                table = chunk.combine_chunks()
                if place is not None and self._room:
                    try:
                        sink = sink or pa.OSFile(place, "wb")
                        writer = writer or pa.ipc.new_stream(sink, table.schema)
                        writer.write_table(table)
                    except OSError:  # the disk is full
                        self._room = False
                yield table
            whole = writer is not None and self._room
        finally:
            for opened in (writer, sink):
                try:
                    if opened is not None:
                        opened.close()
                except OSError:
                    whole = False
            if whole:
                self._place = place
            elif place is not None:
                with contextlib.suppress(OSError):
                    os.unlink(place)


def _new_file() -> str | None:
    """An empty file of this run, removed at exit; None where there is no place for one."""
    try:
        handle, place = tempfile.mkstemp(dir=temporary_folder("influence-rows-"), suffix=".arrow")
        os.close(handle)
    except OSError:
        return None
    return place

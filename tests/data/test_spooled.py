"""Chunks of a large file are parsed once, and are the same at every pass, whatever becomes of the temporary file."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pyarrow as pa

from influence_cli.data.sources.spooled import Spooled

CHUNKS = [pa.table({"a": ["x", "", None], "b": ["1", "2", "3"]}), pa.table({"a": ["é"], "b": ["4"]})]
SCHEMA = pa.schema([("a", pa.string()), ("b", pa.string())])


class Parsed:
    """Gives the chunks, and counts how often it was asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Iterator[pa.Table]:
        self.times += 1
        yield from (chunk.cast(SCHEMA) for chunk in CHUNKS)


def test_they_are_parsed_once() -> None:
    parsed = Parsed()
    spooled = Spooled(parsed)
    assert [table.to_pylist() for table in spooled()] == [chunk.to_pylist() for chunk in CHUNKS]
    assert [table.to_pylist() for table in spooled()] == [chunk.to_pylist() for chunk in CHUNKS]
    assert [table.schema for table in spooled()] == [SCHEMA, SCHEMA]
    assert parsed.times == 1


def test_a_pass_that_stops_early_keeps_nothing() -> None:
    parsed = Parsed()
    spooled = Spooled(parsed)
    chunks = spooled()
    next(chunks)
    chunks.close()
    assert len(list(spooled())) == 2
    assert len(list(spooled())) == 2
    assert parsed.times == 2


def test_where_the_disk_is_full_they_are_parsed_again() -> None:
    parsed = Parsed()
    spooled = Spooled(parsed)
    with mock.patch("influence_cli.data.sources.spooled.pa.OSFile", side_effect=OSError(28, "No space left on device")):
        for _ in range(2):
            assert [table.to_pylist() for table in spooled()] == [chunk.to_pylist() for chunk in CHUNKS]
    assert parsed.times == 2

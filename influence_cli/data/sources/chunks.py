"""A table's rows, some at a time, and without the columns that are to be left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from influence_cli.data.request import Columns
from influence_cli.data.sources.protocol import LeftOut, pick
from influence_cli.errors import UsageError, shell_word


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table, and where they are from."""

    table: pa.Table
    where: str
    first: int = 0  # their first row's number
    split: str | None = None  # of all, where a file's or folder's name says so
    prefix: str | None = None  # of ids that are row numbers


Chunks = Callable[[], Iterator[Chunk]]


def without_dropped(chunks: Chunks, columns: Columns) -> tuple[Chunks, Callable[[], tuple[LeftOut, ...]]]:
    """The chunks without the columns that are to be left out; and what says so, once the chunks were looked at."""
    found = dict[str, str]()  # every column that a chunk has, and where

    def others() -> Iterator[Chunk]:
        for chunk in chunks():
            here = [name for name in columns.drop if name in chunk.table.column_names]
            found.update(dict.fromkeys(chunk.table.column_names, chunk.where))
            yield replace(chunk, table=chunk.table.drop_columns(here))

    def dropped() -> tuple[LeftOut, ...]:
        for name in columns.drop:
            pick(list(found), name, (), "drop-column", next(iter(found.values()), ""))
        return tuple(LeftOut(f"column {name}", "--drop-column says so") for name in columns.drop)

    if not columns.drop:
        return chunks, lambda: ()
    single = (columns.label, columns.id, columns.image, columns.weight, columns.group)
    asked = {*single, *columns.text, *columns.features, *columns.keep}
    both = next((name for name in columns.drop if name in asked), None)
    if both is not None:
        what = f"column {both} is asked for, and is to be left out with --drop-column"
        raise UsageError(what, fix=f"leave --drop-column {shell_word(both)} out")
    return others, dropped

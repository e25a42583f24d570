"""Tables on their way out: Parquet, CSV or JSONL by suffix, whole or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from influence_cli.data.earlier import SCORES
from influence_cli.data.formulas import formulas_in, without_formulas
from influence_cli.data.locators import written_to
from influence_cli.data.outputs import writing
from influence_cli.errors import UsageError, shell_word
from influence_cli.store.parquet import write_sealed

TEXT_ROWS = 16_384  # that become text at once


def check_suffix(output: str, suffixes: tuple[str, ...] = (".parquet", ".csv", ".jsonl")) -> None:
    """Refuse an output whose suffix says no form that it can be written in.  Raises UsageError: an unknown suffix."""
    if output != "-" and Path(output).suffix not in suffixes:
        fix = f"use {', '.join(suffixes)}, or - for Parquet"
        why = "unknown suffix"
        if suffixes == (".parquet",):
            why, fix = (
                "a manifest is Parquet",
                f"{fix}; --export {shell_word(output)} writes rows in the form they came in",
            )
        raise UsageError(f"cannot write {output!r}: {why}", fix=fix)


def write_all(data: Any) -> None:
    """Write bytes to standard output, all of them: an unbuffered stream may take a part at a time."""
    left = memoryview(data)
    while len(left):
        left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()


def write_table(table: pa.Table, output: str, kind: str = SCORES) -> None:
    """Write a table of a ``kind`` of ``earlier`` whole or not at all: Parquet to "-", otherwise by suffix."""
    if output == "-":
        sink = pa.BufferOutputStream()
        write_sealed(table, sink)
        write_all(sink.getvalue())
        return
    parts_of = {".csv": csv_parts, ".jsonl": jsonl_parts}.get(Path(output).suffix)
    if parts_of is not None:
        with writing(output, kind) as temporary, temporary.open("wb") as sink:
            sink.writelines(parts_of(table))
    else:
        with writing(output, kind) as temporary, pa.OSFile(str(temporary), "wb") as sink:
            write_sealed(written_to(table, output), sink)


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    """The table some rows at a time: as texts and as Python's values they take many times their memory."""
    for first in range(0, max(1, table.num_rows), TEXT_ROWS):
        yield table.slice(first, TEXT_ROWS)


def _texts(table: pa.Table) -> pa.Table:
    """Binary columns as hex, so that every row is text."""
    for position, field in enumerate(table.schema):
        if pa.types.is_binary(field.type) or pa.types.is_fixed_size_binary(field.type):
            values = [None if v is None else v.hex() for v in table.column(position).to_pylist()]
            table = table.set_column(position, field.name, pa.array(values, pa.string()))
    return table


def csv_parts(table: pa.Table) -> Iterator[bytes]:
    """CSV with a header line, some rows at a time; nothing in it runs as a formula."""
    from pyarrow import csv

    marked = formulas_in(table) > 0
    for k, part in enumerate(_parts(table)):
        sink = pa.BufferOutputStream()
        csv.write_csv(without_formulas(_texts(part), marked), sink, csv.WriteOptions(include_header=k == 0))
        yield sink.getvalue().to_pybytes()


def jsonl_parts(table: pa.Table) -> Iterator[bytes]:
    """One JSON object a line, some rows at a time; NaN is null."""
    for part in _parts(table):
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows_of(part)]
        yield ("\n".join(lines) + "\n").encode() if lines else b""


def as_csv(table: pa.Table) -> bytes:
    """CSV with a header line; nothing in it runs as a formula."""
    return b"".join(csv_parts(table))


def as_jsonl(table: pa.Table) -> bytes:
    """One JSON object a line; NaN is null."""
    return b"".join(jsonl_parts(table))


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as dicts of plain values, NaN as None."""
    rows = _texts(table).to_pylist()
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]

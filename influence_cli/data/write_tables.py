"""Tables on their way out: Parquet, CSV or JSONL by suffix, whole or not at all."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from influence_cli.data.earlier import SCORES
from influence_cli.data.formulas import without_formulas
from influence_cli.data.locators import written_to
from influence_cli.data.outputs import write_output, writing
from influence_cli.errors import UsageError
from influence_cli.store.parquet import write_sealed


def check_suffix(output: str, suffixes: tuple[str, ...] = (".parquet", ".csv", ".jsonl")) -> None:
    """Refuse an output whose suffix says no form that it can be written in.  Raises UsageError: an unknown suffix."""
    if output != "-" and Path(output).suffix not in suffixes:
        fix = f"use {', '.join(suffixes)}, or - for Parquet"
        why = "unknown suffix"
        if suffixes == (".parquet",):
            why, fix = (
                "a manifest is Parquet",
                f"{fix}; --export {shlex.quote(output)} writes rows in the form they came in",
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
    as_text = {".csv": as_csv, ".jsonl": as_jsonl}.get(Path(output).suffix)
    if as_text is not None:
        write_output(output, kind, as_text(table))
    else:
        with writing(output, kind) as temporary, pa.OSFile(str(temporary), "wb") as sink:
            write_sealed(written_to(table, output), sink)


def _texts(table: pa.Table) -> pa.Table:
    """Binary columns as hex, so that every row is text."""
    for position, field in enumerate(table.schema):
        if pa.types.is_binary(field.type) or pa.types.is_fixed_size_binary(field.type):
            values = [None if v is None else v.hex() for v in table.column(position).to_pylist()]
            table = table.set_column(position, field.name, pa.array(values, pa.string()))
    return table


def as_csv(table: pa.Table) -> bytes:
    """CSV with a header line; nothing in it runs as a formula."""
    from pyarrow import csv

    sink = pa.BufferOutputStream()
    csv.write_csv(without_formulas(_texts(table)), sink)
    return sink.getvalue().to_pybytes()


def as_jsonl(table: pa.Table) -> bytes:
    """One JSON object a line; NaN is null."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows_of(table)]
    return ("\n".join(lines) + "\n").encode() if lines else b""


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as dicts of plain values, NaN as None."""
    rows = _texts(table).to_pylist()
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]

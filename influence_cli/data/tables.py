"""Tables on their way in and out: Parquet files and folders, "-", CSV, JSONL, and the provenance they carry."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from influence_cli.data.earlier import SCORES
from influence_cli.data.formulas import as_meant, without_formulas
from influence_cli.data.outputs import write_output, writing
from influence_cli.errors import ManifestError, UsageError
from influence_cli.store.keys import canonical_json

PROVENANCE_KEY = b"influence"
_TEXT = [("id", pa.string()), ("row_key", pa.string())]  # never to be read as numbers or dates


@functools.cache
def _spooled() -> Path:
    """Standard input as a file: Parquet needs seek.  Read once, removed at exit."""
    folder = Path(tempfile.mkdtemp(prefix="influence-stdin-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "stdin.parquet"
    with open(path, "wb") as handle:
        shutil.copyfileobj(sys.stdin.buffer, handle)
    if path.stat().st_size == 0:
        raise ManifestError("standard input is empty", where="-", fix="the stage before it failed, or wrote to a file")
    return path


def parquet_files(source: str) -> list[Path]:
    """The Parquet files behind a path, a folder or "-"; readable, or an error that names the file.

    Raises:
        ManifestError: nothing is there, or it is not Parquet.
    """
    path = _spooled() if source == "-" else Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.parquet") if not p.name.startswith("."))
        if not files:
            raise ManifestError("no Parquet file in the folder", where=source, fix="give a folder of .parquet files")
    elif path.exists():
        files = [path]
    else:
        raise ManifestError("no such file", where=source, fix="check the path")
    for file in files:
        try:
            read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise ManifestError(
                "not readable as Parquet", where=str(file), fix="give a Parquet file (is it truncated?)"
            ) from error
    return files


def read_table(source: Any, columns: list[str] | None = None) -> pa.Table:
    """A table with its schema metadata; .csv and .jsonl are read by suffix; a table in memory is itself.

    Raises:
        ManifestError: it cannot be read.
    """
    if isinstance(source, pa.Table):
        return source if columns is None else source.select(columns)
    source = str(source)
    suffix = Path(source).suffix
    if suffix in (".csv", ".jsonl"):
        from pyarrow import csv
        from pyarrow import json as arrow_json

        try:
            if suffix == ".csv":
                texts = csv.ConvertOptions(column_types=dict(_TEXT))
                return csv.read_csv(as_meant(Path(source)), convert_options=texts)
            return arrow_json.read_json(source, parse_options=arrow_json.ParseOptions(explicit_schema=pa.schema(_TEXT)))
        except (pa.ArrowInvalid, OSError) as error:
            raise ManifestError(f"not readable ({error})", where=source, fix="give the table of a stage") from error
    files = parquet_files(source)
    return concatenated([read_parquet(file, columns) for file in files], source)


def read_schema(file: Path) -> pa.Schema:
    """The schema of a Parquet file, read by path: a colon in a name starts no URI."""
    with pa.OSFile(str(file)) as handle:
        return pq.read_schema(handle)


def read_parquet(file: Path, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file's table.

    Raises:
        ManifestError: it is damaged.
    """
    try:
        with pa.OSFile(str(file)) as handle, pq.ParquetFile(handle) as reader:
            return reader.read(columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(file, error) from error


def damaged(file: Path, error: Exception) -> ManifestError:
    """The error for a Parquet file whose pages cannot be read."""
    return ManifestError(f"damaged Parquet ({str(error).strip()})", where=str(file), fix="write the file again")


def concatenated(tables: list[pa.Table], source: str) -> pa.Table:
    """One table from several files.

    Raises:
        ManifestError: their columns differ.
    """
    try:
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables)
    except pa.ArrowInvalid as error:
        raise ManifestError(
            f"the files have different columns ({error})", where=source, fix="write them with one schema"
        ) from error


def shown(source: Any) -> str:
    """What a table is called in messages."""
    return "the score table" if isinstance(source, pa.Table) else str(source)


def provenance(schema: pa.Schema) -> dict[str, Any]:
    """The provenance a stage wrote into a table, or an empty dict."""
    raw = (schema.metadata or {}).get(PROVENANCE_KEY)
    if raw is None:
        return {}
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    if not isinstance(value, dict) or not all(isinstance(value.get(k), dict) for k in ("manifest", "target", "spec")):
        return {}  # somebody else's
    return value


def with_provenance(table: pa.Table, value: dict[str, Any]) -> pa.Table:
    """The table with ``value`` as its provenance; other schema metadata stay."""
    metadata = {**(table.schema.metadata or {}), PROVENANCE_KEY: canonical_json(value).encode()}
    return table.replace_schema_metadata(metadata)


def check_suffix(output: str, suffixes: tuple[str, ...] = (".parquet", ".csv", ".jsonl")) -> None:
    """Refuse an output whose suffix says no form that it can be written in.

    Raises:
        UsageError: an unknown suffix.
    """
    if output != "-" and Path(output).suffix not in suffixes:
        fix = f"use {', '.join(suffixes)}, or - for Parquet"
        why = "a manifest is Parquet" if suffixes == (".parquet",) else "unknown suffix"
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
        pq.write_table(table, sink)
        write_all(sink.getvalue())
        return
    path = Path(output)
    if path.suffix == ".csv":
        write_output(path, kind, as_csv(table))
    elif path.suffix == ".jsonl":
        write_output(path, kind, as_jsonl(table))
    else:
        with writing(path, kind) as temporary, pa.OSFile(str(temporary), "wb") as sink:
            pq.write_table(table, sink)


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
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float) and value != value:
                row[name] = None
    return rows

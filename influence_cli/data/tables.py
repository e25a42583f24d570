"""Tables on their way in and out: Parquet files and folders, "-", CSV, JSONL, and the provenance they carry."""

from __future__ import annotations

import atexit
import contextlib
import functools
import re
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv
from pyarrow import json as arrow_json

from influence_cli.data.file_contents import refuse_wrong_suffix
from influence_cli.data.folders import walk
from influence_cli.data.formulas import as_meant
from influence_cli.data.ids import Ids, distinct
from influence_cli.data.kinds.protocol import is_text
from influence_cli.data.partitions import own_columns, partitioned, schema_with_folders, with_folders
from influence_cli.data.plain_types import plain_batch, plain_schema, plain_table
from influence_cli.data.provenance_shape import check
from influence_cli.errors import ManifestError, shell_line
from influence_cli.store.files import DamagedFile
from influence_cli.store.keys import KEY_BYTES, Keys, canonical_json, parse_json, stack
from influence_cli.store.lfs import FIX, WHAT, is_pointer
from influence_cli.store.parquet import read_parquet_batches, read_parquet_schema, read_parquet_table
from influence_cli.store.parts import local_tables
from influence_cli.store.remote import called, is_remote, local

PROVENANCE_KEY = b"influence"
SOURCES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xlsx", ".xlsm", ".xls", ".ods", ".npz")  # no manifests
KEY_TEXT = re.compile(r"[0-9a-fA-F]{32}")  # a row key as text
_TEXT = [("id", pa.string()), ("row_key", pa.string())]  # never to be read as numbers or dates


@functools.cache
def temporary_folder(prefix: str) -> Path:
    """A folder for files of this run, removed at exit; the same one for the same prefix."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _spooled() -> Path:
    """Standard input as a file: Parquet needs seek.  Read once."""
    path = temporary_folder("influence-stdin-") / "stdin.parquet"
    with open(path, "wb") as handle:
        while chunk := _from_stdin():
            handle.write(chunk)
    if path.stat().st_size == 0:
        raise ManifestError("standard input is empty", where="-", fix="the stage before it failed, or wrote to a file")
    return path


def _from_stdin() -> bytes:
    """The next bytes of standard input."""
    try:
        return sys.stdin.buffer.read(1 << 20)
    except (OSError, ValueError) as error:  # it is open for writing alone, or is a folder
        why = getattr(error, "strerror", None) or str(error)
        fix = "pipe Parquet into -, or give a file"
        raise ManifestError(f"standard input cannot be read ({why})", where="-", fix=fix) from error


def manifest_command(source: str, label: str = "label") -> str:
    """The command that makes a manifest of a source, beside the working folder's other files, ready for a shell."""
    place = Path(source)
    if is_remote(source) or not place.exists():  # standard input, rows in memory, or an address
        return "influence manifest SOURCE -o manifest.parquet"
    stem = place.stem if place.suffix.lower() in (*SOURCES, ".parquet") else place.resolve().name or "rows"
    output = Path(f"{stem}.parquet")
    if output.exists() or place.suffix == ".parquet":
        output = Path(f"{stem}-manifest.parquet")
    named = [] if label == "label" else ["--label", label]
    return shell_line(["influence", "manifest", source, *named, "-o", str(output)])


def parquet_files(source: str, label: str = "label", taken: list[Path] | None = None) -> list[Path]:
    """The Parquet files behind a path, a folder or "-"; readable, or an error that names the file.

    ``label`` is the column that is asked for, for the command that makes a manifest of what is none; ``taken`` are the
    files of a folder that are meant (default: all).

    Those of a folder know the columns that stand in the names of folders below it, such as ``split=test``.

    Raises:
        ManifestError: nothing is there, or it is not Parquet.
    """
    path = _spooled() if source == "-" else local_tables(source)
    if path.is_dir():
        files = parquet_in(path) if taken is None else taken
        if not files:
            fix = f"give a folder of .parquet files, or make a manifest: {manifest_command(source, label)}"
            raise ManifestError("no Parquet file in the folder", where=source, fix=fix)
    elif path.exists():
        files = [path]
    else:
        raise ManifestError("no such file", where=source, fix="check the path")
    schemas: list[pa.Schema] = []
    for file in files:
        check_regular(str(file))
        try:
            schemas.append(read_parquet_schema(file))
        except DamagedFile as error:
            what, fix = f"not readable as Parquet ({error})", "give a Parquet file (is it truncated, or damaged?)"
            if source == "-":
                fix = "write Parquet into the pipe: influence score ... -o - | influence ... -"
                raise ManifestError("standard input is not readable as Parquet", where="-", fix=fix) from error
            refuse_wrong_suffix(file)
            if file.suffix.lower() in SOURCES:
                what = f"not readable as Parquet: it is {file.suffix.lower()}, and no manifest yet"
                fix = f"make a manifest of it first: {manifest_command(str(file), label)}"
            raise ManifestError(what, where=called(file), fix=fix) from error
    return partitioned(files, path, schemas) if path.is_dir() else files


def parquet_in(folder: Path) -> list[Path]:
    """The Parquet files of a folder and its folders, but for what is hidden; links are followed."""
    return sorted(file for file in walk(folder)[0].everything() if file.suffix == ".parquet")


def check_regular(path: str) -> None:
    """Refuse a pipe or a device in place of a table, which is read more than once, and a Git LFS pointer.

    What is not there passes.

    Raises:
        ManifestError: it is one.
    """
    where = Path(path)
    if where.exists() and not where.is_file():
        what = "a folder" if where.is_dir() else "a pipe, a socket or a device"
        raise ManifestError(f"{what} where a file is needed", where=path, fix="give a file, or pipe Parquet into -")
    if is_pointer(where):
        raise ManifestError(WHAT, where=path, fix=FIX)


def refuse_twins(names: Sequence[str], where: str) -> None:
    """Refuse (ManifestError) two columns of one name."""
    seen = set[str]()
    for name in names:
        if name in seen:
            fix = "rename one of them, or take it out"
            raise ManifestError(f"two columns are called {name!r}", where=f"{where}, column {name}", fix=fix)
        seen.add(name)


def differing(schema: pa.Schema, other: pa.Schema) -> str:
    """The columns that are missing from one of two schemas, or have another type."""
    here, there = (dict(zip(s.names, s.types, strict=True)) for s in (schema, other))
    odd = [n for n in here.keys() | there.keys() if here.get(n) != there.get(n)]
    return ", ".join(sorted(odd, key=lambda n: (n in here and n in there, n)))


def read_table(source: Any, columns: list[str] | None = None, whole: bool = False) -> pa.Table:
    """A table with its schema metadata; .csv and .jsonl are read by suffix; a table in memory is itself.

    With ``whole`` damage in columns of Parquet that are not asked for is noticed too.

    Raises:
        ManifestError: it cannot be read.
    """
    if isinstance(source, pa.Table):
        return source if columns is None else source.select(columns)
    if type(source).__module__.startswith("pandas"):
        return read_table(pa.Table.from_pandas(source, preserve_index=False), columns)
    if not isinstance(source, str | Path):
        fix = "give a path, an Arrow table or a DataFrame"
        raise ManifestError(f"a {type(source).__name__} is no table", fix=fix)
    source = str(source)
    suffix = Path(source).suffix
    if suffix not in (".csv", ".jsonl"):
        return concatenated([read_parquet(file, columns, whole) for file in parquet_files(source)], source)
    file = local(source)
    check_regular(str(file))
    try:
        if suffix == ".csv":
            texts = csv.ConvertOptions(column_types=dict(_TEXT))
            table = csv.read_csv(as_meant(file), convert_options=texts)
        else:
            options = arrow_json.ParseOptions(explicit_schema=pa.schema(_TEXT))
            table = arrow_json.read_json(str(file), parse_options=options)
        table.validate(full=True)  # text is UTF-8
        return table
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise ManifestError(f"not readable ({error})", where=source, fix="give the table of a stage") from error


def schema_of(source: Any) -> pa.Schema:
    """The schema of what ``read_table`` reads; of Parquet no value is read."""
    if isinstance(source, str | Path) and Path(source).suffix not in (".csv", ".jsonl"):
        return read_schema(parquet_files(str(source))[0])
    return read_table(source).schema


def read_schema(file: Path) -> pa.Schema:
    """The schema of a Parquet file, with the types that columns are read as.  Raises ManifestError: it is damaged."""
    with _damage_named(file):
        return schema_with_folders(file, plain_schema(read_parquet_schema(file)))


def read_parquet(file: Path, columns: list[str] | None = None, whole: bool = False) -> pa.Table:
    """A Parquet file's table, looked at ``whole`` or as far as is asked for.  Raises ManifestError: it is damaged."""
    with _damage_named(file):
        table = plain_table(read_parquet_table(file, own_columns(file, columns), whole), str(file))
        return with_folders(file, table, columns)


def read_batches(file: Path, size: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A Parquet file's rows, streamed.  Raises ManifestError: it is damaged."""
    with _damage_named(file):
        for batch in read_parquet_batches(file, size, own_columns(file, columns)):
            yield with_folders(file, plain_batch(batch, str(file)), columns)


@contextlib.contextmanager
def _damage_named(file: Path) -> Generator[None]:
    """A Parquet file that cannot be read, or is not as it was written, is an error that names it."""
    try:
        yield
    except DamagedFile as error:
        what = f"damaged Parquet ({str(error).strip()})"
        raise ManifestError(what, where=called(file), fix="write the file again") from error


def row_keys_of(table: pa.Table, where: str, ids_checked: bool = False) -> Keys:
    """The row keys [n, 16] of a stage's table, whose ids are each there once; ``ids_checked``: as is known.

    Raises:
        ManifestError: as ``keyed_rows`` does.
    """
    ids, keys = (table.column(n) if table.column_names.count(n) == 1 else None for n in ("id", "row_key"))
    plain = ids is not None and is_text(ids.type) and ids.null_count == 0
    if ids is not None and plain and keys is not None and keys.type == pa.binary(KEY_BYTES) and keys.null_count == 0:
        once = ids_checked or distinct(Ids(ids))
        parts = [_fixed(chunk) for chunk in keys.chunks] if once else []
        if once:
            return parts[0] if len(parts) == 1 else np.concatenate([stack([]), *parts])
    return stack([key for _, key in keyed_rows(table, where).values()])  # or the error that says what is wrong


def _fixed(chunk: pa.Array) -> Keys:
    """Keys [n, 16] of a column of them without null, as Arrow holds them."""
    raw = np.frombuffer(chunk.buffers()[1] or b"", np.uint8)
    return raw[chunk.offset * KEY_BYTES : (chunk.offset + len(chunk)) * KEY_BYTES].reshape(-1, KEY_BYTES)


def keyed_rows(table: pa.Table, where: str) -> dict[str, tuple[int, bytes]]:
    """Where each row of a stage's table stands, by id, and its row key; every id there once.

    Raises:
        ManifestError: no ids or row keys, of another type, null, malformed, or an id that is there twice.
    """
    for needed in ("id", "row_key"):
        if table.column_names.count(needed) != 1:
            what = f"no column {needed!r}" if needed not in table.column_names else f"two columns {needed!r}"
            raise ManifestError(what, where=where, fix="give a table that `score` wrote")
    kind = table.schema.field("id").type
    if not (is_text(kind) or pa.types.is_dictionary(kind)):
        raise ManifestError(f"ids are {kind}, not strings", where=f"{where}, column id", fix="cast them to string")
    places: dict[str, tuple[int, bytes]] = {}
    keys = table.column("row_key").to_pylist()
    for row, (name, key) in enumerate(zip(table.column("id").to_pylist(), keys, strict=True)):
        if not isinstance(name, str):
            raise ManifestError("an id is null", where=f"{where}, row {row}, column id", fix="name every row")
        if name in places:
            fix = "keep one row of each id, or run the stage again that wrote the table"
            raise ManifestError("an id is there twice", where=f"{where}, row id={name}", fix=fix)
        found = _row_key(key)
        if found is None:
            what = "a row key is null" if key is None else f"no row key: {key!r}"
            at = f"{where}, row id={name}, column row_key"
            raise ManifestError(what, where=at, fix="give the table as the stage wrote it")
        places[name] = row, found
    return places


def _row_key(value: Any) -> bytes | None:
    """A row key as bytes, from hex where it is text; None where it is none."""
    try:
        key = bytes.fromhex(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return key if isinstance(key, bytes) and len(key) == KEY_BYTES else None


def numbers(table: pa.Table, name: str, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    """A column as float64, or as ``kind``, nulls kept.

    Raises:
        ManifestError: it is there twice, or holds something else.
    """
    if table.column_names.count(name) != 1:
        raise ManifestError(f"two columns {name!r}", where=f"column {name}", fix="rename or drop one")
    try:
        return table.column(name).cast(kind or pa.float64())
    except pa.ArrowException as error:
        what = f"column {name} holds something that is no number ({error})"
        raise ManifestError(what, where=f"column {name}", fix="give the table as the stage wrote it") from error


def concatenated(tables: list[pa.Table], source: str) -> pa.Table:
    """One table from several files.  Raises ManifestError: their columns differ."""
    try:
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables)
    except pa.ArrowInvalid as error:
        what = f"the files have different columns ({error})"
        raise ManifestError(what, where=source, fix="write them with one schema") from error


def shown(source: Any) -> str:
    """What a table is called in messages."""
    if isinstance(source, str | Path):
        return str(source)
    return "the score table" if isinstance(source, pa.Table) else f"the {type(source).__name__}"


def provenance(schema: pa.Schema, where: str = "") -> dict[str, Any]:
    """The provenance a stage wrote into a table, or an empty dict; ManifestError: it is not as any stage writes it."""
    try:
        value = parse_json((schema.metadata or {}).get(PROVENANCE_KEY, b"{}"))
    except ValueError:
        return {}
    ours = isinstance(value, dict) and all(isinstance(value.get(k), dict) for k in ("manifest", "target", "spec"))
    if ours:
        check(value, where)
    return value if ours else {}


def with_provenance(table: pa.Table, value: dict[str, Any]) -> pa.Table:
    """The table with ``value`` as its provenance; other schema metadata stay."""
    metadata = {**(table.schema.metadata or {}), PROVENANCE_KEY: canonical_json(value).encode()}
    return table.replace_schema_metadata(metadata)

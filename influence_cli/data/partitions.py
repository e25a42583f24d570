"""Columns that stand in the names of folders: ``split=test/part.parquet``, as Spark, DuckDB and pyarrow write them.

Every folder below the one that was given counts.  Names and values are URL-decoded, and
``__HIVE_DEFAULT_PARTITION__`` is null.  A column is of integers where all its values are, as written without zeros in
front; ``weight`` is of numbers; others are text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

import pyarrow as pa

from influence_cli.data.splits import split_of
from influence_cli.errors import ManifestError

NULL = "__HIVE_DEFAULT_PARTITION__"
NEEDED = ("id", "label", "split", "group", "weight", "clean_label")  # what a row may not lack where others have it
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_Rows = TypeVar("_Rows", pa.Table, pa.RecordBatch)
_AnyPath = Path if TYPE_CHECKING else type(Path())  # before Python 3.12 Path itself is not to be derived from


class PartitionedFile(_AnyPath):
    """A Parquet file with the columns that stand in the names of its folders, and the folder that holds them all."""

    base: Path
    outside: dict[str, pa.Scalar]  # columns that the file has not
    inside: dict[str, pa.Scalar]  # columns that it has too, whose values must be these


def partitioned(files: Sequence[Path], base: Path, schemas: Sequence[pa.Schema]) -> list[Path]:
    """The files below ``base``, with the columns in the names of their folders; as they are where there are none.

    Raises:
        ManifestError: a name is there twice in a path, or some files lack a column that says what a row is.
    """
    found = _with_splits([_named_in(file, base) for file in files])
    names = dict.fromkeys(name for values in found for name in values)
    types = {name: _type(name, [values.get(name) for values in found]) for name in names}
    if not types:
        return list(files)
    made: list[Path] = []
    for file, values, schema in zip(files, found, schemas, strict=True):
        lacking = [n for n in types if n not in values and n not in schema.names and n in NEEDED]
        if lacking:
            what = f"other files stand in folders {lacking[0]}=..., which say its {lacking[0]}, and this one does not"
            raise ManifestError(what, where=str(file), fix=f"move it into such a folder, or out of {base}")
        scalars = {name: _scalar(values.get(name), kind) for name, kind in types.items()}
        one = PartitionedFile(file)
        one.base = base
        one.outside = {name: value for name, value in scalars.items() if name not in schema.names}
        one.inside = {name: scalars[name] for name in values if name in schema.names}
        made.append(one)
    return made


def _named_in(file: Path, base: Path) -> dict[str, str | None]:
    """The names and values in the folders between ``base`` and a file."""
    values: dict[str, str | None] = {}
    for part in file.relative_to(base).parts[:-1]:
        name, equals, text = part.partition("=")
        if not (name and equals):
            continue
        if unquote(name) in values:
            what = f"two of its folders say {unquote(name)}"
            raise ManifestError(what, where=str(file), fix="keep one of them")
        values[unquote(name)] = None if text == NULL else unquote(text)
    return values


def _with_splits(found: list[dict[str, str | None]]) -> list[dict[str, str | None]]:
    """The names and values, with a name called split whose values are all those of splits, such as Split or subset."""
    names = dict.fromkeys(name for values in found for name in values)
    if "split" in names:
        return found
    for name in names:
        known = {values[name] for values in found if values.get(name) is not None}
        if known and all(split_of(str(value)) is not None for value in known):
            return [{("split" if key == name else key): value for key, value in values.items()} for values in found]
    return found


def _type(name: str, values: Sequence[str | None]) -> pa.DataType:
    known = [value for value in values if value is not None]
    if name == "weight":
        return pa.float64()
    return pa.int64() if known and all(_INTEGER.fullmatch(value) for value in known) else pa.string()


def _scalar(value: str | None, kind: pa.DataType) -> pa.Scalar:
    try:
        return pa.scalar(value, pa.string()).cast(kind)
    except pa.ArrowInvalid as error:
        fix = "name the folders by numbers"
        raise ManifestError(
            f"{value!r} in the name of a folder is no number", where="column weight", fix=fix
        ) from error


def folder_of(file: Path) -> Path:
    """What relative paths in a file count from, and where files beside it are looked for."""
    return file.base if isinstance(file, PartitionedFile) else file.parent


def names_in_folders(files: Sequence[Path]) -> list[str]:
    """The columns that stand in names of folders alone."""
    names = [name for file in files if isinstance(file, PartitionedFile) for name in file.outside]
    return list(dict.fromkeys(names))


def own_columns(file: Path, columns: list[str] | None) -> list[str] | None:
    """Those of the columns that the file itself has."""
    if columns is None or not isinstance(file, PartitionedFile):
        return columns
    return [name for name in columns if name not in file.outside]


def with_folders(file: Path, rows: _Rows, columns: list[str] | None = None) -> _Rows:
    """Rows of a file with the columns, or those asked for, that stand in the names of its folders.

    Raises:
        ManifestError: the file has such a column too, with another value.
    """
    if not isinstance(file, PartitionedFile):
        return rows
    for name, value in file.inside.items():
        if name in rows.schema.names and not _all_are(rows.column(name), value):
            what = f"column {name} has other values than the name of its folder, {name}={value.as_py()}"
            raise ManifestError(what, where=f"{file}, column {name}", fix="rename the folder, or drop the column")
    for name, value in file.outside.items():
        if columns is None or name in columns:
            rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
    return rows


def schema_with_folders(file: Path, schema: pa.Schema) -> pa.Schema:
    """A file's schema with the columns that stand in the names of its folders."""
    for name, value in file.outside.items() if isinstance(file, PartitionedFile) else ():
        schema = schema.append(pa.field(name, value.type))
    return schema


def _all_are(column: pa.ChunkedArray | pa.Array, value: pa.Scalar) -> bool:
    """Whether every value of a column is the one in the folder's name, whatever its type."""
    try:
        found = column.cast(value.type).unique().to_pylist()
    except pa.ArrowException:
        return False
    return found in ([], [value.as_py()])

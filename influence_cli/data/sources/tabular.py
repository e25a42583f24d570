"""CSV, TSV, JSONL and Parquet: a label column, and images by path or bytes, or numeric features."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from influence_cli.data.classes import read_names
from influence_cli.data.kinds import kind_in
from influence_cli.data.request import Columns
from influence_cli.data.sources.protocol import (
    ID_NAMES,
    IMAGE_NAMES,
    KEPT,
    LABEL_NAMES,
    Source,
    one_numbering,
    pick,
    split_of,
    usual_splits,
)
from influence_cli.data.tables import parquet_files, read_batches, read_schema
from influence_cli.errors import ManifestError


def read_text_table(path: Path, columns: Columns) -> Source:
    """A CSV, TSV or JSONL file.

    Raises:
        ManifestError: it cannot be parsed, or has no label or payload column.
    """
    from influence_cli.data.sources.text_file import read_text_file

    table = read_text_file(path, columns)
    shaped = shape_table(table, columns, str(path), 0, None)
    return Source(path.suffix.lower().lstrip("."), lambda: iter([shaped]), None, str(path.parent))


def read_frame(source: Any, columns: Columns) -> Source:
    """An Arrow table, or a pandas or polars DataFrame; relative paths count from the working folder.

    Raises:
        ManifestError: it is none of these, or has no label or payload column.
    """
    from influence_cli.data.in_memory import as_table, name_of

    table = as_table(source)
    if table is None:
        fix = "give a path, an Arrow table or a DataFrame"
        raise ManifestError(f"cannot make a manifest from a {type(source).__name__}", fix=fix)
    shaped = shape_table(table, columns, name_of(source), 0, None)
    return Source(type(source).__name__, lambda: iter([shaped]), class_names(table.schema, columns), ".")


def read_parquet(path: Path, columns: Columns) -> Source:
    """A Parquet file or folder; file names such as ``train-00000-of-00002.parquet`` say the split."""
    files = parquet_files(str(path))
    classes = one_numbering({str(file): class_names(read_schema(file), columns) for file in files})

    def tables() -> Iterator[pa.Table]:
        for file in files:
            split = split_of(file.name.partition("-")[0].partition(".")[0]) or split_of(file.parent.name)
            first = 0
            for batch in read_batches(file, 4096):
                name = file.stem if len(files) > 1 else None
                yield shape_table(pa.Table.from_batches([batch]), columns, str(file), first, split, name)
                first += batch.num_rows

    return Source("Parquet", tables, classes, str(files[0].parent))


def class_names(schema: pa.Schema, columns: Columns) -> tuple[str, ...] | None:
    """Class names from the schema key ``classes``, or from Hugging Face's ClassLabel."""
    metadata = schema.metadata or {}
    if b"classes" in metadata:
        return read_names(metadata[b"classes"], "the schema")
    if b"huggingface" in metadata:
        features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
        label = pick(list(features), columns.label, LABEL_NAMES, "label", "schema")
        names = features.get(label, {}).get("names") if label else None
        return tuple(names) if names else None
    return None


def shape_table(
    table: pa.Table, columns: Columns, where: str, first: int, split: str | None, prefix: str | None = None
) -> pa.Table:
    """The rows with a manifest's column names; ids are row numbers where there is no id column.

    Raises:
        ManifestError: no label column, or nothing that could be the payload.
    """
    names = table.column_names
    label = pick(names, columns.label, LABEL_NAMES, "label", where)
    if label is None:
        raise ManifestError("no label column", where=where, fix=f"name it with --label; there are: {', '.join(names)}")
    out: dict[str, Any] = {"id": _ids(table, columns, where, first, prefix)}
    out.update(_payload(table, columns, where, label))
    out["label"] = table.column(label)
    for name in KEPT:
        if name in names and name != label:
            out[name] = usual_splits(table.column(name), where) if name == "split" else table.column(name)
    if "split" not in out and split is not None:
        out["split"] = pa.array([split] * table.num_rows)
    return pa.table(out)


def _ids(table: pa.Table, columns: Columns, where: str, first: int, prefix: str | None) -> Any:
    name = pick(table.column_names, columns.id, ID_NAMES, "id", where)
    if name is not None:
        return pc.cast(table.column(name), pa.string())
    start = f"{prefix}-" if prefix else "row-"
    return pa.array([f"{start}{first + k}" for k in range(table.num_rows)])


def _payload(table: pa.Table, columns: Columns, where: str, label: str) -> dict[str, Any]:
    image = None if columns.features else pick(table.column_names, columns.image, IMAGE_NAMES, "image", where)
    if image is not None:
        kind = table.schema.field(image).type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return {"path": pc.cast(table.column(image), pa.string())}
        return {"image": table.column(image)}
    kind = None if columns.features else kind_in(table.column_names)
    if kind is not None:
        return {name: table.column(name) for name in kind.columns}
    taken = {label, "id", columns.id, *KEPT}
    numeric = columns.features or tuple(
        f.name for f in table.schema if f.name not in taken and (pa.types.is_integer(f.type) or _is_float(f.type))
    )
    if not numeric:
        raise ManifestError(
            "no payload: neither an image column nor numeric features",
            where=where,
            fix=f"name it with --image or --features; there are: {', '.join(table.column_names)}",
        )
    values = [pick(table.column_names, name, (), "features", where) for name in numeric]
    stacked = [pc.cast(table.column(v), pa.float32()).to_pylist() for v in values]
    return {"features": pa.array([list(row) for row in zip(*stacked, strict=True)], pa.list_(pa.float32()))}


def _is_float(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_boolean(kind)

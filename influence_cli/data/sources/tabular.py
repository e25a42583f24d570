"""CSV, TSV, JSONL and Parquet: a label column, and images by path or bytes, or numeric features.

Of text files, ids are as they are written, and labels whose digits are names are names.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from pyarrow import json as arrow_json

from influence_cli.data.classes import CLEAN, read_names
from influence_cli.data.folders import walk
from influence_cli.data.formulas import as_meant
from influence_cli.data.kinds import kind_in
from influence_cli.data.kinds.protocol import is_text
from influence_cli.data.open import as_table, name_of
from influence_cli.data.partitions import folder_of, names_in_folders
from influence_cli.data.request import Columns
from influence_cli.data.sources.other_files import files_left_out, passed_by
from influence_cli.data.sources.protocol import (
    ID_NAMES,
    IMAGE_NAMES,
    KEPT,
    LABEL_NAMES,
    LeftOut,
    Source,
    one_numbering,
    pick,
    usual_splits,
)
from influence_cli.data.splits import split_of_file
from influence_cli.data.tables import parquet_files, read_batches, read_schema
from influence_cli.errors import ManifestError

_PADDED = re.compile(r"[+-]?0[0-9]")  # 007: a name, not the number 7


def read_text_table(path: Path, columns: Columns) -> Source:
    """A CSV, TSV or JSONL file.  Raises ManifestError: it cannot be parsed, or has no label or payload column."""
    shaped = shape_table(read_text_file(path, columns), columns, str(path), 0, None)
    return Source(path.suffix.lower().lstrip("."), lambda: iter([shaped]), None, str(path.parent))


def read_frame(source: Any, columns: Columns) -> Source:
    """An Arrow table, or a pandas or polars DataFrame; relative paths count from the working folder.

    Raises:
        ManifestError: it is none of these, or has no label or payload column.
    """
    table = as_table(source)
    if table is None:
        fix = "give a path, an Arrow table or a DataFrame"
        raise ManifestError(f"cannot make a manifest from a {type(source).__name__}", fix=fix)
    shaped = shape_table(table, columns, name_of(source), 0, None)
    return Source(type(source).__name__, lambda: iter([shaped]), class_names(table.schema, columns), ".")


def read_parquet(path: Path, columns: Columns) -> Source:
    """A Parquet file or folder; names such as ``train-00000-of-00002.parquet``, or ``split=train``, say the split."""
    files = parquet_files(str(path))
    unasked, stems = _unasked(files, columns), Counter(file.stem for file in files)
    classes = one_numbering({str(file): class_names(read_schema(file), columns) for file in files})

    def tables() -> Iterator[pa.Table]:
        for file in files:
            split = split_of_file(file)
            name = None if len(files) == 1 else file.stem
            if stems[file.stem] > 1:  # of several folders, whose rows would have the same ids
                name = file.relative_to(path).with_suffix("").as_posix()
            first = 0
            for batch in read_batches(file, 4096):
                table = pa.Table.from_batches([batch]).drop_columns(unasked)
                yield shape_table(table, columns, str(file), first, split, name)
                first += batch.num_rows

    why = "it stands in names of folders, and --features does not name it"
    left_out = [LeftOut(f"column {name}", why) for name in unasked]
    return Source("Parquet", tables, classes, str(folder_of(files[0])), (*left_out, *_beside(files, path)))


def _beside(files: Sequence[Path], path: Path) -> list[LeftOut]:
    """The files of a folder beside its Parquet; images may be named by rows."""
    if not path.is_dir():
        return []
    folder, passed = walk(path)
    read, why = {str(file) for file in files}, "the folder is read as Parquet, since it holds some"
    others = [file for file in folder.everything() if str(file) not in read]
    return [*passed_by(passed, path), *files_left_out(others, path, f"{why}; its rows may name images", why)]


def _unasked(files: Sequence[Path], columns: Columns) -> list[str]:
    """Columns that stand in names of folders, and are no label, id, split or other column of a manifest."""
    names = read_schema(files[0]).names
    label = pick(names, columns.label, LABEL_NAMES, "label", str(files[0]))
    identity = pick(names, columns.id, ID_NAMES, "id", str(files[0]))
    asked = {label, identity, columns.image, *columns.features, *KEPT}
    return [name for name in names_in_folders(files) if name not in asked]


def class_names(schema: pa.Schema, columns: Columns) -> tuple[str, ...] | None:
    """Class names from the schema key ``classes``, or from Hugging Face's ClassLabel."""
    metadata = schema.metadata or {}
    if b"classes" in metadata:
        return read_names(metadata[b"classes"], "the schema")
    if b"huggingface" in metadata:
        return described_classes(json.loads(metadata[b"huggingface"]).get("info", {}), columns, "schema")
    return None


def described_classes(description: dict[str, Any], columns: Columns, where: str) -> tuple[str, ...] | None:
    """The names of the classes in Hugging Face's description of a table, where its labels are numbers with names."""
    features = description.get("features") or {}
    label = pick(list(features), columns.label, LABEL_NAMES, "label", where)
    names = None if label is None else features[label].get("names")
    return tuple(names) if names else None


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
    return pa.array([f"{prefix or 'row'}-{first + k}" for k in range(table.num_rows)])


def _payload(table: pa.Table, columns: Columns, where: str, label: str) -> dict[str, Any]:
    image = None if columns.features else pick(table.column_names, columns.image, IMAGE_NAMES, "image", where)
    if image is not None:
        if is_text(table.schema.field(image).type):
            return {"path": pc.cast(table.column(image), pa.string())}
        return {"image": table.column(image)}
    kind = None if columns.features else kind_in(table.column_names)
    if kind is not None:
        return {name: table.column(name) for name in kind.columns}
    taken = {label, "id", columns.id, *KEPT}
    numeric = columns.features or [f.name for f in table.schema if f.name not in taken and _is_number(f.type)]
    if not numeric:
        fix = f"name it with --image or --features; there are: {', '.join(table.column_names)}"
        raise ManifestError("no payload: neither an image column nor numeric features", where=where, fix=fix)
    values = [pick(table.column_names, name, (), "features", where) for name in numeric]
    stacked = [pc.cast(table.column(v), pa.float32()).to_pylist() for v in values]
    return {"features": pa.array([list(row) for row in zip(*stacked, strict=True)], pa.list_(pa.float32()))}


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def read_text_file(path: Path, columns: Columns) -> pa.Table:
    """A CSV, TSV or JSONL file.

    Ids are text.  Labels are numbers where every one of them is; 007, true and dates are names, and clean labels are
    what labels are.

    Raises:
        ManifestError: it cannot be parsed, has no rows, or a column that is needed is not UTF-8.
    """
    where = str(path)
    try:
        table = arrow_json.read_json(path) if path.suffix.lower() in (".jsonl", ".ndjson") else _read_csv(path, columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise ManifestError(f"cannot be parsed ({error})", where=where, fix="check the file") from error
    if table.num_rows == 0:
        raise ManifestError("the file has no rows", where=where, fix="give a file with a row for each example")
    needed = {_label(table.column_names, columns), columns.id, columns.image, *ID_NAMES, *IMAGE_NAMES, *KEPT}
    for field in table.schema:
        if field.name in needed and pa.types.is_binary(field.type):
            raise ManifestError("the text is not UTF-8", where=f"{where}, column {field.name}", fix="save it as UTF-8")
    return table


def _label(names: list[str], columns: Columns) -> str | None:
    return columns.label if columns.label in names else pick(names, None, LABEL_NAMES, "label", "")


def _read_csv(path: Path, columns: Columns) -> pa.Table:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    inferred = csv.read_csv(as_meant(path, delimiter), parse_options=parsing)
    names = inferred.column_names
    identity = columns.id if columns.id in names else pick(names, None, ID_NAMES, "id", "")
    label = _label(names, columns)
    texts = {n: pa.string() for n in (identity, label, CLEAN) if n is not None and names.count(n) == 1}
    if not texts or any(pa.types.is_binary(inferred.schema.field(n).type) for n in texts):
        return inferred
    reading = csv.ConvertOptions(null_values=[""], strings_can_be_null=True, column_types=texts)
    reading.include_columns = list(texts)
    as_written = csv.read_csv(as_meant(path, delimiter), parse_options=parsing, convert_options=reading)
    named = False  # whether the labels are names: then the clean labels are too
    for name in texts:
        kind = inferred.schema.field(name).type
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)
        number = number and not any(_PADDED.match(v) for v in as_written[name].to_pylist() if v)
        if name != identity and number and not (name == CLEAN and named):
            continue
        named = named or name == label
        inferred = inferred.set_column(names.index(name), name, as_written[name])
    return inferred

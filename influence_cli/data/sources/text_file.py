"""CSV, TSV and JSONL files as Arrow tables: ids as they are written, and labels whose digits are names as names."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
from pyarrow import csv
from pyarrow import json as arrow_json

from influence_cli.data.classes import CLEAN
from influence_cli.data.formulas import as_meant
from influence_cli.data.request import Columns
from influence_cli.data.sources.protocol import ID_NAMES, IMAGE_NAMES, KEPT, LABEL_NAMES, pick
from influence_cli.errors import ManifestError

_PADDED = re.compile(r"[+-]?0[0-9]")  # 007: a name, not the number 7


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
    reading = csv.ConvertOptions(
        column_types=texts, include_columns=list(texts), null_values=[""], strings_can_be_null=True
    )
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

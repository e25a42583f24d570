"""Tables: CSV, TSV, Excel, lines of JSON, Parquet and frames; a label column, and images or features.

A table is looked at twice: what its columns hold, over all rows, and then its rows, chunk by chunk.  Of text files, ids
are as they are written, and labels whose digits are names are names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from influence_cli.data.classes import CLEAN, read_names
from influence_cli.data.frames import as_table, index_said, name_of
from influence_cli.data.kinds.protocol import is_text
from influence_cli.data.label_kinds import CLASSES, DEFAULT, NUMBERS, SEVERAL, TASKS
from influence_cli.data.plain_types import pc, plain_table
from influence_cli.data.request import Columns
from influence_cli.data.sources.chunks import Chunk, Chunks, without_dropped
from influence_cli.data.sources.copies_by_task import copies_of
from influence_cli.data.sources.features import (
    as_texts,
    column_of,
    numbers_of,
    with_medians,
)
from influence_cli.data.sources.label_copies import refuse_copies
from influence_cli.data.sources.label_deciders import label_deciders, said_of_deciders
from influence_cli.data.sources.label_values import labels_of, said_of_numbers
from influence_cli.data.sources.like_earlier import later, recipe_of
from influence_cli.data.sources.payload_columns import payload_columns
from influence_cli.data.sources.protocol import (
    LABEL_NAMES,
    LeftOut,
    Source,
    pick,
    usual_splits,
)
from influence_cli.data.sources.roles import Roles, Seen, decide, needs_survey
from influence_cli.data.sources.survey import EXACT_WHOLE, PLAIN, Survey, text_of_bytes, texts_in
from influence_cli.data.sources.text_files import open_text
from influence_cli.data.splits import split_of
from influence_cli.data.tables import refuse_twins
from influence_cli.errors import ManifestError
from influence_cli.store.keys import parse_json

CHUNK = 16_384  # rows of a table in memory that are made features at once


def read_text_table(path: Path, columns: Columns) -> Source:
    """A CSV, TSV, Excel or JSON file.  Raises ManifestError: it cannot be parsed, or has no label or payload column."""
    text = open_text(path, columns)

    def chunks() -> Iterator[Chunk]:
        first = 0
        for table in text.chunks():
            yield Chunk(plain_table(table, str(path)), str(path), first)
            first += table.num_rows

    as_text = path.suffix.lower() in (".csv", ".tsv")
    form = path.suffix.lower().lstrip(".")
    return table_source(form, chunks, columns, None, str(path.parent), as_text, text.marks, text.taken)


def read_frame(source: Any, columns: Columns) -> Source:
    """An Arrow table, or a pandas or polars DataFrame; relative paths count from the working folder.

    Raises:
        ManifestError: it is none of these, or has no label or payload column.
    """
    table = as_table(source)
    if table is None:
        fix = "give a path, an Arrow table or a DataFrame"
        raise ManifestError(f"cannot make a manifest from a {type(source).__name__}", fix=fix)
    where = name_of(source)
    refuse_twins(table.column_names, where)
    plain = plain_table(table, where)

    def chunks() -> Iterator[Chunk]:
        for first in range(0, max(plain.num_rows, 1), CHUNK):
            yield Chunk(plain.slice(first, CHUNK), where, first)

    index = index_said(table) if columns.id is None else ""
    classes, taken = class_names(table.schema, columns), (index,) if index else ()
    return table_source(type(source).__name__, chunks, columns, classes, ".", taken=taken)


def class_names(schema: pa.Schema, columns: Columns) -> tuple[str, ...] | None:
    """Class names from the schema key ``classes``, or from Hugging Face's ClassLabel."""
    metadata = schema.metadata or {}
    if b"classes" in metadata:
        return read_names(metadata[b"classes"], "the schema")
    if b"huggingface" in metadata:
        try:
            described = parse_json(metadata[b"huggingface"])["info"]
        except (ValueError, TypeError, KeyError):
            return None  # it is not what datasets writes
        return described_classes(described, columns, "schema") if isinstance(described, dict) else None
    return None


def described_classes(description: dict[str, Any], columns: Columns, where: str) -> tuple[str, ...] | None:
    """The names of the classes in Hugging Face's description of a table, where its labels are numbers with names."""
    features = description.get("features")
    if not isinstance(features, dict):
        return None
    several = TASKS[columns.task or DEFAULT].holds == SEVERAL and columns.label not in (None, *features)
    label = None if several else pick(list(features), columns.label, LABEL_NAMES, "label", where)
    about = {} if label is None else features[label]
    about = about[0] if isinstance(about, list) and about else about  # a list of one: as older versions write lists
    names = about.get("names") or (about.get("feature") or {}).get("names") if isinstance(about, dict) else None
    return tuple(map(str, names)) if names and isinstance(names, list) else None


def table_source(
    form: str,
    chunks: Chunks,
    columns: Columns,
    classes: tuple[str, ...] | None,
    folder: str,
    as_text: bool = False,
    marks: str = "",
    taken: tuple[str, ...] = (),
    left_out: tuple[LeftOut, ...] = (),
) -> Source:
    """The source of a table's chunks: its columns are looked at over all rows, and then read by their roles."""
    chunks, dropped = without_dropped(chunks, columns)
    seen = look_at(chunks, columns, as_text, marks)
    left_out += dropped()
    if columns.like is None:
        roles = _decided(chunks, seen, columns)
    else:
        recipe, classes = recipe_of(columns.like)
        roles = later(seen, columns, recipe, columns.like)
    roles = replace(roles, notes=(*roles.notes, *said_of_numbers(roles, seen)))
    counts = Counter[str]()

    def tables() -> Iterator[pa.Table]:
        counts.clear()
        for chunk in chunks():
            yield shape(chunk, roles, seen, counts)

    def narrow() -> Iterator[pa.Table]:
        return (shape(chunk, roles, seen, Counter(), payload=False) for chunk in chunks())

    names = tuple(name for f in roles.features for name in f.names)
    said = (*taken, *roles.said())
    written = {"weight_form": None if roles.weight is None else seen.form(roles.weight), "marks": seen.marks}
    return Source(
        form, tables, roles.labels or classes, folder, (*left_out, *roles.left_out), taken=said,
        columns=roles.as_dict() | written, names=names, narrow=narrow, counts=counts, task=roles.task,
    )  # fmt: skip


def _decided(chunks: Chunks, seen: Seen, columns: Columns) -> Roles:
    """The role of every column, with the medians of its features; one that is the label is refused, unless named."""
    roles = decide(seen, columns)
    by_class = TASKS[roles.task].holds == CLASSES
    copies = copies_of(chunks, roles, seen)
    if len(copies) < len(roles.features):  # otherwise nothing would be left
        refuse_copies([(of, copy) for of, copy in copies if copy.column not in columns.features], seen.where)
    roles = replace(roles, notes=(*roles.notes, *(copy.said(of) for of, copy in copies)))
    tables = (chunk.table for chunk in chunks())
    named = {copy.column for _, copy in copies}
    deciding = label_deciders(tables, roles.label, roles.features, named) if by_class else []
    roles = replace(roles, notes=(*roles.notes, *said_of_deciders(deciding, roles.label)))
    features = with_medians(roles.features, seen.rows, lambda: _trained(chunks, roles))
    return replace(roles, features=tuple(features))


def _trained(chunks: Chunks, roles: Roles) -> Iterator[tuple[pa.Table, Any]]:
    """The tables, and which of their rows are of no other split than train."""
    for chunk in chunks():
        split = [chunk.split] * chunk.table.num_rows
        if roles.split is not None:
            split = as_texts(column_of(chunk.table, roles.split)).to_pylist()
        yield chunk.table, np.array([s is None or split_of(s) == "train" for s in split], dtype=bool)


def look_at(chunks: Chunks, columns: Columns, as_text: bool, marks: str = "") -> Seen:
    """What stands in every column; values are looked at where names and types do not decide.

    Raises:
        ManifestError: there is no row.
    """
    types: dict[str, pa.DataType] = {}
    surveys: dict[str, Survey] = {}
    where, rows = "", 0
    for chunk in chunks():
        where = where or chunk.where
        for column in chunk.table.schema:
            if column.name not in types or pa.types.is_null(types[column.name]):
                types[column.name] = column.type
        if not as_text and types and not needs_survey(types, columns):
            return Seen(types, {}, as_text, marks, where)
        for name in types:
            survey = surveys.get(name) or surveys.setdefault(name, Survey(name, 10 * columns.categories))
            if survey.rows < rows:  # lines of JSON may have it for the first time
                survey.add(pa.nulls(rows - survey.rows))
            survey.add(column_of(chunk.table, name))
        rows += chunk.table.num_rows
    if not rows:
        raise ManifestError("the table has no rows", where=where, fix="give a table with a row for each example")
    numbers = TASKS[columns.task or DEFAULT].holds == NUMBERS
    labels = [s for name, s in surveys.items() if name == columns.label or (name.lower() in LABEL_NAMES and numbers)]
    if any(s.decimal_comma for s in surveys.values()) or (numbers and any(s.comma_numbers for s in labels)):
        marks = ","
    return Seen(types, surveys, as_text, marks, where, rows)


def shape_table(
    table: pa.Table, columns: Columns, where: str, first: int, split: str | None, prefix: str | None = None
) -> pa.Table:
    """The rows of a whole table with a manifest's column names; ids are row numbers where there is no id column.

    Raises:
        ManifestError: no label column, or nothing that could be the payload.
    """
    refuse_twins(table.column_names, where)
    chunk = Chunk(plain_table(table, where), where, first, split, prefix)
    chunks, dropped = without_dropped(lambda: iter([chunk]), columns)
    seen = look_at(chunks, columns, all(is_text(f.type) for f in chunk.table.schema))
    dropped()
    (chunk,) = chunks()
    return shape(chunk, _decided(chunks, seen, columns), seen, Counter())


def shape(chunk: Chunk, roles: Roles, seen: Seen, counts: Counter[str], payload: bool = True) -> pa.Table:
    """The rows of a chunk with a manifest's column names; ``counts`` gets what is worth saying of values.

    Without ``payload`` all other columns.

    Raises:
        ManifestError: a column cannot be what it is taken for.
    """
    table, where = chunk.table, chunk.where
    of = lambda name: column_of(table, name)  # noqa: E731
    out: dict[str, Any] = {"id": _ids(chunk, roles)}
    if payload:
        out |= payload_columns(table, roles, where, counts)
    if roles.label:
        out["label"] = labels_of(of, roles, roles.label, seen, where)
    else:  # none, which count as 0
        out["label"] = pa.array(np.zeros(table.num_rows, dtype=np.int64))
    if roles.split is not None:
        out["split"] = usual_splits(_trimmed(of(roles.split)), where, roles.split)
    elif chunk.split is not None:
        out["split"] = pa.array([chunk.split] * table.num_rows)
    if roles.weight is not None:
        out["weight"] = _weights(of(roles.weight), roles.weight, seen, where)
    elif any(f.column.lower() == "weight" for f in roles.features):  # so that nobody takes it for the rows' weight
        out["weight"] = pa.array(np.ones(table.num_rows))
    if roles.clean is not None:
        out[CLEAN] = labels_of(of, replace(roles, labels=()), roles.clean, seen, where)
    for name in (roles.group, *roles.kept):
        if name is not None and name not in out:
            out[name] = _as_meant(of(name), name, seen, where)
    return pa.table(out)


def _ids(chunk: Chunk, roles: Roles) -> pa.Array:
    """Ids as text, as they are written; of bytes that are no text, in hex."""
    table = chunk.table
    if roles.id is None:
        return pa.array([f"{chunk.prefix or 'row'}-{chunk.first + k}" for k in range(table.num_rows)])
    values = column_of(table, roles.id)
    if pa.types.is_binary(values.type) or pa.types.is_fixed_size_binary(values.type):
        texts = text_of_bytes(values)
        return texts if texts is not None else pa.array([None if v is None else v.hex() for v in values.to_pylist()])
    try:
        texts = pc.cast(values, pa.string())
    except pa.ArrowException as error:
        what = f"ids are {values.type}, not text or numbers"
        fix = "pass --id COLUMN, or --id none to number the rows"
        raise ManifestError(what, where=f"{chunk.where}, column {roles.id}", fix=fix) from error
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _trimmed(values: pa.Array) -> pa.Array:
    return texts_in(values) if is_text(values.type) else values


def _weights(values: pa.Array, column: str, seen: Seen, where: str) -> pa.Array:
    """Weights as real numbers; null where there is none.  Raises ManifestError: they are no numbers."""
    survey = seen.surveys.get(column)
    form = (PLAIN, "") if survey is None or not survey.texts else seen.form(column)
    try:
        if form is None:
            raise pa.ArrowInvalid(f"it holds text, such as {min(survey.values) if survey else ''!r}")
        numbers = numbers_of(values, *form)
    except pa.ArrowException as error:
        what = f"column {column} is no column of weights: {error}"
        raise ManifestError(what, where=f"{where}, column {column}", fix="pass --weight COLUMN with numbers") from error
    return pa.array(numbers, mask=np.isnan(numbers))


def _as_meant(values: pa.Array, column: str, seen: Seen, where: str) -> pa.Array:
    """A column that is kept: of a text file whole numbers, real numbers or text, as all of its rows are.

    Raises:
        ManifestError: it is of a type that no Parquet file holds.
    """
    survey, kind = seen.surveys.get(column), values.type
    odd = (pa.types.is_union(kind), pa.types.is_run_end_encoded(kind), pa.types.is_interval(kind))
    if any(odd):
        fix = "turn it into text or numbers"
        raise ManifestError(
            f"column {column} is {kind}, which cannot be kept", where=f"{where}, column {column}", fix=fix
        )
    if not seen.as_text or survey is None or not is_text(kind):
        return values
    texts = texts_in(values)
    if survey.form() != (PLAIN, "") or survey.markers:
        return texts
    try:
        return pc.cast(texts, pa.int64() if survey.whole else pa.float64())
    except pa.ArrowException:  # 1.0, 1e3, or more digits than 64 bits hold
        numbers = numbers_of(values)
        return (
            texts if max(abs(survey.low), abs(survey.high)) > EXACT_WHOLE else pa.array(numbers, mask=np.isnan(numbers))
        )

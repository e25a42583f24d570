"""Edits taken back: the manifest as it was, from the curated one and the table of edits.

A row that was relabelled or reweighted gets the label and weight that the table kept; a row that was trimmed comes
back, payload and all, from the manifest that was curated, before the row that followed it there.  Rows that were
appended to the curated manifest since, and edits of other rows, stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.actions.edited import rebased
from influence_cli.data.earlier import RESTORED, marked
from influence_cli.data.manifest import Manifest
from influence_cli.data.open import open_manifest
from influence_cli.data.outputs import Output, check_outputs, writing
from influence_cli.data.sources.origin import moved_origin
from influence_cli.data.tables import (
    PROVENANCE_KEY,
    keyed_rows,
    numbers,
    provenance,
    read_batches,
    read_schema,
    read_table,
)
from influence_cli.errors import ManifestError, UsageError
from influence_cli.stages.curate.curated_manifest import set_column, set_weights
from influence_cli.store.keys import row_key
from influence_cli.store.parquet import SealedWriter

NEEDED = ("id", "row_key", "action", "label_was", "label", "weight_was", "weight")
BATCH = 8192


@dataclass(frozen=True, eq=False)
class Undoing:
    """What will be put back: old labels and weights of the curated rows [n], and the trimmed rows by place."""

    curated: Manifest
    original: Manifest | None  # None where no row was trimmed and it is not found
    label: str
    added: tuple[str, ...]  # columns that the edits added
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    before: dict[int, list[int]]  # position in the curated manifest -> rows of the original that come before it
    restored: int


def plan_undo(edits: Any, curated: str, label: str | None = None) -> Undoing:
    """What it takes to undo a table of edits, checked row by row.

    Raises:
        UsageError: the table is none of edits, or says not where the trimmed rows are.
        ManifestError: a row has changed since it was edited, or is not where it was.
    """
    table, where = read_table(edits), str(edits) if isinstance(edits, str) else "the edits"
    missing = [name for name in NEEDED if name not in table.column_names]
    if missing:
        raise UsageError(f"no column {missing[0]!r}: this is no table of edits", where=where, fix="curate --edits FILE")
    origin = provenance(table.schema)
    label = str(label or origin.get("manifest", {}).get("label") or "label")
    manifest = open_manifest(curated, label)
    place = {i: k for k, i in enumerate(manifest.ids)}
    labels, weights, gone = manifest.labels.copy(), manifest.weights().copy(), dict[str, bytes]()
    keys = {name: key for name, (_, key) in keyed_rows(table, where).items()}
    for row in _edit_rows(table, where):
        k = place.get(row["id"])
        if k is None and row["weight"] == 0:
            gone[row["id"]] = keys[row["id"]]
            continue
        as_edited = k is not None and (labels[k], manifest.splits[k]) == (row["label"], "train")
        if k is None or not as_edited or not np.isclose(weights[k], row["weight"], rtol=1e-6, atol=0):
            what = "is not in it" if k is None else "has changed since it was edited"
            raise ManifestError(
                f"row id={row['id']} of the edits {what}",
                where=f"{curated}, against {where}",
                fix="give the manifest that `curate -o` wrote with these edits",
            )
        if row_key(manifest.payload_keys[k].tobytes(), row["label_was"]) != keys[row["id"]]:
            what, fix = "label_was is not the label that the row had", "give the edits as `curate --edits` wrote them"
            raise ManifestError(what, where=f"{where}, row id={row['id']}, column label_was", fix=fix)
        labels[k], weights[k] = row["label_was"], row["weight_was"]
    original = _original(origin, label, required=bool(gone), where=where)
    if original is not None and original.classes != manifest.classes and original.classes and manifest.classes:
        fix = "number the classes of both alike"
        raise ManifestError("its classes are not those of what was curated", where=str(curated), fix=fix)
    before = {} if not gone or original is None else _places(original, manifest, gone)
    added = tuple(origin.get("action", {}).get("added_columns", ()))
    return Undoing(manifest, original, label, added, labels, weights, before, table.num_rows)


def _edit_rows(table: pa.Table, where: str) -> list[dict[str, Any]]:
    """The edits as plain values, each with the numbers that it needs.

    Raises:
        ManifestError: a number is missing, or is none.
    """
    columns: dict[str, list[Any]] = {"id": table.column("id").to_pylist()}
    for name, kind in (("label_was", pa.int64()), ("label", pa.int64()), ("weight_was", None), ("weight", None)):
        columns[name] = numbers(table, name, kind).to_pylist()
        lost = [i for i, v, w in zip(columns["id"], columns[name], table.column("action").to_pylist(), strict=True)
                if v is None and not (name == "label" and w == "trim")]  # fmt: skip
        if lost:
            fix = "give the edits as `curate --edits` wrote them"
            raise ManifestError("a number is missing", where=f"{where}, row id={lost[0]}, column {name}", fix=fix)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _original(origin: dict[str, Any], label: str, required: bool, where: str) -> Manifest | None:
    """The manifest that was curated, where the edits' provenance says; None where it is not needed nor found."""
    locator = origin.get("manifest", {}).get("locator")
    if locator is not None and Path(locator).exists():
        return open_manifest(locator, label, bool(origin.get("skip_bad")))
    if required:
        said = locator or "the edits do not say where"
        raise UsageError(
            f"rows were trimmed, and the manifest they were in is not found ({said})",
            where=where,
            fix="put it back there; edits written as .parquet say where it is",
        )
    return None


def _places(original: Manifest, curated: Manifest, gone: dict[str, bytes]) -> dict[int, list[int]]:
    """Before which row of the curated manifest each trimmed row belongs."""
    place = {i: k for k, i in enumerate(curated.ids)}
    before: dict[int, list[int]] = {}
    following, found = len(curated), 0
    for k in range(len(original) - 1, -1, -1):
        name = original.ids[k]
        if name in place:
            following = place[name]
        elif name in gone:
            if original.row_keys[k].tobytes() != gone[name]:
                raise ManifestError(
                    f"row id={name} has changed since it was trimmed", where=original.source, fix="put the old row back"
                )
            before.setdefault(following, []).insert(0, k)
            found += 1
    if found < len(gone):
        lost = next(iter(set(gone) - set(original.ids)))
        raise ManifestError(f"trimmed row id={lost} is not there", where=original.source, fix="put the row back")
    return before


def write_undone(undoing: Undoing, output: str) -> int:
    """Stream the manifest as it was to a Parquet file; returns its number of rows."""
    path = Path(output)
    if path.suffix != ".parquet":
        raise UsageError(f"cannot write {output!r}: a manifest is Parquet", fix="use .parquet")
    original = [] if undoing.original is None else undoing.original.files
    check_outputs([Output("-o", output, RESTORED)], [*undoing.curated.files, *original])
    written = 0
    with writing(path, RESTORED) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        writer: SealedWriter | None = None
        for table in _batches(undoing, path.parent):
            writer = writer or SealedWriter(sink, table.schema)
            writer.write_table(table)
            written += table.num_rows
        if writer is not None:
            writer.close()
    return written


def _batches(undoing: Undoing, folder: Path) -> Iterator[pa.Table]:
    curated, schema = undoing.curated, _schema(undoing, folder)
    back = _trimmed_rows(undoing, folder)
    first = 0
    for file in curated.files:
        for batch in read_batches(file, BATCH):
            here = slice(first, first + batch.num_rows)
            table = rebased(pa.Table.from_batches([batch]), curated, folder)
            table = set_column(table, undoing.label, undoing.labels[here])
            if "weight" in table.column_names:
                changed = undoing.weights[here] != curated.weights()[here]
                table = set_weights(table, undoing.weights[here], changed)
            table = table.drop_columns([n for n in undoing.added if n in table.column_names])
            yield from _between(table.select(schema.names).cast(schema), first, back, undoing, schema)
            first += batch.num_rows
    if len(curated) in undoing.before:
        yield back.take(pa.array(_rows(undoing, len(curated)))).cast(schema)


def _between(table: pa.Table, first: int, back: pa.Table, undoing: Undoing, schema: pa.Schema) -> Iterator[pa.Table]:
    """A batch of curated rows with the trimmed rows where they were."""
    start = 0
    for place in sorted(p for p in undoing.before if first <= p < first + table.num_rows):
        if place - first > start:
            yield table.slice(start, place - first - start)
        yield back.take(pa.array(_rows(undoing, place))).cast(schema)
        start = place - first
    if start < table.num_rows:
        yield table.slice(start)


def _rows(undoing: Undoing, place: int) -> list[int]:
    """Positions among the trimmed rows, in the order of the original, of those that come before a place."""
    order = {k: i for i, k in enumerate(sorted(k for rows in undoing.before.values() for k in rows))}
    return [order[k] for k in undoing.before[place]]


def _trimmed_rows(undoing: Undoing, folder: Path) -> pa.Table:
    """The rows that come back, payload included, in the order of the original."""
    original, wanted = undoing.original, sorted(k for rows in undoing.before.values() for k in rows)
    if original is None or not wanted:
        return pa.table({})
    parts, first = list[pa.Table](), 0
    positions = np.array(wanted)
    for file in original.files:
        for batch in read_batches(file, BATCH):
            inside = positions[(positions >= first) & (positions < first + batch.num_rows)] - first
            if len(inside):
                parts.append(rebased(pa.Table.from_batches([batch]).take(pa.array(inside)), original, folder))
            first += batch.num_rows
    return pa.concat_tables(parts)


def _schema(undoing: Undoing, folder: Path) -> pa.Schema:
    """The original's schema where it is found and has the same columns; else the curated one's, less what was added."""
    curated = undoing.curated
    schema = read_schema(curated.files[0])
    fields = [f for f in schema if f.name not in undoing.added]
    if undoing.original is not None:
        old = read_schema(undoing.original.files[0])
        if old.names == [f.name for f in fields]:
            return marked(moved_origin(old, undoing.original.folder, folder), RESTORED)
    metadata = {k: v for k, v in (schema.metadata or {}).items() if k != PROVENANCE_KEY}
    return marked(moved_origin(pa.schema(fields, metadata), curated.folder, folder), RESTORED)

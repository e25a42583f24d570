"""Edits taken back: the manifest as it was, from the curated one and the table of edits.

A row that was relabelled or reweighted gets the label and weight that the table kept; a row that was trimmed comes
back, payload and all, from the manifest that was curated, before the row that followed it there.  Rows that were
appended to the curated manifest since, and edits of other rows, stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.locators import origin_of
from influence_cli.data.manifest import Manifest
from influence_cli.data.open import open_manifest
from influence_cli.data.tables import keyed_rows, numbers, read_table
from influence_cli.errors import ManifestError, UsageError
from influence_cli.store.keys import row_key

NEEDED = ("id", "row_key", "action", "label_was", "label", "weight_was", "weight")


@dataclass(frozen=True, eq=False)
class Undoing:
    """What will be put back: old labels and weights of the curated rows [n], and the trimmed rows by place."""

    curated: Manifest
    original: Manifest | None  # None where no row was trimmed and it is not found
    label: str
    added: tuple[str, ...]  # columns that the edits added
    labels: NDArray[Any]
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
    origin = origin_of(table.schema, edits)
    label = str(label or origin.get("manifest", {}).get("label") or "label")
    manifest = open_manifest(curated, label)
    place = {i: k for k, i in enumerate(manifest.ids)}
    labels, weights, gone = manifest.labels.copy(), manifest.weights().copy(), dict[str, bytes]()
    keys = {name: key for name, (_, key) in keyed_rows(table, where).items()}
    by_class = manifest.label_kind.holds == CLASSES
    shown = manifest.label_kind.shown(labels, manifest.classes)
    kind, shown = shown.type, shown.to_pylist()
    for row in _edit_rows(table, kind, where):
        k = place.get(row["id"])
        if k is None and row["weight"] == 0:
            gone[row["id"]] = keys[row["id"]]
            continue
        as_edited = k is not None and (shown[k], manifest.splits[k]) == (row["label"], "train")
        if k is None or not as_edited or not np.isclose(weights[k], row["weight"], rtol=1e-6, atol=0):
            what = "is not in it" if k is None else "has changed since it was edited"
            fix = "give the manifest that `curate -o` wrote with these edits"
            raise ManifestError(f"row id={row['id']} of the edits {what}", where=f"{curated}, against {where}", fix=fix)
        if _key_before(manifest, k, row) != keys[row["id"]]:
            what, fix = "label_was is not the label that the row had", "give the edits as `curate --edits` wrote them"
            raise ManifestError(what, where=f"{where}, row id={row['id']}, column label_was", fix=fix)
        weights[k] = row["weight_was"]
        if by_class:
            labels[k] = row["label_was"]
    original = _original(origin, label, required=bool(gone), where=where)
    if original is not None and original.classes != manifest.classes and original.classes and manifest.classes:
        fix = "number the classes of both alike"
        raise ManifestError("its classes are not those of what was curated", where=str(curated), fix=fix)
    before = {} if not gone or original is None else _places(original, place, gone)
    added = tuple(origin.get("action", {}).get("added_columns", ()))
    return Undoing(manifest, original, label, added, labels, weights, before, table.num_rows)


def _key_before(manifest: Manifest, k: int, row: dict[str, Any]) -> bytes:
    """The key of a row with the label that an edit says it had; labels that are no classes are never edited."""
    if manifest.label_kind.holds != CLASSES:
        return manifest.row_keys[k].tobytes() if row["label_was"] == row["label"] else b""
    return row_key(manifest.payload_keys[k].tobytes(), row["label_was"])


def _edit_rows(table: pa.Table, kind: pa.DataType, where: str) -> list[dict[str, Any]]:
    """The edits as plain values, each with the numbers that it needs.

    Raises:
        ManifestError: a number is missing, or is none.
    """
    columns: dict[str, list[Any]] = {"id": table.column("id").to_pylist()}
    for name, wanted in (("label_was", kind), ("label", kind), ("weight_was", None), ("weight", None)):
        text = wanted is not None and pa.types.is_string(wanted)
        column = table.column(name).cast(kind) if text else numbers(table, name, wanted)
        columns[name] = column.to_pylist()
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
        what = f"rows were trimmed, and the manifest they were in is not found ({said})"
        raise UsageError(what, where=where, fix="put it back there; edits written as .parquet say where it is")
    return None


def _places(original: Manifest, place: dict[str, int], gone: dict[str, bytes]) -> dict[int, list[int]]:
    """Before which row of the curated manifest, whose ids stand at ``place``, each trimmed row belongs."""
    before: dict[int, list[int]] = {}
    following, found = len(place), 0
    for k, name in reversed(list(enumerate(original.ids))):
        if name in place:
            following = place[name]
        elif name in gone:
            if original.row_keys[k].tobytes() != gone[name]:
                what = f"row id={name} has changed since it was trimmed"
                raise ManifestError(what, where=original.source, fix="put the old row back")
            before.setdefault(following, []).insert(0, k)
            found += 1
    if found < len(gone):
        lost = next(iter(set(gone) - set(original.ids)))
        raise ManifestError(f"trimmed row id={lost} is not there", where=original.source, fix="put the row back")
    return before

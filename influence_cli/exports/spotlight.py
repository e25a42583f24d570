"""Renumics Spotlight: a Parquet file with one line per edited row, whose column types say how each is shown.

``spotlight FILE.parquet`` opens it: labels are categories (dictionary columns), numbers numbers, and images are found
by their absolute paths, or shown from their bytes where the manifest embeds them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from influence_cli.errors import ManifestError
from influence_cli.exports.protocol import ExportJob, Prepared, edited_rows, key_text, proposed_label
from influence_cli.store.parquet import write_sealed

_CATEGORY = pa.dictionary(pa.int32(), pa.string())
_COPIED = ("score", "weight_was", "weight", "reason")  # columns of edits that stay as they are


def prepare(job: ExportJob) -> Prepared:
    """Check an export for Spotlight.  Raises ManifestError: a payload is empty."""
    manifest, kind = job.edited.manifest, job.edited.manifest.payload_kind
    lines: list[dict[str, Any]] = []
    for edit, row, value, _ in edited_rows(job):
        if value is None:
            where = manifest.place(row)
            raise ManifestError("the payload is empty", where=where, fix="fill it in or take the row out")
        if isinstance(value, Path):
            shown: dict[str, Any] = {kind.input_name: str(value.resolve())}
        else:
            shown = {kind.input_name: value} if kind.pixels else kind.as_values(value) or {}
        line = {"id": edit["id"], **shown, "label": _label(job, edit["label_was"])}
        line["proposed_label"] = proposed_label(job, edit)
        lines.append({**line, **{n: edit[n] for n in _COPIED}, "action": edit["action"], "row_key": key_text(edit)})
    table = pa.Table.from_pylist(lines) if lines else pa.table({"id": pa.array([], pa.string())})
    if "proposed_label" in table.column_names and not table.column("proposed_label").null_count < table.num_rows:
        table = table.drop_columns(["proposed_label"])  # nothing is proposed, as in a trim
    for name in ("label", "proposed_label", "action"):
        if name in table.column_names and pa.types.is_string(table.schema.field(name).type):
            place = table.column_names.index(name)
            table = table.set_column(place, name, table.column(name).cast(_CATEGORY))
    notes = [] if lines else ["no row is edited, so there is no line"]
    return Prepared(lambda place: _write(table, place), len(lines), notes)


def _label(job: ExportJob, label: Any) -> Any:
    """A label of the table of edits as people read it: classes by name, other labels as they are."""
    named = job.edited.manifest.class_names is not None or isinstance(label, int)
    return job.edited.class_name(int(label)) if named else label


def _write(table: pa.Table, place: Path) -> None:
    with pa.OSFile(str(place), "wb") as sink:
        write_sealed(table, sink)

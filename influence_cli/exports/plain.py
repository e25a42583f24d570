"""Rows of a manifest as plain values, for text forms that have no source of their own to follow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from influence_cli.actions.protocol import PROPOSAL
from influence_cli.data.classes import CLEAN
from influence_cli.data.labels import column_labels
from influence_cli.errors import UsageError
from influence_cli.exports.protocol import ExportJob, rebase, stored


def plain_rows(job: ExportJob, form: str) -> Iterator[dict[str, Any]]:
    """The rows that are left: id, payload, label as its name where it has one, split, and the other columns.

    Raises:
        UsageError: images are embedded, and a line of text holds none.
    """
    edited, manifest = job.edited, job.edited.manifest
    table = manifest.table
    others = [n for n in table.column_names if n not in ("id", "weight", job.label, PROPOSAL)]
    columns = {n: table.column(n).to_pylist() for n in others}
    if manifest.classes is not None and CLEAN in columns and job.label != CLEAN:  # names, as the labels are
        clean = column_labels(manifest, CLEAN).tolist()
        columns[CLEAN] = [None if k < 0 else edited.class_name(k) for k in clean]
    weighted = "weight" in table.column_names or bool((edited.weights != 1).any())
    for row, value, name in stored(job):
        inside = value is not None and not isinstance(value, Path)
        held = manifest.payload_kind.as_values(value) if inside else None
        if inside and held is None:
            raise UsageError(
                f"images are embedded in the manifest, and {form} holds only their paths",
                where=manifest.source,
                fix="use --export-as folder, huggingface or npz",
            )
        out: dict[str, Any] = {"id": manifest.ids[row]}
        if isinstance(value, Path) and name is not None:
            out["path"] = rebase(name, job.folder, job.place.parent)
        elif held is not None:
            out.update(held)
        label = int(edited.labels[row])
        out[job.label] = label if manifest.classes is None else edited.class_name(label)
        out.update({other: values[row] for other, values in columns.items()})
        if weighted:
            out["weight"] = float(edited.weights[row])
        yield out

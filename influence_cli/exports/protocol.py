"""What an export is given, what it gives back, and how the rows of a manifest are read for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.actions.edited import Edited
from influence_cli.actions.protocol import PROPOSAL
from influence_cli.data.classes import CLEAN
from influence_cli.data.kinds.protocol import Payload
from influence_cli.data.labels import column_labels
from influence_cli.data.payloads import payload_batches
from influence_cli.data.sources.origin import Origin
from influence_cli.errors import ManifestError, UsageError

OUTSIDE = "commands that read files outside of that folder take --allow-outside"
LINKS = ("symbolic", "hard", "copy")


@dataclass(frozen=True, eq=False)
class ExportJob:
    """The edited rows, where they came from, and where they go."""

    edited: Edited
    origin: Origin | None
    edits: pa.Table  # one row per edit, most harmful first
    label: str  # the manifest's label column
    place: Path
    link: str = "symbolic"  # of image files: symbolic, hard or copy
    url_prefix: str = ""  # of image paths, for Label Studio
    ranks: dict[str, float] = field(default_factory=dict)  # id of a scored row -> share of rows that score lower

    def made_from(self, form: str) -> Origin | None:
        """The origin, where it has this form."""
        return self.origin if self.origin is not None and self.origin.form == form else None

    @property
    def folder(self) -> Path:
        """The manifest's folder, from which its paths count."""
        return self.edited.manifest.folder


@dataclass(frozen=True, eq=False)
class Prepared:
    """An export that was checked; ``write`` makes it at a temporary place."""

    write: Callable[[Path], object]
    rows: int
    notes: list[str] = field(default_factory=list)


def stored(
    job: ExportJob, wanted: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, Payload | Path | None, str | None]]:
    """(row, payload as it is stored, the path that is stored with it) of every wanted row, by streaming.

    ``wanted`` [n] is, where it is not given, the rows that are left after the edits.
    """
    manifest = job.edited.manifest
    mask = job.edited.keep if wanted is None else wanted
    kind = manifest.payload_kind
    for first, batch in payload_batches(manifest.files, kind):
        here = np.flatnonzero(mask[first : first + len(batch)])
        if not len(here):
            continue
        chosen = batch.take(pa.array(here))
        yield from zip((first + here).tolist(), kind.stored(chosen, job.folder), kind.paths(chosen), strict=True)


def edited_rows(job: ExportJob) -> Iterator[tuple[dict[str, Any], int, Payload | Path | None, str | None]]:
    """(edit, row, payload, path) of every edited row, most harmful first, as ``stored`` says the last three."""
    manifest, edits = job.edited.manifest, job.edits.to_pylist()
    place = {i: k for k, i in enumerate(manifest.ids)}
    wanted = np.zeros(len(manifest), dtype=np.bool_)
    wanted[[place[e["id"]] for e in edits]] = True
    found = {row: (value, name) for row, value, name in stored(job, wanted)}
    for edit in edits:
        row = place[edit["id"]]
        yield edit, row, *found[row]


def key_text(edit: dict[str, Any]) -> str:
    """The row key of an edit in hex."""
    return edit["row_key"] if isinstance(edit["row_key"], str) else bytes(edit["row_key"]).hex()


def proposed_label(job: ExportJob, edit: dict[str, Any]) -> str | None:
    """The name of the label that an edit gives its row; None where it gives no other, as a trim."""
    return None if edit["label"] in (None, edit["label_was"]) else job.edited.class_name(int(edit["label"]))


def same_images(job: ExportJob, folder: Path) -> None:
    """Check that images that were embedded are still those that the source names, which the export names again.

    Raises:
        ManifestError: one is gone, or has changed.
    """
    manifest = job.edited.manifest
    for row, value, name in stored(job):
        if not isinstance(value, bytes) or name is None:
            continue
        file = folder / name
        if not file.is_file() or file.read_bytes() != value:
            what = f"{name} has changed since it was embedded" if file.is_file() else f"{name} is not there any more"
            fix = "run `influence manifest` and `influence score` again, or pass --export-as folder"
            raise ManifestError(what, where=manifest.place(row), fix=fix)


def rebase(path: str, old: Path, new: Path) -> str:
    """A relative path that counts from folder ``old``, as seen from ``new``; absolute paths and URLs stay."""
    if "://" in path or Path(path).is_absolute() or not path:
        return path
    return Path(os.path.relpath(old / path, new)).as_posix()


def plain_rows(job: ExportJob, form: str) -> Iterator[dict[str, Any]]:
    """The rows that are left: id, payload, label as its name where it has one, split, and the other columns.

    Raises:
        UsageError: images are embedded, and a line of text holds none.
    """
    edited, manifest = job.edited, job.edited.manifest
    table = manifest.table
    others = [n for n in table.column_names if n not in ("id", "weight", job.label, PROPOSAL)]
    columns = {n: table.column(n).to_pylist() for n in others}
    if manifest.class_names is not None and CLEAN in columns and job.label != CLEAN:  # names, as the labels are
        clean = column_labels(manifest, CLEAN).tolist()
        columns[CLEAN] = [None if k < 0 else edited.class_name(k) for k in clean]
    weighted = "weight" in table.column_names or bool((edited.weights != 1).any())
    for row, value, name in stored(job):
        inside = value is not None and not isinstance(value, Path)
        held = manifest.payload_kind.as_values(value) if inside else {}
        if held is None:
            what = f"images are embedded in the manifest, and {form} holds only their paths"
            raise UsageError(what, where=manifest.source, fix="use --export-as folder, huggingface or npz")
        out: dict[str, Any] = {"id": manifest.ids[row], **held}
        if isinstance(value, Path) and name is not None:
            out["path"] = rebase(name, job.folder, job.place.parent)
        if manifest.labelled:
            out[job.label] = manifest.label_kind.plain(edited.labels[row], manifest.classes)
        out.update({other: values[row] for other, values in columns.items()})
        if weighted:
            out["weight"] = float(edited.weights[row])
        yield out

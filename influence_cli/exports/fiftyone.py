"""FiftyOne: a folder with one sample per edited row, by the path of its image.

FiftyOne opens it with ``fiftyone.Dataset.from_dir(FOLDER, dataset_type=fiftyone.types.FiftyOneDataset)``.  Paths count
from the folder; images that are embedded in the manifest are written into its folder ``data``.  A metadata file that
names no version is read by every version of FiftyOne, which finds out the fields by itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from influence_cli.data.label_kinds import CLASSES
from influence_cli.errors import ManifestError, UsageError
from influence_cli.exports.folder import sniffed
from influence_cli.exports.protocol import ExportJob, Prepared, edited_rows, key_text, proposed_label, rebase

PICTURES = "data"


def prepare(job: ExportJob) -> Prepared:
    """Check an export for FiftyOne.  Raises UsageError: rows are no images, or labels no classes."""
    manifest = job.edited.manifest
    if not manifest.payload_kind.pixels:
        what, fix = f"{manifest.payload_kind.column} are no images", "pass --export-as spotlight or label-studio"
        raise UsageError(what, where=manifest.source, fix=fix)
    if manifest.label_kind.holds != CLASSES:
        what = f"samples for FiftyOne have a class, and the labels are {manifest.label_kind.called}"
        raise UsageError(what, where=manifest.source, fix="pass --export-as spotlight")
    samples, pictures = list[dict[str, Any]](), dict[str, bytes]()
    for k, (edit, row, value, name) in enumerate(edited_rows(job)):
        where = manifest.place(row)
        if value is None:
            raise ManifestError("the payload is empty", where=where, fix="fill it in or take the row out")
        if isinstance(value, Path):
            path = rebase(str(name), job.folder, job.place)
        else:
            path = f"{PICTURES}/{k:06d}{sniffed(value, where)}"
            pictures[path] = value
        samples.append(_sample(job, edit, path))
    notes = [] if samples else ["no row is edited, so there is no sample"]
    info = {"made_by": "influence", "classes": list(manifest.classes or ())}
    return Prepared(lambda place: _write(place, samples, info, pictures), len(samples), notes)


def _sample(job: ExportJob, edit: dict[str, Any], path: str) -> dict[str, Any]:
    """One row: its label, the one that is proposed where one is, its score, and how it is named here."""
    proposed = proposed_label(job, edit)
    labels = {"ground_truth": job.edited.class_name(int(edit["label_was"])), "proposed": proposed}
    named = {name: {"_cls": "Classification", "label": label} for name, label in labels.items() if label is not None}
    score = None if edit["score"] is None or not np.isfinite(edit["score"]) else float(edit["score"])
    about = {"row_id": edit["id"], "row_key": key_text(edit), "reason": edit["reason"], "influence_score": score}
    return {"filepath": path, "tags": [edit["action"]], **named, **about}


def _write(place: Path, samples: list[dict[str, Any]], info: dict[str, Any], pictures: dict[str, bytes]) -> None:
    place.mkdir(parents=True)
    for name, value in {"samples.json": {"samples": samples}, "metadata.json": {"info": info}}.items():
        (place / name).write_text(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8")
    if pictures:
        (place / PICTURES).mkdir()
    for name, data in pictures.items():
        (place / name).write_bytes(data)

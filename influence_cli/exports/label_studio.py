"""Label Studio: one task per edited row, to be looked at by people (https://labelstud.io/guide/tasks, /predictions).

The labelling interface that fits has one Choices tag named ``label`` that points to an object tag with the name of
the data key: ``<Image name="image" value="$image"/>`` for images, and the key ``features`` for features.  The label
that was is the annotation, the proposed one the prediction; a trim proposes none.  Choices are the classes, and
``drop`` where people may take a row out: ``curate --decisions`` reads what Label Studio exports.  It refuses prediction
scores outside 0 to 1, so a prediction's score is the row's rank among the scored rows (0: the most harmful, and first
when tasks are sorted by it), and the score itself is in ``meta``.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from influence_cli.data.feature_names import features_of, in_words
from influence_cli.data.kinds.protocol import Payload
from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.sources.features import Feature
from influence_cli.errors import ManifestError, UsageError
from influence_cli.exports.protocol import ExportJob, Prepared, edited_rows, key_text, proposed_label, rebase

MODEL_VERSION = "influence"


def prepare(job: ExportJob) -> Prepared:
    """Check an export for Label Studio: every edited row as a task, most harmful first."""
    manifest = job.edited.manifest
    if manifest.label_kind.holds != CLASSES:
        what = f"tasks for Label Studio are choices between classes, and the labels are {manifest.label_kind.called}"
        raise UsageError(what, where=manifest.source, fix="pass --export-as csv, jsonl, huggingface or npz")
    columns = features_of(manifest)
    tasks = [
        _task(job, k, edit, _data(job, value, name, row, columns))
        for k, (edit, row, value, name) in enumerate(edited_rows(job))
    ]
    text = json.dumps(tasks, ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n"
    notes = [] if tasks else ["no row is edited, so there is no task"]
    return Prepared(lambda where: where.write_bytes(text), len(tasks), notes)


def _task(job: ExportJob, number: int, edit: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """One row: what it is, why it is here, the label it has, and the label it should have."""
    was, proposed = job.edited.class_name(int(edit["label_was"])), proposed_label(job, edit)
    to_name = next(iter(data))
    prediction: dict[str, Any] = {"model_version": MODEL_VERSION, "result": []}
    if proposed is not None:
        choice = _choice(f"proposed-{number}", to_name, proposed)
        prediction["result"].append({**choice, "meta": {"text": [edit["reason"]]}})
    if edit["id"] in job.ranks:
        prediction["score"] = job.ranks[edit["id"]]
    meta = {k: edit[k] for k in ("id", "action", "score", "reason", "weight_was", "weight")}
    meta |= {"row_key": key_text(edit), "label_was": was, "label": proposed or was}
    return {
        "data": data,
        "meta": {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in meta.items()},
        "annotations": [{"result": [_choice(f"was-{number}", to_name, was)]}],
        "predictions": [prediction],
    }


def _choice(name: str, to_name: str, label: str) -> dict[str, Any]:
    """One result of a Choices tag; no two have the same id, as Label Studio asks."""
    return {"id": name, "from_name": "label", "to_name": to_name, "type": "choices", "value": {"choices": [label]}}


def _data(
    job: ExportJob, value: Payload | Path | None, name: str | None, row: int, columns: Sequence[Feature]
) -> dict[str, Any]:
    """What is to be labelled: an image as its path, URL or data URI, features by name, or as they are."""
    where = job.edited.manifest.place(row)
    if value is not None and not isinstance(value, Path):
        if columns:
            return {"features": in_words(columns, value)}
        return job.edited.manifest.payload_kind.shown(value, where)
    if value is None or name is None:
        raise ManifestError("the payload is empty", where=where, fix="fill it in or take the row out")
    if job.url_prefix:
        return {"image": job.url_prefix + urllib.parse.quote(rebase(name, job.folder, _source_folder(job)))}
    return {"image": rebase(name, job.folder, job.place.parent)}


def _source_folder(job: ExportJob) -> Path:
    """The folder from which the source's own paths count: what stands behind a prefix does, too."""
    if job.origin is None:
        return job.folder
    path = job.origin.path(job.folder)
    return path if job.origin.form == "folder" else path.parent

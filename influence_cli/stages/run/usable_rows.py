"""Which rows a model can use: its labels have an output, and its payloads decode.  Others are refused, or left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from influence_cli.data.classes import Names, label_called, numbers_in
from influence_cli.data.feature_names import check_features, identity_of
from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.data.row_checks import BadRow
from influence_cli.data.split_column import SKIPPED
from influence_cli.errors import ManifestError
from influence_cli.model.losses import loss_of
from influence_cli.model.new_spec import UNLABELLED
from influence_cli.model.spec import GPT, ModelSpec
from influence_cli.settings import Inputs
from influence_cli.store import Store


def usable_target(rows: Rows, model: ModelSpec, inputs: Inputs, store: Store) -> Rows:
    """Target rows less those that cannot be used; these are decoded beforehand, since they make the direction's name.

    Raises:
        ManifestError: a label is outside the model's classes (and bad rows are not skipped), or no row is left.
    """
    manifest = usable(rows, model, inputs, store)
    if inputs.skip_bad:
        manifest = manifest.without(kept(rows, manifest).undecodable(model))
    usable_rows = kept(rows, manifest)
    if len(usable_rows) == 0:
        raise ManifestError("no target row can be used", where=manifest.source, fix="see what was skipped")
    return usable_rows


def usable(rows: Rows, model: ModelSpec, inputs: Inputs, store: Store) -> Manifest:
    """The rows' manifest, less those whose label the model has no output for, or that are known to be undecodable.

    Raises:
        ManifestError: a label is outside the model's classes, and bad rows are not skipped; or labels are there where
            the model takes none, or the other way round.
    """
    check_labelled(rows.manifest, model)
    if not inputs.skip_bad:
        check_labels(rows, model.num_classes, inputs.label)
        return rows.manifest
    bad = outside(rows, model.num_classes, inputs.label)
    decoder = model.payload_kind.decoder(model)
    known = {} if decoder is None else store.undecodable(decoder)
    for k, key in enumerate(rows.payload_keys if known else ()):
        reason = known.get(key.tobytes().hex())
        if reason is not None:
            bad.append(BadRow(int(rows.index[k]), rows.ids[k], rows.manifest.payload_kind.column, reason))
    return rows.manifest.without(bad)


def outside(rows: Rows, num_classes: int, label: str) -> list[BadRow]:
    """The rows whose label a model of so many classes has no output for."""
    if rows.manifest.label_kind.holds != CLASSES:
        return []
    why, names = f"is outside the model's {num_classes} classes", rows.manifest.classes
    return [
        BadRow(int(rows.index[k]), rows.ids[k], label, f"{label_called(names, int(rows.labels[k]))} {why}")
        for k in np.flatnonzero(rows.labels >= num_classes).tolist()
    ]


def check_labels(rows: Rows, num_classes: int, label: str) -> None:
    """Refuse labels that the model has no output for.

    Raises:
        ManifestError: one is outside; names its row.
    """
    labels = rows.labels
    if rows.manifest.label_kind.holds == CLASSES and len(labels) and labels.max() >= num_classes:
        worst = int(np.argmax(labels >= num_classes))
        named = label_called(rows.manifest.classes, int(labels[worst]))
        raise ManifestError(
            f"{named} is outside the model's {num_classes} classes (0 to {num_classes - 1})",
            where=f"{rows.manifest.source}, row id={rows.ids[worst]}, column {label}",
            fix="correct the label, use a checkpoint with that many classes, or pass --skip-bad",
        )


def check_classes(manifest: Manifest, model: ModelSpec) -> None:
    """Refuse a manifest whose labels mean other classes than those of the checkpoint, or that has other features.

    A language model takes texts without labels, and no other model does.

    Raises:
        ManifestError: they do.
    """
    check_labelled(manifest, model)
    check_features(manifest, model.features, "the checkpoint")
    check_task(manifest, model)
    own, trained = manifest.classes, model.classes
    named = own is not None and trained is not None
    if own is not None and trained is not None and model.order is not None:
        trained = trained[: len(own)]  # matched by name; the other outputs come last
    if own != trained if named else numbers_in(own, trained, manifest.source, "the checkpoint") is not None:
        here, there = (", ".join(names[:10]) if names else "plain numbers" for names in (own, trained))
        raise ManifestError(
            f"its labels mean other classes ({here}) than those that the checkpoint was trained on ({there})",
            where=manifest.source,
            fix=_fix_of_classes(own, trained),
        )


def check_labelled(manifest: Manifest, model: ModelSpec) -> None:
    """Refuse labels where a language model predicts the texts themselves, and rows without where a model needs them.

    Raises:
        ManifestError: it is so.
    """
    if model.is_language and manifest.labelled:
        what = f"{model.name} predicts the texts themselves, and the rows have labels"
        raise ManifestError(what, where=manifest.source, fix=UNLABELLED)
    if not (model.is_language or manifest.labelled):
        fix = f"give texts with labels, or a language model: --model {GPT} or hf:FOLDER"
        raise ManifestError(f"no column 'label', and {model.name} needs labels", where=manifest.source, fix=fix)


def check_task(manifest: Manifest, model: ModelSpec) -> None:
    """Refuse labels that are none of the model's loss, or not as many as its outputs.

    Raises:
        ManifestError: they are not.
    """
    loss, labels = loss_of(model), manifest.label_kind
    if loss.holds != labels.holds:
        what = f"its labels are {labels.called}, and the checkpoint's loss is {loss.name(model.num_classes)}"
        fix = "use a checkpoint of such labels, or make the manifest with its task: influence manifest SOURCE --task"
        raise ManifestError(what, where=manifest.source, fix=fix)
    outputs = labels.outputs(manifest.labels, None) if manifest.labels.ndim == 2 else model.num_classes
    if outputs != model.num_classes:
        what = f"its rows have {outputs} labels each, and the checkpoint has {model.num_classes} outputs"
        raise ManifestError(what, where=manifest.source, fix="use a checkpoint of the same labels")


def _fix_of_classes(own: Names | None, trained: Names | None) -> str:
    """How labels and outputs get to mean the same: by the checkpoint's names where it has the manifest's."""
    if own and trained and set(own) <= set(trained):
        return "number the classes as the checkpoint does, or match its outputs by name: --class-map checkpoint"
    if own and trained:
        return (
            f"pass --class-map FILE, a JSON list that calls the checkpoint's {len(trained)} outputs, in their order, "
            "as the manifest does; or call the classes as the checkpoint does (schema metadata key 'classes')"
        )
    return "number the classes as the checkpoint does, or name them in the manifest (schema metadata key 'classes')"


def check_alike(other: Manifest, manifest: Manifest, model: ModelSpec | None) -> None:
    """Refuse rows beside a manifest whose features are not those of the checkpoint, or of that manifest.

    Raises:
        ManifestError: they are others.
    """
    if other.task != manifest.task and (other.label_kind.holds != manifest.label_kind.holds):
        what = f"its labels are {other.label_kind.called}, those of {manifest.source} {manifest.label_kind.called}"
        raise ManifestError(what, where=other.source, fix="make both manifests with the same --task")
    check_features(other, None if model is None else model.features, "the checkpoint")
    if other.files != manifest.files:
        check_features(other, identity_of(manifest), manifest.source)


def usable_now(rows: Rows, model: ModelSpec, inputs: Inputs) -> Rows:
    """The rows; with bad rows skipped, less those without an output in the model and those that do not decode now.

    Raises:
        ManifestError: a label is outside the model's classes, and bad rows are not skipped.
    """
    if not inputs.skip_bad:
        check_labels(rows, model.num_classes, inputs.label)
        return rows
    manifest = rows.manifest.without([*outside(rows, model.num_classes, inputs.label), *rows.undecodable(model)])
    return kept(rows, manifest)


def usable_train_rows(manifest: Manifest) -> Rows:
    """The training rows that are left.  Raises ManifestError: there are none."""
    train = manifest.rows("train")
    if len(train) == 0:
        raise ManifestError("no train row can be used", where=manifest.source, fix="see what was skipped")
    return train


def kept(rows: Rows, manifest: Manifest) -> Rows:
    """Those of the rows that ``manifest`` has not left out."""
    return Rows(manifest, rows.index[manifest.splits[rows.index] != SKIPPED])


def bad_rows_of(*manifests: Manifest) -> dict[str, list[BadRow]]:
    """Rows that cannot be used, in order, by what their manifest is called; other rows of one name get a number."""
    first: dict[str, Manifest] = {}
    found: dict[str, dict[int, BadRow]] = {}
    for manifest in manifests:
        name = next(n for n in _names(manifest.source) if n not in first or _same_rows(manifest, first[n]))
        first.setdefault(name, manifest)
        found.setdefault(name, {}).update({b.row: b for b in manifest.bad})
    return {name: [rows[k] for k in sorted(rows)] for name, rows in found.items() if rows}


def _names(source: str) -> Iterator[str]:
    yield source
    yield from (f"{source} ({number})" for number in itertools.count(2))


def _same_rows(a: Manifest, b: Manifest) -> bool:
    """Whether two manifests hold the same rows, whatever is left out of each: two in memory may have one name."""
    return np.array_equal(a.payload_keys, b.payload_keys) and a.ids == b.ids


def left_out_of(*manifests: Manifest) -> dict[str, list[dict[str, Any]]]:
    """Rows that cannot be used, by manifest: position, id, column and reason."""
    return {name: [asdict(row) for row in rows] for name, rows in bad_rows_of(*manifests).items()}

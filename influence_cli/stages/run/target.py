"""The rows that Phi is measured on, apart from those that are trained on and from those that measure the outcome."""

from __future__ import annotations

from influence_cli.data.labels import numbered_as
from influence_cli.data.manifest import Manifest, Rows, without_overlap
from influence_cli.data.open import open_manifest
from influence_cli.errors import ManifestError
from influence_cli.events import Listener
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import Inputs
from influence_cli.stages.run.usable_rows import usable_target
from influence_cli.store import Store

MAX_OVERLAP = 0.01  # share of target rows that may be training or test rows before the run is refused


def target_rows(
    inputs: Inputs, manifest: Manifest, listener: Listener, model: ModelSpec | None = None, store: Store | None = None
) -> tuple[Rows, Rows]:
    """The target rows that ``model`` can use, less those that are training rows, and the latter."""
    train, known = manifest.rows("train"), None if store is None else store.file_keys()
    if inputs.target is None:
        target, where = manifest.rows("val"), f"{manifest.source}, split val"
    else:
        other = open_manifest(inputs.target, inputs.label, inputs.skip_bad, known, like=manifest)
        classes = manifest.classes or (None if model is None else model.classes)
        other = numbered_as(other, classes, manifest.source if manifest.classes else "the checkpoint", listener)
        target, where = other.rows("val") if (other.splits == "val").any() else other.all_rows(), other.source
    if len(target) == 0:
        raise ManifestError("no target rows", where=where, fix="set split to val for some rows, or pass --target PATH")
    if model is not None and store is not None:
        target = usable_target(target, model, inputs, store)
    kept, overlap = _apart(target, train, "training", inputs, where, listener)
    kept, _ = _apart(kept, manifest.rows("test"), "test", inputs, where, listener)  # tests would know the answer
    return kept, overlap


def _apart(target: Rows, others: Rows, kind: str, inputs: Inputs, where: str, listener: Listener) -> tuple[Rows, Rows]:
    """Target rows that are none of ``others``, and those that are: more than 1 % must be accepted by a flag.

    Raises:
        ManifestError: too many are, or all.
    """
    kept, overlap = without_overlap(target, others)
    if len(overlap):
        names = ", ".join(overlap.ids[:5])
        share = len(overlap) / len(target)
        if share > MAX_OVERLAP and not inputs.allow_overlap:
            raise ManifestError(
                f"{len(overlap)} of {len(target)} target rows are {kind} rows (same payload): {names}",
                where=where,
                fix="take them out of one of the two, or pass --allow-overlap to leave them out of the target",
            )
        listener.warn(f"{len(overlap)} target rows are {kind} rows and were left out of the target: {names}")
    if len(kept) == 0:
        raise ManifestError(f"every target row is a {kind} row", where=where, fix="give target rows of their own")
    return kept, overlap

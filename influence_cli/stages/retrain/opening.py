"""What a ``retrain`` works on: the rows that every arm edits, the test rows, and the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from influence_cli.data.labels import numbered_as
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.data.open import open_manifest
from influence_cli.errors import ManifestError
from influence_cli.events import Listener
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.new_spec import new_spec
from influence_cli.model.spec import ModelSpec, is_own
from influence_cli.stages.curate.score_table import GROUP
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.retrain.run_place import check_model
from influence_cli.stages.run.resolve import known_again
from influence_cli.stages.run.usable_rows import check_classes
from influence_cli.store import Store


def open_table(request: RetrainRequest, source: Any) -> Manifest:
    """A manifest, opened as the request says."""
    return open_manifest(source, request.inputs.label, request.inputs.skip_bad)


def base_rows(request: RetrainRequest, manifest: Manifest) -> Rows:
    """The train rows that every arm edits: those of ``--against``, or of the manifest alone."""
    base = manifest if request.against is None else open_table(request, request.against)
    rows = base.rows("train")
    if len(rows) == 0:
        raise ManifestError("no train rows", where=base.source, fix="set column split to train for some rows")
    return rows


def rows_to_test(request: RetrainRequest, manifest: Manifest, spec: ModelSpec, listener: Listener) -> Rows:
    """The test rows: those of ``--test``, or of split test.

    Raises:
        ManifestError: there are none, or no column with the groups that are asked for.
    """
    if request.test is None:
        rows, where = manifest.rows("test"), f"{manifest.source}, split test"
    else:
        other = numbered_as(open_table(request, request.test), spec.classes, manifest.source, listener)
        where = other.source
        rows = test_part(other)
    if len(rows) == 0:
        raise ManifestError("no test rows", where=where, fix="set split to test for some rows, or pass --test PATH")
    columns = rows.manifest.table.column_names
    if request.inputs.group != GROUP and request.inputs.group not in columns:
        fix = f"columns there are: {', '.join(columns)}"
        raise ManifestError(f"no column {request.inputs.group!r} with groups", where=rows.manifest.source, fix=fix)
    return rows


def test_part(other: Manifest) -> Rows:
    """The rows of a manifest that was given to be tested on: its split test, or all where it has none."""
    return other.rows("test") if (other.splits == "test").any() else other.all_rows()


def model_to_train(request: RetrainRequest, manifest: Manifest) -> ModelSpec:
    """The model that is trained, which is that of any run that stands in the run folder already."""
    spec = _spec(request, manifest)
    check_model(request, spec.name)
    return spec


def _spec(request: RetrainRequest, manifest: Manifest) -> ModelSpec:
    """The model to train; what a checkpoint to begin with says of its classes holds for the rows too."""
    if request.init is not None:
        _, carried = find_checkpoint(request.init)
        if carried is not None and request.inputs.model in (None, carried["name"]):
            spec = ModelSpec.from_dict(carried)
            check_classes(manifest, spec)
            return known_again(spec, request.inputs, request.init, manifest, _notes(request))
    if request.inputs.task is not None or is_own(request.inputs.model):
        from influence_cli.stages.run.own_model import training_spec

        return training_spec(request.inputs, manifest, _notes(request))
    from_scratch = request.init is None and not request.pretrained
    return new_spec(request.inputs, manifest, None, from_scratch)


def _notes(request: RetrainRequest) -> Store:
    """Where the run folder remembers the code of a model of the user's own: its notes, in no store."""
    return Store(Path(request.output), marked=False)

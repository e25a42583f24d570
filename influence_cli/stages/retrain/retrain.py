"""(4) edited manifest -> checkpoint, and a comparison with no edit and with random edits of the same size.

Arms share the seed, so initialisation, order and augmentation are the same for every row they have in common.  A
finished arm and seed is kept under ``RUN/arms/<fingerprint>`` and never trained twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.classes import numbered_as
from influence_cli.data.manifest import Manifest, Rows, open_manifest
from influence_cli.errors import ManifestError, UsageError
from influence_cli.events import SILENT, Listener
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.spec import ModelSpec, is_own, known_again, new_spec
from influence_cli.stages.curate.score_table import GROUP
from influence_cli.stages.retrain.arm_comparison import METRICS, compare_arms, summary_of
from influence_cli.stages.retrain.arm_quality import cautions_of
from influence_cli.stages.retrain.arms import Arm, base_arm, control_arms, curated_arm, without
from influence_cli.stages.retrain.attacked_arms import attack_of, measure_attacks
from influence_cli.stages.retrain.canaries import plant_in_arms
from influence_cli.stages.retrain.pareto import pareto
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.retrain.rounds import iterated_arms
from influence_cli.stages.retrain.run_place import check_model, check_run_folder
from influence_cli.stages.retrain.scored_arms import scored_arms
from influence_cli.stages.retrain.training_run import TrainingRun
from influence_cli.stages.run.usable_rows import check_classes, left_out_of, usable_now
from influence_cli.store import Store

if TYPE_CHECKING:
    from influence_cli.model.train.sgd import Recipe


def retrain(request: RetrainRequest, recipe: Recipe, listener: Listener = SILENT) -> dict[str, Any]:
    """Train every arm over every seed, write the run folder, and return its metrics."""
    from influence_cli.model.build import device_of
    from influence_cli.model.train.convex import check_convex
    from influence_cli.model.train.sgd import Examples

    check_run_folder(request, recipe, listener=listener)
    manifest = _open(request, request.inputs.manifest)
    base = _base_rows(request, manifest)
    spec = _checked_spec(request, base.manifest)
    test = _test_rows(request, base.manifest, spec, listener)
    check_convex(recipe, spec.name, request.seeds)
    base, test = (usable_now(rows, spec, request.inputs) for rows in (base, test))
    left_out = _left_out(request, base)
    arms = _arms(request, manifest, base, left_out, spec, listener)
    in_rounds = request.edits is not None and request.edits.rounds > 1
    if request.edits is not None and not in_rounds:
        arms += scored_arms(request.edits, base, request.seed, left_out)
    device = device_of(request.device)
    planted = plant_in_arms(request, base, arms, left_out, spec.num_classes, listener)
    run = TrainingRun(request, recipe, spec, base, test, device, listener)
    run.sets = {
        "train": Examples(base, spec, listener, "train rows"),
        "test": Examples(test, spec, listener, "test rows"),
    }
    target = usable_now(base.manifest.rows("val"), spec, request.inputs)
    unusable = left_out_of(target.manifest, test.manifest)
    if len(target):
        run.sets["target"] = Examples(target, spec, listener, "target rows")
    if in_rounds and request.edits is not None:
        arms += iterated_arms(run, request.edits, base)
    _check_names(arms)
    metrics: dict[str, Any] = {
        "schema_version": 1,
        "test_rows": len(test),
        "num_classes": spec.num_classes,
        "arms": {},
        "comparison": {},
        **({"left_out": unusable} if unusable else {}),
    }
    results = {
        arm.name: {str(k): run.train(arm, k, arm is arms[0]) for k in range(request.seed, request.seed + request.seeds)}
        for arm in arms
    }
    how = attack_of(request.attack, request.options, spec)
    if how is not None:
        metrics["attack"] = measure_attacks(run, how, arms, results)
    for arm in arms:
        metrics["arms"][arm.name] = summary_of(arm, base, results[arm.name])
    compare_arms(metrics, arms)
    metrics["test_classes"] = (np.bincount(test.labels) / len(test)).tolist()
    cautions = cautions_of(metrics)
    if cautions:
        metrics["cautions"] = cautions
    front = pareto(metrics, METRICS, request.seed)
    if front:
        metrics["pareto"] = front
    run.finish(arms[0], metrics, {**_calibration(request, base, left_out), "canaries": planted})
    return metrics


def _open(request: RetrainRequest, source: Any) -> Manifest:
    return open_manifest(source, request.inputs.label, request.inputs.skip_bad)


def _base_rows(request: RetrainRequest, manifest: Manifest) -> Rows:
    """The train rows that every arm edits: those of ``--against``, or of the manifest alone."""
    base = manifest if request.against is None else _open(request, request.against)
    rows = base.rows("train")
    if len(rows) == 0:
        raise ManifestError("no train rows", where=base.source, fix="set column split to train for some rows")
    return rows


def _test_rows(request: RetrainRequest, manifest: Manifest, spec: ModelSpec, listener: Listener) -> Rows:
    if request.test is None:
        rows, where = manifest.rows("test"), f"{manifest.source}, split test"
    else:
        other = numbered_as(_open(request, request.test), spec.classes, manifest.source, listener)
        where = other.source
        rows = other.rows("test") if (other.splits == "test").any() else other.all_rows()
    if len(rows) == 0:
        raise ManifestError("no test rows", where=where, fix="set split to test for some rows, or pass --test PATH")
    columns = rows.manifest.table.column_names
    if request.inputs.group != GROUP and request.inputs.group not in columns:
        fix = f"columns there are: {', '.join(columns)}"
        raise ManifestError(f"no column {request.inputs.group!r} with groups", where=rows.manifest.source, fix=fix)
    return rows


def _checked_spec(request: RetrainRequest, manifest: Manifest) -> ModelSpec:
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
        from influence_cli.model.task import training_spec

        return training_spec(request.inputs, manifest, _notes(request))
    from_scratch = request.init is None and not request.pretrained
    return new_spec(request.inputs, manifest, None, from_scratch)


def _notes(request: RetrainRequest) -> Store:
    """Where the run folder remembers the code of a model of the user's own: its notes, in no store."""
    return Store(Path(request.output), marked=False)


def _arms(
    request: RetrainRequest,
    manifest: Manifest,
    base: Rows,
    left_out: NDArray[np.bool_],
    spec: ModelSpec,
    listener: Listener,
) -> list[Arm]:
    """The first arm is the one whose checkpoint becomes the run's."""
    if request.against is None:
        if request.arms:
            raise UsageError("--arm needs --against", fix="pass --against MANIFEST, the rows before curation")
        return [without(base_arm("all rows" if request.edits is None else "no edit", base), left_out)]
    made: list[Arm] = []
    for name, source in (("curated", manifest), *request.arms):
        table = numbered_as(_open(request, source), base.manifest.classes, base.manifest.source, listener)
        arm = curated_arm(name, base, table, left_out)
        _check_outputs(arm, base, table, spec)
        made += [arm, *control_arms(arm, base, table, request.seed, left_out)]
    return [made[0], without(base_arm("no edit", base), left_out), *made[1:]]


def _check_outputs(arm: Arm, base: Rows, table: Manifest, spec: ModelSpec) -> None:
    """Refuse a curated manifest that gives a row a label which the model has no output for."""
    outside = np.flatnonzero(arm.labels >= spec.num_classes)
    if len(outside):
        row = int(outside[0])
        raise ManifestError(
            f"label {arm.labels[row]} is outside the model's {spec.num_classes} classes",
            where=f"{table.source}, row id={base.ids[row]}",
            fix="correct the label, or pass --num-classes",
        )


def _check_names(arms: list[Arm]) -> None:
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise UsageError("two arms have the same name", fix="name each --arm differently, and every column once")


def _left_out(request: RetrainRequest, base: Rows) -> NDArray[np.bool_]:
    """The seeded share of train rows that no arm is trained on, for the gate's calibration."""
    from influence_cli.methods.random import Random

    return Random().score(base.ids, request.seed) < request.calibration


def _calibration(request: RetrainRequest, base: Rows, left_out: NDArray[np.bool_]) -> dict[str, Any]:
    """What the run folder says of those rows: a row with another label or payload under an id is none of them."""
    rows = np.flatnonzero(left_out).tolist()
    keys = tuple(base.row_keys[k].tobytes().hex() for k in rows)
    ids = tuple(base.ids[k] for k in rows)
    return {"calibration": request.calibration, "calibration_ids": ids, "calibration_keys": keys}

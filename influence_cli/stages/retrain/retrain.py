"""(4) edited manifest -> checkpoint, and a comparison with no edit and with random edits of the same size.

Arms share the seed, so initialisation, order and augmentation are the same for every row they have in common.  A
finished arm and seed is kept under ``RUN/arms/<fingerprint>`` and never trained twice.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.data.changed_texts import WORDS, Changed, changed_texts
from influence_cli.errors import UsageError
from influence_cli.events import SILENT, Listener
from influence_cli.methods.random import uniform_draws
from influence_cli.model.losses import loss_of
from influence_cli.model.text_lengths import text_lengths
from influence_cli.stages.curate.known_rows import rounded_up
from influence_cli.stages.curate.score_table import group_names
from influence_cli.stages.retrain.arm_comparison import cautions_of, compare_arms, pareto, summary_of
from influence_cli.stages.retrain.arms import Arm
from influence_cli.stages.retrain.attacked_arms import attack_of, measure_attacks
from influence_cli.stages.retrain.canaries import plant_in_arms
from influence_cli.stages.retrain.differences import Differences
from influence_cli.stages.retrain.folds import check_folds, out_of_fold
from influence_cli.stages.retrain.opening import (
    as_fine_tuning,
    base_rows,
    compared_arms,
    model_to_train,
    open_table,
    rows_to_test,
    say_of_rows,
    scored_arms,
)
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.retrain.rounds import check_rounds, iterated_arms
from influence_cli.stages.retrain.run_place import at_hand, check_model, check_run_folder
from influence_cli.stages.retrain.shared_rows import target_to_measure
from influence_cli.stages.retrain.training_run import Training, TrainingRun
from influence_cli.stages.run.usable_rows import left_out_of, usable_now

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.model.examples import Examples
    from influence_cli.model.spec import ModelSpec
    from influence_cli.model.train.recipe import Recipe


def retrain(
    request: RetrainRequest, recipe: Recipe, listener: Listener = SILENT, trained: list[Training] | None = None
) -> dict[str, Any]:
    """Train every arm over every seed, write the run folder, return its metrics; ``trained`` gets the trainings."""
    from influence_cli.model.build import device_of
    from influence_cli.model.examples import Examples
    from influence_cli.model.train.convex import check_convex

    request, recipe = as_fine_tuning(at_hand(request), recipe, listener)
    check_run_folder(request, recipe, listener=listener)
    manifest = open_table(request, request.inputs.manifest)
    base = base_rows(request, manifest)
    spec = model_to_train(request, base.manifest, listener)
    check_model(request, spec.name)  # of a run that stands in the run folder
    _say_texts(base, spec, listener)
    test = rows_to_test(request, base.manifest, spec, listener)
    check_convex(recipe, spec.name, request.seeds)
    _check_notes(request, recipe, base, listener)
    base, test = (usable_now(rows, spec, request.inputs) for rows in (base, test))
    left_out = uniform_draws(base.ids, request.seed) < request.calibration  # of every arm, for the gate's calibration
    if left_out.any():
        kept = int(left_out.sum())
        share = f"{kept / len(left_out):.1%} of {len(left_out):,}, since each is drawn by its id"
        told = f"the gate can tell a --false-flag of {rounded_up(100 / (1 + kept))}% or more"
        listener.note(f"{kept:,} calibration rows ({share}) are left out of training: {told}")
    edits, arms = request.edits, compared_arms(request, manifest, base, left_out, spec, listener)
    if edits is not None and left_out.any():
        what = f"--calibration and {'--scores' if edits.rounds == 1 else '--rounds'} are two questions"
        raise UsageError(what, fix="leave --calibration out")
    if edits is not None and edits.rounds == 1:
        arms += scored_arms(edits, base, request.seed, listener)
    target = usable_now(base.manifest.rows("val"), spec, request.inputs)
    whole, (target, overlap) = len(target), target_to_measure(request, base, target, test, listener)
    say_of_rows(request, spec, base, listener)
    device = device_of(request.device)
    planted = plant_in_arms(request, base, arms, left_out, spec.num_classes, listener)
    sets = {
        name: Examples(rows, spec, listener, f"{name} rows")
        for name, rows in (("train", base), ("test", test), ("target", target))
        if name == "train" or len(rows)
    }
    attack_of(request.attack, request.options, spec)  # what cannot be attacked is refused before anything is trained
    changed, twins = _changed(request, base, test, spec, listener)
    run = TrainingRun(request, recipe, spec, base, test, sets, device, listener, changed, twins)
    run.narrowed = target.fingerprint() if len(target) < whole else None
    if edits is not None and edits.rounds > 1:
        arms += iterated_arms(run, edits, base)
    if len({arm.name for arm in arms}) < len(arms):
        raise UsageError("two arms have the same name", fix="name each --arm differently, and every column once")
    metrics = _metrics(run, arms, left_out_of(target.manifest, test.manifest), overlap)
    folds = out_of_fold(run, arms[0], metrics)
    kept = {  # of the rows left out: one with another label or payload under its id is none of them
        "calibration": request.calibration,
        "calibration_ids": tuple(itertools.compress(base.ids, left_out)),
        "calibration_keys": tuple(key.tobytes().hex() for key in base.row_keys[left_out]),
    }
    run.finish(arms[0], metrics, {**kept, "canaries": planted, "folds": folds})
    if trained is not None:
        trained += run.trainings
    return metrics


def _changed(
    request: RetrainRequest, base: Rows, test: Rows, spec: ModelSpec, listener: Listener
) -> tuple[Changed, Examples] | tuple[None, None]:
    """The changed twins of test texts, and these decoded, where flips are counted.

    Raises:
        UsageError: the labels are no classes, which is what flips.
    """
    from influence_cli.model.examples import Examples

    if request.flips is None:
        return None, None
    if not loss_of(spec).by_class:
        what = f"--flips counts predicted classes that flip, and the labels are {base.manifest.label_kind.called}"
        raise UsageError(what, fix="leave it out")
    changed = changed_texts(test, None if request.flips == WORDS else request.flips)
    listener.note(f"{len(changed):,} of {len(test):,} test texts change ({changed.source})")
    return changed, Examples(test, spec, listener, "changed test rows", changed.twins)


def _check_notes(request: RetrainRequest, recipe: Recipe, base: Rows, listener: Listener) -> None:
    """Refuse (UsageError) what cannot be noted of a training, or what a method takes from one and will not be there."""
    if recipe.augment != "none" and not base.manifest.payload_kind.pixels:
        what = f"--augment {recipe.augment} moves pixels, and the rows have {base.manifest.payload_kind.column}"
        raise UsageError(what, fix="leave it out")
    check_folds(request, base, listener)
    check_rounds(request.edits, recipe)
    if (request.wants_epochs or request.wants_moments) and not recipe.has_epochs:
        what = f"--record {','.join(request.record)} with --optimizer {recipe.optimizer}: it solves for the optimum"
        raise UsageError(f"{what}, and has no epochs", fix="leave --record out, or pass --optimizer sgd")
    if request.wants_moments and not request.keep_checkpoints:
        what = "--record moments keeps the optimizer's state beside kept checkpoints, and none is kept"
        raise UsageError(what, fix="add --keep-checkpoints 6")


def _say_texts(rows: Rows, spec: ModelSpec, listener: Listener) -> None:
    """How long the texts are, and how many are cut."""
    found = text_lengths(rows, spec, None)
    if found is not None and spec.text is not None and (found.over == 0 or spec.text.cut):
        found.say(spec.text.max_length, "train", spec.text.cut, listener)


def _metrics(run: TrainingRun, arms: list[Arm], unusable: dict[str, Any], overlap: str | None) -> dict[str, Any]:
    """Train every arm over every seed: what each comes to, and how they compare."""
    request = run.request
    metrics: dict[str, Any] = {
        "schema_version": 1,
        "test_rows": len(run.test),
        "num_classes": run.spec.num_classes,
        "arms": {},
        "comparison": {},
        **({"left_out": unusable} if unusable else {}),
        **({"overlap_for_score": overlap} if overlap is not None else {}),
    }
    seeds = range(request.seed, request.seed + request.seeds)
    run.train_shared([(arm, seed, arm is arms[0]) for arm in arms for seed in seeds])
    results = {arm.name: {str(seed): run.train(arm, seed, arm is arms[0]) for seed in seeds} for arm in arms}
    different = Differences.of(run, arms, results)
    attack = attack_of(request.attack, request.options, run.spec) if len(run.test) else None  # of a run of classes
    if attack is not None:
        drawn, of_draws = different.drawn()
        metrics["attack"] = measure_attacks(run, attack, [*arms, *drawn], {**results, **of_draws})
        metrics["attack_asked"] = request.attack is not None
    metrics["arms"] = {
        a.name: summary_of(a, results[a.name], different.draws.get(a.name, ()), different.same) for a in arms
    }
    metrics["intervals_over"] = different.over
    compare_arms(metrics, arms, different.between)
    if len(run.test):
        if run.loss.by_class:
            metrics["test_classes"] = (np.bincount(run.test.labels) / len(run.test)).tolist()
        if request.inputs.group in run.test.manifest.table.column_names:  # whose gaps are measured
            column = request.inputs.group
            metrics["groups"] = {"column": column, "names": group_names(run.test, column)}
    found = {
        "cautions": cautions_of(metrics),
        "pareto": pareto(metrics, request.seed, different.between, different.same),
    }
    return {**metrics, **{name: value for name, value in found.items() if value}}

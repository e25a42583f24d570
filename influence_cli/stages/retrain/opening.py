"""What a ``retrain`` works on: the rows that every arm edits, the test rows, the model, and the arms it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.actions import make_action
from influence_cli.data.classes import label_called
from influence_cli.data.content_notes import classes_not_trained_on
from influence_cli.data.feature_names import identity_of
from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.labels import numbered_as
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.data.open import open_manifest
from influence_cli.errors import ManifestError, UsageError
from influence_cli.events import SILENT, Listener
from influence_cli.model.checkpoints import find_model
from influence_cli.model.hf_folder import HF, hub_name, start_folder
from influence_cli.model.hub import download
from influence_cli.model.new_spec import new_spec
from influence_cli.model.spec import ModelSpec, is_own, is_plain, refuse_pretrained
from influence_cli.model.standardise import standardised_by
from influence_cli.settings import parse_budget
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.curate.score_table import GROUP, groups_of, read_scores, said_of_rows_without_score
from influence_cli.stages.retrain.arms import Arm, base_arm, control_arms, curated_arm, described, proposals_of, without
from influence_cli.stages.retrain.request import EditsRequest, RetrainRequest
from influence_cli.stages.run.class_map import named_classes, with_class_order, with_outputs
from influence_cli.stages.run.resolve import known_again, refuse_contradictions
from influence_cli.stages.run.usable_rows import check_alike, check_classes, check_labelled
from influence_cli.store import Store

if TYPE_CHECKING:
    from influence_cli.model.train.recipe import Recipe


def open_table(request: RetrainRequest, source: Any, like: Manifest | None = None) -> Manifest:
    """A manifest, opened as the request says."""
    return open_manifest(source, request.inputs.label, request.inputs.skip_bad, like=like)


def base_rows(request: RetrainRequest, manifest: Manifest) -> Rows:
    """The train rows that every arm edits: those of ``--against``, or of the manifest alone."""
    base = manifest if request.against is None else open_table(request, request.against)
    rows = base.rows("train")
    if len(rows) == 0:
        raise ManifestError("no train rows", where=base.source, fix="set column split to train for some rows")
    if not (rows.weights > 0).any():
        where, fix = f"{base.source}, column weight", "give some rows a weight above 0"
        raise ManifestError(f"all {len(rows):,} train rows have weight 0", where=where, fix=fix)
    labels = base.label_kind
    if labels.trained and not labels.differ(rows.labels, rows.labels[:1]).any():
        by_class = labels.holds == CLASSES
        named = label_called(base.classes, int(rows.labels[0])) if by_class else f"label {rows.labels[0].tolist()}"
        fix = f"give train rows of at least two {'classes' if by_class else 'labels'}"
        raise ManifestError(f"every train row has {named}", where=f"{base.source}, split train", fix=fix)
    return rows


def rows_to_test(request: RetrainRequest, manifest: Manifest, spec: ModelSpec, listener: Listener) -> Rows:
    """The test rows: those of ``--test``, or of split test; none where there are none and nothing is compared.

    Raises:
        ManifestError: there are none and something is compared, or no column with the groups that are asked for.
    """
    if request.test is None:
        rows, where = manifest.rows("test"), f"{manifest.source}, split test"
    else:
        other = numbered_as(open_table(request, request.test, manifest), spec.classes, manifest.source, listener)
        check_alike(other, manifest, spec)
        rows, where = test_part(other), other.source
    compared = request.against is not None or request.edits is not None or request.attack not in (None, "none")
    if len(rows) == 0 and (request.test_required or compared or request.test is not None):
        raise ManifestError("no test rows", where=where, fix="set split to test for some rows, or pass --test PATH")
    if len(rows) == 0:
        listener.note("there are no test rows, and nothing is compared: accuracy on test rows is not measured")
        return rows
    columns = rows.manifest.table.column_names
    if request.inputs.group != GROUP and request.inputs.group not in columns:
        fix = f"columns there are: {', '.join(columns)}"
        raise ManifestError(f"no column {request.inputs.group!r} with groups", where=rows.manifest.source, fix=fix)
    groups = groups_of(rows, request.inputs.group)
    if groups is not None and (groups >= 0).any() and (groups < 0).any():
        said = f"{int((groups < 0).sum()):,} of {len(rows):,} test rows have no group (column {request.inputs.group})"
        listener.warn(f"{said}: gaps are those of the others")
    return rows


def test_part(other: Manifest) -> Rows:
    """The rows of a manifest that was given to be tested on: its split test, or all where it has none."""
    return other.rows("test") if (other.splits == "test").any() else other.all_rows()


def as_fine_tuning(
    request: RetrainRequest, recipe: Recipe, listener: Listener = SILENT
) -> tuple[RetrainRequest, Recipe]:
    """A training of a model of transformers as one that begins with its folder's weights, by the recipe of such.

    A small GPT has a recipe of its own.

    Raises:
        ModelError: the folder cannot be used, or a model of the hub cannot be had.
    """
    from influence_cli.model.train.recipe import usual_recipe

    request = _from_hub(request, listener)
    name = request.inputs.model
    start = start_folder(name) if request.init is None else None
    if start is not None:
        request = replace(request, init=start)
    if name is None and request.init is not None:
        name = (find_model(request.init)[1] or {}).get("name")
    usual = usual_recipe(name)
    return request, recipe if usual is None else recipe.with_usual(usual)


def _from_hub(request: RetrainRequest, listener: Listener) -> RetrainRequest:
    """The same with a folder in place of a name on the hub, which is downloaded where --pretrained gives leave."""
    named = hub_name(request.inputs.model)
    if named is None or not request.pretrained or request.init is not None:
        return request
    base_rows(request, open_table(request, request.inputs.manifest))  # what is wrong with the rows is said before
    found = download(named, listener)
    inputs = replace(request.inputs, model=f"{HF}{found.folder}")
    return replace(request, inputs=inputs, pretrained=False, hub=found.name)


def model_to_train(request: RetrainRequest, manifest: Manifest, listener: Listener = SILENT) -> ModelSpec:
    """The model to train; what a checkpoint to begin with says of its classes and features holds for the rows too.

    Features of ``linear`` and ``mlp`` are standardised by the train rows, unless they are asked for as they are.
    """
    spec = _to_train(request, manifest, listener)
    check_labelled(manifest, spec)
    return spec if spec.features is not None else replace(spec, features=identity_of(manifest))


def _to_train(request: RetrainRequest, manifest: Manifest, listener: Listener) -> ModelSpec:
    """The same, without what the features are, where no checkpoint says it."""
    notes = Store(Path(request.output), marked=False)  # of the code of a model of the user's own; in no store
    inputs = named_classes(request.inputs, manifest)
    own = inputs.task is not None or is_own(inputs.model)
    refuse_pretrained(request.pretrained, inputs.model, own)
    if request.init is not None:
        _, carried = find_model(request.init, own, not manifest.labelled)
        if carried is not None and carried.get("adapter") is not None:
            what, fix = "LoRA adapters are scored here, and trained elsewhere", "give a model without adapters"
            raise UsageError(what, where=request.init, fix=fix)
        if carried is not None and inputs.model in (None, carried["name"]):
            spec = ModelSpec.from_dict(carried)
            refuse_contradictions(inputs, spec, request.init)
            spec = with_class_order(spec, inputs, manifest, request.init, carried=True)
            check_classes(manifest, spec)
            return known_again(spec, inputs, request.init, manifest, notes)
    elif inputs.class_map is not None:
        if request.canaries is None or request.canaries.source is None:
            what = "--class-map is about the classes of a checkpoint to begin with, and there is none"
            raise UsageError(what, fix="leave --class-map out, or pass --init CHECKPOINT")
        inputs = replace(inputs, class_map=None)  # it is about --canaries-from
    if own:
        from influence_cli.stages.run.own_model import training_spec

        return training_spec(inputs, manifest, notes)
    from_scratch = request.init is None and not request.pretrained
    spec = new_spec(with_outputs(inputs), manifest, None, from_scratch, listener)
    made = standardised_by(spec, manifest.rows("train"), request.raw_features) if from_scratch else spec
    return with_class_order(made, inputs, manifest, request.init or "")


def say_of_rows(request: RetrainRequest, spec: ModelSpec, base: Rows, listener: Listener) -> None:
    """What is made of the rows' features, and a warning of classes that the model cannot learn."""
    by_us = is_plain(spec.name) and spec.payload_kind.scaled and request.inputs.mean is None
    if by_us and spec.mean and request.init is None and not request.raw_features:
        said = "features are standardised by mean and sd of the train rows (--raw-features takes them as they are)"
        listener.note(said)
    for untaught in classes_not_trained_on(base.manifest):
        listener.warn(untaught)


def compared_arms(
    request: RetrainRequest,
    manifest: Manifest,
    base: Rows,
    left_out: NDArray[np.bool_],
    spec: ModelSpec,
    listener: Listener,
) -> list[Arm]:
    """The curated manifests, no edit and controls, the one whose checkpoint becomes the run's first.

    Raises:
        UsageError: arms are named and nothing to compare them with.
        ManifestError: a curated manifest does not fit the rows, or the model.
    """
    if request.against is None:
        if request.arms:
            raise UsageError("--arm needs --against", fix="pass --against MANIFEST, the rows before curation")
        return [without(base_arm("all rows" if request.edits is None else "no edit", base), left_out)]
    made: list[Arm] = []
    for name, source in (("curated", manifest), *request.arms):
        table = numbered_as(open_table(request, source), base.manifest.classes, base.manifest.source, listener)
        check_alike(table, base.manifest, spec)
        arm = curated_arm(name, base, table, left_out)
        _check_outputs(arm, base, table, spec)
        made += [arm, *control_arms(arm, base, proposals_of(table, base), request.seed, left_out)]
    return [made[0], without(base_arm("no edit", base), left_out), *made[1:]]


def _check_outputs(arm: Arm, base: Rows, table: Manifest, spec: ModelSpec) -> None:
    """Refuse a curated manifest that gives a row a label which the model has no output for."""
    if table.label_kind.holds != CLASSES:
        return
    outside = np.flatnonzero(arm.labels >= spec.num_classes)
    if len(outside):
        row = int(outside[0])
        what = f"{label_called(table.classes, int(arm.labels[row]))} is outside the model's {spec.num_classes} classes"
        fix = "correct the label, or pass --num-classes"
        raise ManifestError(what, where=f"{table.source}, row id={base.ids[row]}", fix=fix)


def scored_arms(request: EditsRequest, base: Rows, seed: int, listener: Listener = SILENT) -> list[Arm]:
    """An arm and its controls for every (columns, action, budget); reweighting touches all rows, whatever the budget.

    Raises:
        UsageError: the table, a column, an action or a budget cannot be used.
    """
    wanted = [(name,) for name in request.by] + ([request.by] if request.combine is not None else [])
    if "relabel" in request.actions and not base.manifest.labelled:
        what = "relabel gives rows another label, and these have none"
        raise UsageError(what, where=base.manifest.source, fix="use --action trim or reweight")
    made: list[Arm] = []
    for by in wanted:
        rule = request.combine if len(by) > 1 else None
        asked = CurateRequest(request.scores, manifest=base.manifest, by=by, combine=rule, options=request.options)
        table = read_scores(asked)
        without = said_of_rows_without_score(table)
        if without is not None:
            listener.warn(f"{table.column}: {without}")
        name = table.column if rule is None else rule
        scored = table.provenance.get("score_is") if name == "score" else name
        objective = table.provenance.get("objective_of", {}).get(scored)
        for action in request.actions:
            for budget in (None,) if action == "reweight" else request.budgets:
                rows = parse_budget(budget or "0", len(base))
                edits = make_action(action, request.options).propose(table.scored, rows)
                called = " ".join(part for part in (name.removeprefix("score_"), action, budget) if part)
                arm = described(Arm(called, edits.labels, edits.weights), base)
                arm.about.update(method=name, action=action, budget=budget)
                if objective is not None:
                    arm.about["objective"] = objective
                made += [arm, *control_arms(arm, base, edits.proposal, seed)]
    return made

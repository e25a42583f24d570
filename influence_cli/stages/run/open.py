"""Manifest, target, checkpoint and settings, resolved into a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from influence_cli.data.changed_texts import changed_texts
from influence_cli.data.open import open_manifest
from influence_cli.errors import ManifestError
from influence_cli.methods import make_methods
from influence_cli.model.checkpoints import Trajectory
from influence_cli.model.losses import loss_of
from influence_cli.objectives import make_objectives
from influence_cli.settings import GradSpec, Inputs
from influence_cli.stages.run.auto_method import with_auto
from influence_cli.stages.run.backbone import for_features, resolve_backbone
from influence_cli.stages.run.class_map import named_classes
from influence_cli.stages.run.curvature_plan import refuse_no_parameters
from influence_cli.stages.run.fit_set import open_fit_set, refuse_without_curvature, with_trained_l2
from influence_cli.stages.run.members import with_members
from influence_cli.stages.run.objective_inputs import refuse_margin, refuse_objectives, target_groups
from influence_cli.stages.run.resolve import resolve_model
from influence_cli.stages.run.row_values import needed_values, solver_of, with_helper
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.stages.run.target import given_target, target_rows
from influence_cli.stages.run.usable_rows import check_classes, usable, usable_now, usable_train_rows


def open_run(inputs: Inputs, spec: GradSpec, session: Session, effects: str = "") -> Run:
    """Manifest, target, checkpoint and settings as a run; ``effects``: why ``auto`` has to be of effects, if it has.

    Raises:
        InfluenceError: something in them cannot work.
    """
    methods, objectives, store, listener = make_methods(spec), make_objectives(spec), session.store, session.listener
    manifest = open_manifest(inputs.manifest, inputs.label, inputs.skip_bad, store.file_keys(), listener=listener)
    if len(manifest.rows("train")) == 0:
        raise ManifestError("no train rows", where=manifest.source, fix="set column split to train for some rows")
    asked, (methods, because) = methods, with_auto(methods, inputs, spec, manifest, effects)
    of_groups = {name: o for name, o in objectives.items() if "groups" in o.needs}
    objectives |= {name: o.of_classes(name, manifest.classes) for name, o in of_groups.items()}
    inputs, values = named_classes(inputs, manifest), needed_values(methods, spec.relative)
    model, checkpoint, about = None, None, dict[str, Any]()
    backbone = resolve_backbone(inputs, manifest, store)
    apart = ("nothing", "features") if backbone is not None and inputs.checkpoint is None else ("nothing",)
    if spec.rows is not None or any(m.needs not in apart for m in methods.values()):
        model, checkpoint = resolve_model(inputs, manifest, store, spec.precision)
        methods, because = with_auto(asked, inputs, spec, manifest, effects, model)
        values = needed_values(methods, spec.relative)
        refuse_margin(methods, model)
        manifest = usable(manifest.rows("train"), model, inputs, store)
        check_classes(manifest, model)
        refuse_objectives(objectives, manifest, model)
        usable_train_rows(manifest)
    elif backbone is not None:
        about["rows_as"], manifest = for_features(backbone, inputs, manifest, store)
    takes = model or about.get("rows_as")
    target, overlap = manifest.rows("val"), manifest.rows("val").take(np.array([], dtype=np.int64))
    rows_of_target = spec.rows is not None and (inputs.target is not None or len(target) > 0)
    if rows_of_target or any(m.needs_target() for m in methods.values()):
        assert takes is not None
        columns = [o.column or inputs.group for o in objectives.values() if "groups" in o.needs]
        target, overlap = target_rows(inputs, manifest, listener, takes, store, columns)
        about["groups"] = target_groups(objectives, target, inputs, takes, listener)
        pairs = {name: o for name, o in objectives.items() if "pairs" in o.needs}
        about["changed"] = {name: changed_texts(target, o.column) for name, o in pairs.items()}
    elif inputs.target is not None and model is not None:  # nothing is measured on them but accuracy
        target, _ = given_target(inputs, manifest, listener, model, store)
    solvers = {n: s for n, m in methods.items() if (s := solver_of(m, values.get(n), spec)) is not None}
    if (solvers or any(m.trains for m in methods.values())) and model is not None and checkpoint is not None:
        for method in methods.values():
            method.check_loss(loss_of(model), spec.precision)
        refuse_without_curvature(solvers, model)
        manifest = usable_now(manifest.rows("train"), model, inputs).manifest  # curvature needs every row
        about["fit"] = open_fit_set(inputs, usable_train_rows(manifest), model, listener)
        trained = (checkpoint.locator, listener, model.task, about["fit"].weight)
        solvers = {n: with_helper(s, spec) for n, s in solvers.items()}
        way = Trajectory(checkpoint)
        solvers = {n: with_trained_l2(s, n, *trained).on_the_way(way) for n, s in solvers.items()}
        methods = {n: solvers[n] if m.fitted_curvature else m for n, m in methods.items()}
        about["solvers"] = solvers
    run = Run(
        inputs, spec, manifest, manifest.rows("train"), target, len(overlap), model, checkpoint, methods, objectives,
        values=values, backbone=backbone, auto_because=because, **about,
    )  # fmt: skip
    _refuse_methods(run, session)
    return with_members(run, session.runtime, store)


def check_methods(run: Run) -> None:
    """Refuse (UsageError) what a method cannot do with so many rows, or with their loss."""
    for name, method in run.methods.items():
        method.check_run(name, run.row_loss, len(run.train), len(run.target))


def _refuse_methods(run: Run, session: Session) -> None:
    """Refuse (UsageError) what a method cannot do with these rows, and parameters that the model has not."""
    refuse_no_parameters(run, session)
    check_methods(run)

"""How far scores foretell what training does: LDS, removal curves, leave-one-out and brittleness, by retraining.

The model and recipe are those of the scored checkpoint, the rows its train rows (less those left out for
calibration), and what is measured is the mean loss of the target rows.  Every training is kept in the store, so that
a run that was stopped continues, and evaluations share what they have in common.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from influence_cli.data.labels import numbered_as
from influence_cli.data.locators import require_found
from influence_cli.data.manifest import Rows
from influence_cli.data.open import open_manifest
from influence_cli.data.tables import shown
from influence_cli.errors import ManifestError, ModelError, UsageError
from influence_cli.events import SILENT, Listener
from influence_cli.methods.random import uniform_draws
from influence_cli.model.checkpoints import Checkpoint, find_checkpoint
from influence_cli.model.losses import loss_of
from influence_cli.model.spec import ModelSpec
from influence_cli.processes.messages import may_be_sent
from influence_cli.settings import Inputs
from influence_cli.stages.curate.score_table import ScoreTable, read_scores
from influence_cli.stages.evaluate.counterfactuals.brittleness import Brittleness
from influence_cli.stages.evaluate.counterfactuals.by_processes import divide
from influence_cli.stages.evaluate.counterfactuals.leave_one_out import LeaveOneOut
from influence_cli.stages.evaluate.counterfactuals.pool import Outcome, Pool, Refit
from influence_cli.stages.evaluate.counterfactuals.refitter import Refitter
from influence_cli.stages.evaluate.counterfactuals.removal import Removal
from influence_cli.stages.evaluate.counterfactuals.scores import MEASURED, columns_of, open_scored_run
from influence_cli.stages.evaluate.counterfactuals.subsets import Subsets
from influence_cli.stages.evaluate.counterfactuals.trainer import open_trainer
from influence_cli.stages.evaluate.request import CounterfactualRequest
from influence_cli.stages.retrain.opening import test_part
from influence_cli.stages.run.reopen import overlap_of
from influence_cli.stages.run.target import target_rows
from influence_cli.stages.run.usable_rows import check_alike, check_classes, check_labels, usable_now
from influence_cli.store import Store, open_store

Part = Subsets | Removal | LeaveOneOut
WRITTEN = "give a table that `score` wrote"
OFF_BY = 0.05  # share by which Phi of all rows trained again may differ from the checkpoint's before that is said


@dataclass(frozen=True, eq=False)
class _Opened:
    scores: ScoreTable
    pool: Pool
    refitter: Refitter
    parts: dict[str, Part]
    brittleness: Brittleness | None
    checkpoint: Checkpoint | None  # that was scored, or that is asked for

    def refits(self) -> dict[str, list[Refit]]:
        """Trainings by part; all rows first, as everything is held against them."""
        whole = self.pool.whole(self.pool.repeats()[:1])
        return {"refit": whole, **{name: part.refits() for name, part in self.parts.items()}}


def counterfactuals(request: CounterfactualRequest, listener: Listener = SILENT) -> dict[str, Any]:
    """Train what is asked for and not kept yet, until the time is over, and say how well the scores foretold it.

    Raises:
        UsageError: nothing says how to train, or a size makes no sense.
        ManifestError: target or manifest are not those that were scored.
    """
    opened = _open(request, listener)
    refits, refitter = opened.refits(), opened.refitter
    divide(refitter, request, _refitter)
    refitter.stop_after(request.max_minutes)
    outcomes = refitter.run([a for some in refits.values() for a in some])
    left = iter(outcomes)
    by_part = {name: [next(left) for _ in some] for name, some in refits.items()}
    figures = {name: part.figures(by_part[name]) for name, part in opened.parts.items()}
    if opened.brittleness is not None:
        figures["brittleness"] = opened.brittleness.measure()
    return {
        "schema_version": 1,
        "train_rows": opened.pool.rows,
        "target_rows": len(refitter.measured["target"]),
        "test_rows": len(refitter.measured["test"]),
        "objective": "mean target loss",
        "refit": _refit(opened, by_part["refit"][0], listener),
        "trainings": len(refitter.wanted),
        "trainings_done": len(refitter.done),
        "trainings_run_now": refitter.trained,
        "partial": None in outcomes or any(f["partial"] for f in figures.values()),
        **figures,
    }


@may_be_sent
def _refitter(request: CounterfactualRequest) -> Refitter:
    """What trains, in another process than the first."""
    return _open(replace(request, brittleness=None), SILENT, remember=False).refitter


def plan(request: CounterfactualRequest, listener: Listener = SILENT) -> dict[str, Any]:
    """How many trainings each part needs, and how many of them are kept."""
    opened = _open(request, listener, remember=False)
    parts = {name: opened.refitter.kept(refits) for name, refits in opened.refits().items()}
    if opened.brittleness is not None:
        parts["brittleness"] = {"trainings_at_most": opened.brittleness.at_most()}
    return {"schema_version": 1, "recipe": opened.refitter.trainer.recipe.describe(), "trainings": parts}


def _open(request: CounterfactualRequest, listener: Listener, remember: bool = True) -> _Opened:
    scores = read_scores(request.scores)
    origin = scores.provenance
    checkpoint = request.checkpoint or (origin.get("checkpoint") or {}).get("locator")
    store = open_store(request.store, listener, remember)
    trainer = open_trainer(checkpoint, scores.manifest, request.training, store)
    check_classes(scores.manifest, trainer.spec)
    if request.checkpoint is None and checkpoint is not None:
        now, then = find_checkpoint(checkpoint)[0].digest, origin["checkpoint"].get("fingerprint")
        if then not in (None, now):
            fix = "run `influence score` again, or pass --checkpoint to say that you mean it"
            raise ModelError("the checkpoint is not the one that was scored", where=checkpoint, fix=fix)
    target = _target(request, scores, trainer.spec, store, listener)
    test = _test_rows(request, scores, trainer.spec, listener)
    for rows in (scores.train, target, test):
        check_labels(rows, trainer.spec.num_classes, scores.label)
    kept = np.array([i not in trainer.calibration_ids for i in scores.train.ids])
    used = kept & (scores.train.weights > 0)
    if trainer.trained_rows not in (None, int(used.sum())):
        listener.warn(
            f"the checkpoint was trained on {trainer.trained_rows:,} rows, here are {int(used.sum()):,}: "
            "what is measured is training on these"
        )
    measured = {"target": target, "test": test}
    refitter = Refitter(trainer, scores.train, used, measured, store.trainings, listener)
    if refitter.deterministic and request.seeds > 1:
        listener.note("lbfgs is deterministic: one training stands for all --seeds")
    columns = columns_of(scores, used)
    if not columns.all or (columns.left_out and columns.none_asked):
        why = "; ".join(f"{name}: {reason}" for name, reason in columns.left_out.items())
        fix = "score with --objective utility, or with --method loss for loss alone" if columns.all else WRITTEN
        raise UsageError(f"no score column to measure ({why or 'there is none'})", where=request.scores.scores, fix=fix)
    random = uniform_draws(scores.train.ids, request.seed)
    pool = Pool(scores.train, used, columns, random, request.seed, request.seeds, refitter.deterministic)
    parts, brittleness = _parts(request, pool), None
    if request.brittleness is not None and not loss_of(trainer.spec).by_class:
        what = f"--brittleness is about predicted classes that flip, and {trainer.spec.name} predicts none"
        raise UsageError(what, fix="use --removal 1%,5% or --lds 50")
    if request.brittleness is not None:
        brittleness = Brittleness(pool, refitter, *open_scored_run(scores, request, remember), request.brittleness)
    found = find_checkpoint(checkpoint)[0] if checkpoint is not None and _is_of(origin, trainer.spec) else None
    return _Opened(scores, pool, refitter, parts, brittleness, found)


def _is_of(origin: dict[str, Any], model: ModelSpec) -> bool:
    """Whether what is trained is the model that was scored, so that the checkpoint's weights fit it."""
    then, now = origin.get("model") or {}, model.as_dict()
    return all(then.get(key, now[key]) == now[key] for key in ("name", "shape", "num_classes"))


def _parts(request: CounterfactualRequest, pool: Pool) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    if request.lds is not None:
        parts["lds"] = Subsets(pool, request.lds, request.subset_share)
    if request.removal:
        parts["removal"] = Removal(pool, request.removal)
    if request.loo is not None:
        if request.fixed_divisor and not pool.deterministic:
            fix = "pass --convention renorm-loo, or train with --optimizer lbfgs"
            raise UsageError("--convention loo needs a training whose divisor can be kept: lbfgs", fix=fix)
        fixed = pool.deterministic if request.fixed_divisor is None else request.fixed_divisor
        parts["leave_one_out"] = LeaveOneOut(pool, request.loo, fixed)
    return parts


def _target(
    request: CounterfactualRequest, scores: ScoreTable, model: ModelSpec, store: Store, listener: Listener
) -> Rows:
    """The target rows that were scored for, verified."""
    then: dict[str, Any] = scores.provenance.get("target", {})
    locator = request.target or then.get("locator")
    if request.target is None and locator is not None:
        require_found(scores.provenance, "target", shown(request.scores.scores))
    skip_bad = bool(scores.provenance.get("skip_bad"))
    how = {"overlap": overlap_of(scores.provenance), "skip_bad": skip_bad}
    inputs = Inputs(scores.manifest, target=locator, label=scores.label, **how)
    target, _ = target_rows(inputs, scores.manifest, listener, model, store)
    if request.target is None and then.get("fingerprint") not in (None, target.fingerprint()):
        what = "the target is not the one that was scored for"
        fix = "run `influence score` again, or pass --target to say that you mean it"
        raise ManifestError(what, where=locator or scores.manifest.source, fix=fix)
    return target


def _test_rows(request: CounterfactualRequest, scores: ScoreTable, model: ModelSpec, listener: Listener) -> Rows:
    """The usable test rows: those that are asked for, or the manifest's."""
    skip_bad = request.scores.skip_bad or bool(scores.provenance.get("skip_bad"))
    test = scores.manifest.rows("test")
    if request.test is not None:
        other = open_manifest(request.test, scores.label, skip_bad)
        check_alike(other, scores.manifest, model)
        test = test_part(numbered_as(other, model.classes, scores.manifest.source, listener))
    return usable_now(test, model, Inputs(scores.manifest, label=scores.label, skip_bad=skip_bad))


def _refit(opened: _Opened, outcome: Outcome | None, listener: Listener) -> dict[str, Any]:
    """Training on all rows again: does it give the checkpoint's target loss?

    Both are measured here, in one way and on the same rows: Phi of the table may be of another objective, of other
    members of an ensemble, or of other target rows.
    """
    then = None if opened.checkpoint is None else opened.refitter.of_checkpoint(opened.checkpoint)
    of_table = _phi_of_another(opened)
    phi = of_table if of_table is not None or then is None else then.phi
    apart = then is not None and outcome is not None and _apart(outcome, then)
    if of_table is not None and outcome is not None:
        apart = abs(outcome.phi - of_table) > OFF_BY * abs(of_table)
    if apart and outcome is not None:
        listener.warn(
            f"training on all rows again gives a mean target loss of {outcome.phi:.4g}, the checkpoint"
            f"{' that was scored' if of_table is not None else ''} has {phi:.4g}: was it trained otherwise, or does "
            "the loss depend this much on the seed?"
        )
    return {
        "recipe": opened.refitter.trainer.recipe.describe(),
        "model": opened.refitter.trainer.spec.name,
        "deterministic": opened.pool.deterministic,
        "phi": None if outcome is None else outcome.phi,
        "phi_of_checkpoint": phi,
    }


def _phi_of_another(opened: _Opened) -> float | None:
    """The mean target loss at the checkpoint that was scored, where another one stands in its place.

    None where it is the same, or where the table does not say: it was scored at members of an ensemble or on other
    target rows, or for other objectives alone.
    """
    origin, checkpoint = opened.scores.provenance, opened.checkpoint
    scored = (origin.get("checkpoint") or {}).get("fingerprint")
    if checkpoint is None or scored in (None, checkpoint.digest) or "score_std" in opened.scores.table.column_names:
        return None
    if origin.get("target", {}).get("fingerprint") != opened.refitter.measured["target"].fingerprint():
        return None
    return origin.get("noise", {}).get(MEASURED, {}).get("phi")


def _apart(now: Outcome, then: Outcome) -> bool:
    """Whether two models' mean target losses differ by more than a share, and by more than rows differ by chance."""
    change = now.target_loss - then.target_loss
    error = float(change.std() / np.sqrt(len(change)))
    return abs(now.phi - then.phi) > max(OFF_BY * abs(then.phi), 2.0 * error)

"""Trimming in rounds: score, take out the lowest q/r of the rows, train again, score again (methods.md 5.1).

The guards are those of one trim of q: what a class or group may lose is counted over all rounds.  Rounds are scored
at models of the first seed; every arm is then trained over all seeds.  Under an objective about groups a round is the
last one where the next model's D has changed its sign, or is below its standard error (methods.md 3.2).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.actions import make_action
from influence_cli.actions.protocol import Scored
from influence_cli.data.manifest import Rows
from influence_cli.data.split_column import SKIPPED
from influence_cli.errors import UsageError
from influence_cli.methods import make_methods
from influence_cli.model.spec import is_own
from influence_cli.settings import Runtime, parse_budget
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.curate.score_table import guarded_groups, read_scores
from influence_cli.stages.retrain.arms import Arm, base_arm, control_arms, described
from influence_cli.stages.retrain.request import EditsRequest
from influence_cli.stages.retrain.training_run import TrainingRun
from influence_cli.stages.run.open import open_run
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.score import score

if TYPE_CHECKING:
    from influence_cli.model.train.recipe import Recipe

STORE = ".influence"  # of a run folder: what its rounds compute


def check_rounds(request: EditsRequest | None, recipe: Recipe) -> None:
    """Refuse (UsageError) rounds by a method that takes from training what a round does not give."""
    if request is None or request.rounds == 1:
        return
    named, needs = ", ".join(request.spec.methods), {m.of_training for m in make_methods(request.spec).values()}
    if "folds" in needs:
        what = f"--rounds by {named} would train the models of --folds anew in every round"
        raise UsageError(what, fix="score once, and pass --scores TABLE; or --method aum")
    if "epochs" in needs and not recipe.has_epochs:
        what = f"--rounds by {named} is about epochs, and --optimizer {recipe.optimizer} has none"
        raise UsageError(what, fix="pass --optimizer sgd, or --method ip")


def iterated_arms(run: TrainingRun, request: EditsRequest, base: Rows) -> list[Arm]:
    """For every budget the trim in so many rounds and the trim in one, each with its controls.

    Raises:
        UsageError: another action than trim, several methods or objectives, or a budget below a row a round.
    """
    spec = request.spec
    if request.actions != ("trim",) or len(spec.methods) != 1 or len(spec.objectives) != 1:
        raise UsageError("--rounds trims, by one method and one objective", fix="name one --method and one --objective")
    made: list[Arm] = []
    for budget in request.budgets:
        rows = parse_budget(budget, len(base))
        if rows < request.rounds:
            raise UsageError(f"{rows} rows are fewer than {request.rounds} rounds", fix="raise --budget")
        for rounds in dict.fromkeys((request.rounds, 1)):
            name = f"{spec.methods[0]}_{spec.objectives[0]} trim {budget}" + (f" in {rounds} rounds" * (rounds > 1))
            arm = _in_rounds(run, request, base, name, rows, rounds)
            arm.about.update(method=spec.methods[0], action="trim", budget=budget)
            made += [arm, *control_arms(arm, base, None, run.request.seed)]
    return made


def _in_rounds(run: TrainingRun, request: EditsRequest, base: Rows, name: str, rows: int, rounds: int) -> Arm:
    trim, (method,) = make_action("trim", request.options), make_methods(request.spec).values()
    gone, history, first = np.zeros(len(base), dtype=bool), list[dict[str, Any]](), dict[str, Any]()
    for k in range(rounds):
        arm = base_arm(f"{name}: round {k + 1}" if k else "no edit", base)
        arm.weights[gone] = 0.0
        run.train(arm, run.request.seed, False, method.of_training == "epochs")
        scored, origin = _scored(run, request, base, gone, run.folder(arm, run.request.seed).path)
        noise = next(iter(origin["noise"].values()), {})
        first = first or noise
        over = closed(first, noise) if k and trim.parity == "stop" else None
        if over is not None:
            history.append({"stopped": over, **_round_record(gone, noise)})
            run.listener.note(f"{name}: stopped at parity after round {k}, {int(gone.sum()):,} rows: {over}")
            break
        wanted = rows * (k + 1) // rounds - int(gone.sum())
        edits = trim.propose(scored, wanted, gone)
        gone[edits.edited] = True
        history.append(_round_record(gone, noise))
    arm = base_arm(name, base)
    arm.weights[gone] = 0.0
    arm = described(arm, base)
    arm.about["rounds"] = history
    return arm


def _round_record(gone: NDArray[np.bool_], noise: dict[str, Any]) -> dict[str, Any]:
    """What a round says: the rows that went by its end, and the noise of its scores, with D where there is one."""
    gaps = [term["gap"] for term in (noise.get("parts") or {}).get("terms", [])]
    record = {"trimmed": int(gone.sum()), **{n: noise.get(n) for n in ("phi", "snr", "reliability")}}
    return {**record, **({"gaps": gaps} if gaps else {})}


def _scored(
    run: TrainingRun, request: EditsRequest, base: Rows, gone: NDArray[np.bool_], checkpoint: Path
) -> tuple[Scored, dict[str, Any]]:
    """The rows that are left, scored at a checkpoint, in the order of all rows (the others have no score)."""
    manifest = base.manifest
    if gone.any():
        splits = manifest.splits.copy()
        splits[base.index[gone]] = SKIPPED
        manifest = dataclasses.replace(manifest, splits=splits)
    model = run.spec.name if is_own(run.spec.name) else None  # code is named by this run, not by the folder
    inputs = dataclasses.replace(
        run.request.inputs, manifest=manifest, checkpoint=str(checkpoint), model=model, class_map=None
    )
    runtime = Runtime(str(Path(run.request.output) / STORE), run.request.device)
    session = Session.open(runtime, run.listener)
    scored, _ = score(open_run(inputs, request.spec, session), session)
    table = read_scores(CurateRequest(scored, manifest=manifest))
    full = np.full(len(base), np.nan)
    full[np.searchsorted(base.index, table.train.index)] = table.scored.score  # both ascend
    kind, parity = table.scored.kind, table.scored.parity
    groups = guarded_groups(base, table.group_columns)
    scored = Scored(
        full,
        kind,
        base.labels,
        base.weights,
        base.row_keys,
        groups=groups[0] if groups else None,
        more_groups=tuple(groups[1:]),
        parity=parity,
        parts=table.scored.parts if table.scored.parts is None else base.strata,
    )
    return scored, table.provenance


def closed(first: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Why there is no gap to close any more, of an objective's ``noise`` before the first round and now; else None."""
    was, terms = ((entry.get("parts") or {}).get("terms") or [] for entry in (first, now))
    if not terms:
        return None
    flipped = [a["gap"] * b["gap"] < 0 for a, b in zip(was, terms, strict=True)]
    within = [abs(b["gap"]) < b["gap_se"] for b in terms]
    if not all(f or w for f, w in zip(flipped, within, strict=True)):
        return None
    gaps = ", ".join(
        f"D {a['gap']:.4g} -> {b['gap']:.4g}, standard error {b['gap_se']:.2g}" for a, b in zip(was, terms, strict=True)
    )
    return f"{'the sign of D has changed' if all(flipped) else 'D is below its standard error'} ({gaps})"

"""What users of an objective look at, of the model that was scored: accuracy, gaps, flips, and under attack.

Only tables scored for an objective about groups, about changed texts or under attack, and those that are asked for
flips, need the model to be run for it; of others the target accuracy is in the provenance already.  The rows are the
target rows, which the scores have seen, and the manifest's test rows, which they have not.
"""

from __future__ import annotations

from typing import Any

from influence_cli.data.changed_texts import WORDS, Changed, changed_texts
from influence_cli.data.manifest import Rows
from influence_cli.errors import DamagedModel, InfluenceError, UsageError
from influence_cli.events import Listener
from influence_cli.model.losses import loss_of
from influence_cli.objectives import OBJECTIVES, load_objective
from influence_cli.stages.curate.score_table import group_names
from influence_cli.stages.evaluate.request import EvaluateRequest
from influence_cli.stages.evaluate.score_tables import NamedTable, ScoreTables
from influence_cli.stages.retrain.arm_comparison import beyond_accuracy, flips_of
from influence_cli.stages.retrain.attacked_arms import AttackedRows
from influence_cli.stages.run.reopen import reopen
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.stages.run.usable_rows import usable_now


def quality_of(scores: ScoreTables, request: EvaluateRequest, listener: Listener) -> list[dict[str, Any]]:
    """One entry for every checkpoint and groups that tables were scored at; a model that is gone is only noted."""
    asked: dict[tuple[Any, ...], list[NamedTable]] = {}
    for table in scores.tables:
        origin = table.provenance
        then, objectives = origin.get("checkpoint"), origin.get("spec", {}).get("objectives", [])
        needs = {"rows"}  # of an objective that is not known here, its name
        for name in objectives:
            needs |= load_objective(name).needs if name in OBJECTIVES else {name}
        flips = request.flips or (_twins_of(origin) if "pairs" in needs else None)
        if then is not None and (needs != {"rows"} or flips):
            column = origin["manifest"].get("group") or ""
            asked.setdefault((then["fingerprint"], column, "attack" in needs, flips), []).append(table)
    if request.flips and not asked:
        what = "--flips asks a model for its predictions, and no table was scored with one"
        raise UsageError(what, where=scores.tables[0].source, fix="give a table that ip or loss made, or leave it out")
    found: list[dict[str, Any]] = []
    for (_, column, _, flips), tables in asked.items():
        origin, where = tables[0].provenance, tables[0].source
        places = {"source": where, "manifest": request.manifest, "checkpoint": request.checkpoint}
        try:
            run, session = reopen(origin, request.runtime, listener, remember=False, **places)
            if flips and run.model is not None and not loss_of(run.model).by_class:
                what = f"--flips counts predicted classes that change, and {run.model.name} predicts none"
                raise UsageError(what, where=where, fix="leave --flips out")
            changed = _changed(run, flips, listener) if flips else {}
            rows = _measured(run, session, column, changed)
        except DamagedModel:
            raise  # a model that is gone is noted; one that is there and damaged is an error
        except InfluenceError as error:
            if request.flips:
                raise
            listener.note(f"{where}: its model is not measured: {error}")
            continue
        objectives = [o for t in tables for o in t.provenance["spec"]["objectives"]]
        found.append(
            {
                "tables": [t.source for t in tables],
                "objectives": list(dict.fromkeys(objectives)),
                "checkpoint": origin["checkpoint"]["locator"],
                "group": column or None,
                "groups": {"column": column, "names": group_names(run.target, column)} if column else None,
                **_flips_said(changed),
                "rows": rows,
            }
        )
    return found


def _twins_of(origin: dict[str, Any]) -> str:
    """The changed texts that a table about them was made with, as ``--flips`` names them."""
    options = (origin["spec"].get("options") or {}).get("flip-fairness") or {}
    return options.get("column") or WORDS


def _changed(run: Run, flips: str, listener: Listener) -> dict[str, Changed]:
    """The changed texts of target and test rows, which are said in numbers."""
    found: dict[str, Changed] = {}
    for split, rows in _rows(run).items():
        found[split] = changed_texts(rows, None if flips == WORDS else flips)
        listener.note(f"{len(found[split]):,} of {len(rows):,} {split} texts change ({found[split].source})")
    return found


def _flips_said(changed: dict[str, Changed]) -> dict[str, Any]:
    if not changed:
        return {}
    sources = [twins.source for twins in changed.values()]
    return {"flips": {"source": sources[0], "changed": {split: len(twins) for split, twins in changed.items()}}}


def _rows(run: Run) -> dict[str, Rows]:
    """Target rows and the manifest's test rows that the model can use, where there are any."""
    assert run.model is not None
    rows = {"target": run.target, "test": usable_now(run.manifest.rows("test"), run.model, run.inputs)}
    return {split: some for split, some in rows.items() if len(some)}


def _measured(run: Run, session: Session, column: str, changed: dict[str, Changed]) -> dict[str, dict[str, Any]]:
    """By split, how many rows there are and what is measured of them."""
    from influence_cli.model.build import load_model
    from influence_cli.model.examples import Examples
    from influence_cli.model.train.sgd import predict

    assert run.model is not None
    assert run.checkpoint is not None
    model, device = load_model(run.model, run.checkpoint), session.device
    how = next((o for o in run.objectives.values() if "attack" in o.needs), None)
    found: dict[str, dict[str, Any]] = {}
    for split, rows in _rows(run).items():
        data = Examples(rows, run.model, session.listener, f"{split} rows")
        logits = predict(model, data, device)
        measured = {**loss_of(run.model).quality(logits, data.labels)}
        measured.update(beyond_accuracy(logits, rows, data.labels, column) if column else {})
        if changed:
            twins = Examples(rows, run.model, session.listener, f"changed {split} rows", changed[split].twins)
            measured.update(flips_of(logits, predict(model, twins, device), rows, changed[split]))
        if how is not None and loss_of(run.model).by_class:
            attacked = AttackedRows(how, run.model, rows, data, run.spec.seed, device)
            measured["attacked_static"] = attacked.accuracy(model)
        found[split] = {"n": len(rows), **measured}
    return found

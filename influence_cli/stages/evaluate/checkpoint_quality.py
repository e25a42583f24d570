"""What users of an objective look at, of the model that was scored: accuracy, gaps between groups, and under attack.

Only tables scored for an objective about groups, or under attack, need the model to be run for it; of others the
target accuracy is in the provenance already.  The rows are the target rows, which the scores have seen, and the
manifest's test rows, which they have not.
"""

from __future__ import annotations

from typing import Any

from influence_cli.errors import DamagedModel, InfluenceError
from influence_cli.events import Listener
from influence_cli.objectives import OBJECTIVES, load_objective
from influence_cli.stages.curate.score_table import group_names
from influence_cli.stages.evaluate.request import EvaluateRequest
from influence_cli.stages.evaluate.score_tables import NamedTable, ScoreTables
from influence_cli.stages.retrain.arm_comparison import beyond_accuracy
from influence_cli.stages.retrain.attacked_arms import AttackedRows
from influence_cli.stages.run.reopen import reopen
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.stages.run.usable_rows import usable_now


def quality_of(scores: ScoreTables, request: EvaluateRequest, listener: Listener) -> list[dict[str, Any]]:
    """One entry for every checkpoint and groups that tables were scored at; a model that is gone is only noted."""
    asked: dict[tuple[str, str, bool], list[NamedTable]] = {}
    for table in scores.tables:
        origin = table.provenance
        then, objectives = origin.get("checkpoint"), origin.get("spec", {}).get("objectives", [])
        needs = {"rows"}  # of an objective that is not known here, its name
        for name in objectives:
            needs |= load_objective(name).needs if name in OBJECTIVES else {name}
        if then is not None and needs != {"rows"}:
            column = origin["manifest"].get("group") or ""
            asked.setdefault((then["fingerprint"], column, "attack" in needs), []).append(table)
    found: list[dict[str, Any]] = []
    for (_, column, _), tables in asked.items():
        origin, where = tables[0].provenance, tables[0].source
        places = {"source": where, "manifest": request.manifest, "checkpoint": request.checkpoint}
        try:
            run, session = reopen(origin, request.runtime, listener, remember=False, **places)
            rows = _measured(run, session, column)
        except DamagedModel:
            raise  # a model that is gone is noted; one that is there and damaged is an error
        except InfluenceError as error:
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
                "rows": rows,
            }
        )
    return found


def _measured(run: Run, session: Session, column: str) -> dict[str, dict[str, Any]]:
    """By split, how many rows there are and what is measured of them."""
    from influence_cli.model.build import load_model
    from influence_cli.model.examples import Examples
    from influence_cli.model.losses import loss_of
    from influence_cli.model.train.sgd import predict

    assert run.model is not None
    assert run.checkpoint is not None
    model, device = load_model(run.model, run.checkpoint), session.device
    how = next((o for o in run.objectives.values() if "attack" in o.needs), None)
    test = run.manifest.rows("test")
    found: dict[str, dict[str, Any]] = {}
    for split, rows in (("target", run.target), ("test", usable_now(test, run.model, run.inputs))):
        if not len(rows):
            continue
        data = Examples(rows, run.model, session.listener, f"{split} rows")
        logits = predict(model, data, device)
        measured = {**loss_of(run.model).quality(logits, data.labels)}
        measured.update(beyond_accuracy(logits, rows, data.labels, column) if column else {})
        if how is not None and loss_of(run.model).by_class:
            attacked = AttackedRows(how, run.model, rows, data, run.spec.seed, device)
            measured["attacked_static"] = attacked.accuracy(model)
        found[split] = {"n": len(rows), **measured}
    return found

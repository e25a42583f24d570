"""What ``retrain`` would train, and how its arms compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import print_json, print_table
from influence_cli.cli.settings.resolve import Settings
from influence_cli.cli.show.tables import skipped, terminal
from influence_cli.report.arm_tables import arm_tables, comparison_table

if TYPE_CHECKING:
    from influence_cli.model.train.sgd import Recipe
    from influence_cli.stages.retrain.request import EditsRequest, RetrainRequest


def retrain_plan(settings: Settings, request: RetrainRequest, recipe: Recipe) -> None:
    """What would be trained."""
    print_json(
        {
            "schema_version": 1,
            "manifest": request.inputs.manifest,
            "against": request.against,
            "arms": [n for n, _ in request.arms],
            "edits": None if request.edits is None else _edits(request.edits),
            "seeds": [request.seed + s for s in range(request.seeds)],
            "canaries": None
            if request.canaries is None
            else {"share": request.canaries.share, "noise": request.canaries.kind, "from": request.canaries.source},
            "recipe": recipe.describe(),
        }
    )


def _edits(edits: EditsRequest) -> dict[str, Any]:
    asked = {"scores": edits.scores, "by": edits.by, "combine": edits.combine} if edits.scores is not None else {}
    rounds = {"rounds": edits.rounds, "method": edits.spec.methods, "objective": edits.spec.objectives}
    return {"actions": edits.actions, "budgets": edits.budgets, **(asked or rounds)}


def retrain_summary(settings: Settings, metrics: dict[str, Any]) -> None:
    """Before and after: accuracy of every arm, and paired differences with no edit and with its control."""
    if settings["format"] == "json":
        print_json(metrics)
    from influence_cli.data.row_checks import BadRow

    out = terminal()
    skipped({source: [BadRow(**b) for b in bad] for source, bad in metrics.get("left_out", {}).items()})
    if out.quiet:
        return
    first = next(iter(next(iter(metrics["arms"].values()))["seeds"].values()))
    rates = {k: first[f"{k}_accuracy"] for k in ("train", "target") if f"{k}_accuracy" in first}
    out.note(", ".join(f"{k} accuracy {v:.1%}" for k, v in {**rates, "test": first["accuracy"]}.items()))
    from influence_cli.stages.score.noise import at_chance

    for name, rate in {**rates, "test": first["accuracy"]}.items():
        if at_chance(rate, metrics["test_rows"], metrics["num_classes"]):
            out.warn(f"{name} accuracy is {rate:.1%}, no better than guessing: nothing below means anything")
    table = comparison_table(metrics)
    print_table(table.title, table.header, table.rows, out, sys.stderr)
    for note in table.notes:
        out.note(note)


def figures(settings: Settings, metrics: dict[str, Any]) -> None:
    """Tables of the Pareto report for people, and the page and the picture where they are asked for."""
    out = terminal()
    if not out.quiet:
        for table in arm_tables(metrics, brief=True):
            print_table(table.title, table.header, table.rows, out, sys.stderr)
            for note in table.notes:
                out.note(note)
    if settings["report"]:
        from influence_cli.report.page import write_page

        write_page(metrics, Path(settings["report"]), "What the edits did")
        out.note(f"report written to {settings['report']}")
    if settings["plot"]:
        from influence_cli.report.figures import panels_of, write_plot

        if not panels_of(metrics):
            out.warn(f"nothing to draw (--scores and groups, or an attack, are needed): {settings['plot']} not written")
            return
        write_plot(metrics, Path(settings["plot"]))
        out.note(f"figures written to {settings['plot']}")

"""What ``retrain`` would train, and how its arms compare."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import print_json, print_table
from influence_cli.cli.settings.requests import ResultOptions
from influence_cli.cli.show.page import write_pages
from influence_cli.cli.show.run import show_skipped
from influence_cli.report.arm_tables import arm_tables, comparison_table

if TYPE_CHECKING:
    from influence_cli.model.train.recipe import Recipe
    from influence_cli.stages.retrain.request import EditsRequest, RetrainRequest


def show_arms(request: RetrainRequest, recipe: Recipe) -> None:
    """What would be trained, as JSON."""
    canaries = request.canaries
    print_json(
        {
            "schema_version": 1,
            "manifest": request.inputs.manifest,
            "against": request.against,
            "arms": [n for n, _ in request.arms],
            "edits": None if request.edits is None else _edits(request.edits),
            "seeds": [request.seed + s for s in range(request.seeds)],
            "canaries": canaries and {"share": canaries.share, "noise": canaries.kind, "from": canaries.source},
            "recipe": recipe.describe(),
        }
    )


def _edits(edits: EditsRequest) -> dict[str, Any]:
    asked = {"scores": edits.scores, "by": edits.by, "combine": edits.combine} if edits.scores is not None else {}
    rounds = {"rounds": edits.rounds, "method": edits.spec.methods, "objective": edits.spec.objectives}
    return {"actions": edits.actions, "budgets": edits.budgets, **(asked or rounds)}


def show_comparison(result: ResultOptions, metrics: dict[str, Any]) -> None:
    """Before and after: accuracy of every arm, and paired differences with no edit and with its control."""
    if result.format == "json":
        print_json(metrics)
    from influence_cli.data.row_checks import BadRow

    out = terminal()
    show_skipped({source: [BadRow(**b) for b in bad] for source, bad in metrics.get("left_out", {}).items()})
    if not out.quiet:
        _accuracies(metrics)
        _print_tables([comparison_table(metrics), *arm_tables(metrics, brief=True)])
    nothing = f"nothing to draw (--scores and groups, or an attack, are needed): {result.plot} not written"
    write_pages(result, metrics, nothing, "What the edits did")


def _accuracies(metrics: dict[str, Any]) -> None:
    """Train, target and test accuracy of the first arm and seed, with a warning where one is at chance."""
    from influence_cli.stages.run.accuracy import at_chance

    out = terminal()
    first = next(iter(next(iter(metrics["arms"].values()))["seeds"].values()))
    rates = {k: first[f"{k}_accuracy"] for k in ("train", "target") if f"{k}_accuracy" in first}
    rates["test"] = first["accuracy"]
    out.note(", ".join(f"{k} accuracy {v:.1%}" for k, v in rates.items()))
    for name, rate in rates.items():
        if at_chance(rate, metrics["test_rows"], metrics["num_classes"]):
            out.warn(f"{name} accuracy is {rate:.1%}, no better than guessing: nothing below means anything")


def _print_tables(tables: Iterable[Any]) -> None:
    for table in tables:
        print_table(table.title, table.header, table.rows, sys.stderr)
        for note in table.notes:
            terminal().note(note)

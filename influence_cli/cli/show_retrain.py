"""What ``retrain`` would train, and how its arms compare."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from influence_cli.cli.config import Settings
from influence_cli.cli.console import print_json, print_table
from influence_cli.cli.show import skipped, terminal

if TYPE_CHECKING:
    from influence_cli.model.training import Recipe
    from influence_cli.stages.retrain import RetrainRequest


def retrain_plan(settings: Settings, request: RetrainRequest, recipe: Recipe) -> None:
    """What would be trained."""
    print_json(
        {
            "schema_version": 1,
            "manifest": request.inputs.manifest,
            "against": request.against,
            "arms": [n for n, _ in request.arms],
            "seeds": [request.seed + s for s in range(request.seeds)],
            "canaries": None
            if request.canaries is None
            else {"share": request.canaries.share, "noise": request.canaries.kind, "from": request.canaries.source},
            "recipe": recipe.describe(),
        }
    )


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
    from influence_cli.stages.reliability import at_chance

    for name, rate in {**rates, "test": first["accuracy"]}.items():
        if at_chance(rate, metrics["test_rows"], metrics["num_classes"]):
            out.warn(f"{name} accuracy is {rate:.1%}, no better than guessing: nothing below means anything")
    header = ["arm", "rows", "edited", "wrong", "accuracy", "difference"]
    rows = []
    for name, arm in metrics["arms"].items():
        edited = [f"{arm['train_rows']:,}", _edited(arm["edits"]), _wrong(arm["edits"])]
        rows.append([name, *edited, _interval(arm["mean"]["accuracy"]), _gain(metrics, name, arm)])
    seeds = len(next(iter(metrics["arms"].values()))["seeds"])
    over = f"{metrics['test_rows']:,} test rows, {seeds} seed{'s' if seeds > 1 else ''}"
    print_table(f"{over}; accuracy in %, mean and 95 % interval", header, rows, out, sys.stderr)
    if metrics["comparison"]:
        out.note(
            "difference, paired over seeds: of a curated arm over no edit; in a control's line, of its arm over it"
        )


def _edited(edits: dict[str, Any]) -> str:
    parts = [f"{edits[k]:,} {k}" for k in ("trimmed", "relabelled", "reweighted") if edits.get(k)]
    return ", ".join(parts) or "-"


def _wrong(edits: dict[str, Any]) -> str:
    for key in ("wrong_share_of_trimmed", "wrong_share_of_relabelled"):
        if key in edits:
            return f"{edits[key]:.1%}"
    return "-"


def _interval(m: dict[str, Any]) -> str:
    half = "" if m["half_width"] is None else f" ± {100 * m['half_width']:.2f}"
    return f"{100 * m['mean']:.2f}{half}"


def _gain(metrics: dict[str, Any], name: str, arm: dict[str, Any]) -> str:
    """A curated arm's difference from no edit; in a control's line, its arm's difference from it."""
    other = "no edit" if arm["controls"] is None else name
    compared = metrics["comparison"].get(arm["controls"] or name, {}).get(other)
    if compared is None:
        return "-"
    d = compared["accuracy"]
    return f"{'+' if d['mean'] >= 0 else ''}{_interval(d)} {d['verdict']}"

"""What ``curate`` did: counts, balance and predicted totals of edits."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import cell, print_table
from influence_cli.cli.show.canary_cut import show_cut
from influence_cli.cli.show.run import show_noise
from influence_cli.report.wrong_labels import estimates_of, wrong_labels_said
from influence_cli.settings import parse_budget

SHOWN = 20  # classes or groups of which all are told, whether edited or not

if TYPE_CHECKING:
    from influence_cli.stages.curate.curate import Curated


def show_edits(curated: Curated) -> None:
    """Counts, class balance, notes, and precision where clean labels are known."""
    from influence_cli.data.classes import class_name
    from influence_cli.data.label_kinds import CLASSES
    from influence_cli.stages.curate.curate import summarise
    from influence_cli.stages.grads.further_report import doubts_of

    s, classes = summarise(curated), curated.scores.manifest.classes
    out = terminal()
    out.note(f"{s['action']}: {s['edited']:,} of {s['train_rows']:,} train rows, {_why(curated, s)}")
    for note in s["notes"]:
        out.note(f"  {note}")
    if curated.estimated:
        from influence_cli.stages.curate.auto_budget import said

        out.note(f"  {said(curated.estimated)}")
    show_cut(curated)
    for estimate in estimates_of(curated.scores.provenance):
        out.note(f"  {wrong_labels_said(estimate, classes)}")
    if curated.predicted:
        _predicted(curated.predicted)
    by_class = curated.scores.manifest.label_kind.holds == CLASSES
    for part in ("classes", "groups"):
        if s.get(part):
            name, called = ("class" if by_class else "label", classes) if part == "classes" else ("group", None)
            counts = (
                f"{class_name(called, c) if isinstance(c, int) else c}: {v['edited']}/{v['rows']}, {v['after']} after"
                for c, v in s[part].items()
                if v["edited"] or len(s[part]) <= SHOWN
            )
            spared = sum(not v["edited"] for v in s[part].values()) if len(s[part]) > SHOWN else 0
            more = [f"{spared} others: none"] if spared else []
            out.note(f"  edited by {name}: " + "; ".join([*counts, *more]))
    out.note(_balance(s))
    for line in s["warnings"]:
        out.warn(line)
    if "canary" in curated.scores.table.column_names:
        out.note("  canaries of the checkpoint's training are left alone")
    if curated.scores.scored.kind == "signed":
        show_noise(curated.scores.provenance)
    for doubt in doubts_of(curated.scores.provenance, curated.scores.column):
        out.warn(doubt)
    if "wrong_share_of_edited" in s:
        right = f"; {s['right_after_relabel']:.1%} are right now" if "right_after_relabel" in s else ""
        wrong = f"{s['wrong_share_of_edited']:.1%} of the edited rows were labelled wrong"
        out.note(f"  clean labels say: {wrong} (all rows: {s['wrong_share_of_all']:.1%}){right}")


def _why(curated: Curated, s: dict[str, Any]) -> str:
    """Which rows these are, and why not more."""
    if curated.request.decisions is not None:
        return f"as {curated.request.decisions} says"
    by = f"by column {curated.scores.column}"
    if s["action"] == "reweight":
        return by
    budget, cut, which = curated.request.budget or "5%", curated.request.cut, "the lowest" if s["edited"] else "none"
    if curated.bins is not None:
        return f"{by}: those to act on"
    if cut is not None and math.isfinite(cut.threshold) and cut.capped is None:
        short = f", {cut.rows - s['edited']:,} fewer than that: see below" if s["edited"] < cut.rows else ""
        return f"{by}: {which} that canaries allow ({cut.rows:,}){short}"
    allowed = parse_budget(budget, s["train_rows"])
    short = f", {allowed - s['edited']:,} fewer than that: see below" if s["edited"] < allowed and s["notes"] else ""
    return f"{by}: {which} that a budget of {budget} allows ({allowed:,}){short}"


def _balance(s: dict[str, Any]) -> str:
    """Mean scores of edited and other rows, and whether edits fall on classes as their sizes would have it."""
    text = f"  mean score: {cell(s['score']['edited'])} of edited rows, {cell(s['score']['kept'])} of the others"
    if s["chi_square"] is not None:
        c = s["chi_square"]
        text += f"; chi-square by class {c['statistic']:.4g} ({c['degrees']} df, p {c['p_value']:.2g})"
    return text


def _predicted(objectives: list[dict[str, Any]]) -> None:
    """Predicted totals of every objective, with the constraints and without."""
    gain = "predicted gain" if all(o["effect"] for o in objectives) else "sum of scores gained"
    header = ["objective", "Phi before", "Phi after", "bound", gain, "of the lowest rows, unconstrained"]
    rows: list[list[str]] = []
    for o in objectives:
        least = "most" if o["least"] is None else f">= {o['least']:g}"
        gains = [f"{o['gain']:+.4g}", f"{o['gain_without_constraints']:+.4g}"]
        rows.append([o["column"], cell(o["phi"]), cell(o["phi_after"]), least, *gains])
    print_table("predicted to first order; positive: Phi falls", header, rows, sys.stderr)

"""What ``curate`` did: counts, balance, predicted totals, and precision where clean labels are known."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import print_table
from influence_cli.cli.show.run import show_noise

if TYPE_CHECKING:
    from influence_cli.stages.curate.curate import Curated


def show_edits(curated: Curated) -> None:
    """Counts, class balance, notes, and precision where clean labels are known."""
    from influence_cli.stages.curate.curate import summarise

    s = summarise(curated)
    out = terminal()
    out.note(f"{s['action']}: {s['edited']:,} of {s['train_rows']:,} train rows, by column {curated.scores.column}")
    for note in s["notes"]:
        out.note(f"  {note}")
    if curated.predicted:
        _predicted(curated.predicted)
    for part in ("classes", "groups"):
        if part in s:
            name = {"classes": "class", "groups": "group"}[part]
            counts = (f"{c}: {v['edited']}/{v['rows']}, {v['after']} after" for c, v in s[part].items())
            out.note(f"  edited by {name}: " + "; ".join(counts))
    out.note(_balance(s))
    for line in s["warnings"]:
        out.warn(line)
    if "canary" in curated.scores.table.column_names:
        out.note("  canaries of the checkpoint's training are left alone")
    if curated.scores.scored.kind == "signed":
        show_noise(curated.scores.provenance)
    if "wrong_share_of_edited" in s:
        out.note(
            f"  clean labels say: {s['wrong_share_of_edited']:.1%} of the edited rows were labelled wrong "
            f"(all rows: {s['wrong_share_of_all']:.1%})"
            + (f"; {s['right_after_relabel']:.1%} are right now" if "right_after_relabel" in s else "")
        )


def _balance(s: dict[str, Any]) -> str:
    """Mean scores of edited and other rows, and whether edits fall on classes as their sizes would have it."""
    from influence_cli.report.text_table import number

    text = f"  mean score: {number(s['score']['edited'])} of edited rows, {number(s['score']['kept'])} of the others"
    if s["chi_square"] is None:
        return text
    c = s["chi_square"]
    return f"{text}; chi-square by class {c['statistic']:.4g} ({c['degrees']} df, p {c['p_value']:.2g})"


def _predicted(objectives: list[dict[str, Any]]) -> None:
    """Predicted totals of every objective, with the constraints and without."""
    from influence_cli.report.text_table import number

    gain = "predicted gain" if all(o["effect"] for o in objectives) else "sum of scores gained"
    header = ["objective", "Phi before", "Phi after", "bound", gain, "of the lowest rows, unconstrained"]
    rows = [
        [
            o["column"],
            number(o["phi"]),
            number(o["phi_after"]),
            "most" if o["least"] is None else f">= {o['least']:g}",
            f"{o['gain']:+.4g}",
            f"{o['gain_without_constraints']:+.4g}",
        ]
        for o in objectives
    ]
    print_table("predicted to first order; positive: Phi falls", header, rows, sys.stderr)

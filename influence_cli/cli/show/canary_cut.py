"""What canaries say of a cut, and how many rows are in each bin, in lines for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from influence_cli.cli.console import terminal

if TYPE_CHECKING:
    from influence_cli.stages.curate.canary_cut import CanaryCut, Interval
    from influence_cli.stages.curate.curate import Curated

TOLERABLE = 0.1  # half of the interval of a recall that is still told well
CAUTION = "as far as planted labels are as hard to find as real ones; labels that people confuse are harder"


def show_cut(curated: Curated) -> None:
    """What canaries expect of the rows beyond the cut, and the bins, where there are such."""
    cut, bins, out = curated.request.cut, curated.bins, terminal()
    if cut is not None:
        for line in cut_lines(cut):
            out.note(f"  {line}")
    if bins is not None:
        counts = ", ".join(f"{rows:,} {name}" for name, rows in bins.counts().items())
        out.note(f"  bins, by 95% intervals of {bins.about}: {counts}; only those to act on are edited")
        if outside := int((bins.names == "").sum()):
            out.note(f"  {outside:,} rows are in no bin: canaries, and rows without a score")
        if marked := int((bins.place > 0).sum()):
            out.note(f"  {marked:,} rows are marked for review, those first where it is worth most")


def cut_lines(cut: CanaryCut) -> list[str]:
    """What canaries say of a cut."""
    lines = [] if cut.why == "asked for" else [f"column {cut.column} {cut.why}"]
    if cut.capped is not None:
        lines.append(f"--budget {cut.capped} takes fewer rows than were asked for: {cut.rows:,}")
    recall = f"{cut.rows:,} rows beyond the cut hold {_share(cut.recall, cut.recall_interval)} of the wrong labels"
    fine = "" if cut.fine is None or cut.fine_interval is None else f", {_share(cut.fine, cut.fine_interval)} are fine"
    low, high = cut.wrong_interval
    wrong = f"{cut.wrong_rows:,.0f} labels ({low:,.0f} to {high:,.0f}) are wrong"
    return [*lines, f"{cut.canaries:,} canaries expect: {recall}{fine}; {wrong}", f"  {CAUTION}", *_too_few(cut)]


def _too_few(cut: CanaryCut) -> list[str]:
    """That the recall is not told well, and by about how many canaries it would be: errors fall with their root."""
    half = (cut.recall_interval[1] - cut.recall_interval[0]) / 2
    if half <= TOLERABLE:
        return []
    enough = math.ceil(cut.canaries * (half / TOLERABLE) ** 2)
    return [
        f"  so few canaries tell the recall to within {100 * half:.0f} points, about {enough:,} would to within "
        f"{100 * TOLERABLE:.0f}: retrain with a larger --canaries"
    ]


def _share(value: float, interval: Interval) -> str:
    low, high = interval
    return f"{100 * value:.1f}% ({100 * low:.1f} to {100 * high:.1f})"

"""Figures of a comparison of arms: how good each is, and by how much the edited ones differ, with their intervals."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from influence_cli.data.measures import MEASURES, chief_of, headline_of
from influence_cli.report.arm_tables import measured_of
from influence_cli.report.panel import COLOURS, GREY, Panel, dots_height, legend, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Figures = dict[str, Any]
Line = tuple[str, float, float | None, str, bool]  # label, mean, half-width, colour, filled
NO_EDIT = "no edit"


def arm_panels(result: Figures) -> list[Panel]:
    """A panel of all arms, and one of what the edits change; none where a single arm was trained."""
    arms = result.get("arms", {})
    if len(arms) < 2:
        return []
    shown = headline_of(measured_of(result))
    known = {n: arm for n, arm in arms.items() if shown in arm["mean"]}
    made: list[Panel] = []
    if known:
        measure, height = MEASURES[shown], dots_height(len(known))
        unit = ", %" if measure.share else ""
        draw = partial(_dots, _lines_of_arms(known, shown), f"{measure.called}{unit}", None, [])
        made.append(Panel(f"Every arm: {measure.called}, mean and 95% interval", draw, height=height, tall=True))
    return made + _differences(result)


def _lines_of_arms(arms: Figures, shown: str) -> list[Line]:
    times = 100.0 if MEASURES[shown].share else 1.0
    lines: list[Line] = []
    for name, arm in arms.items():
        mean, half = arm["mean"][shown]["mean"], arm["mean"][shown]["half_width"]
        colour = COLOURS[6] if name == NO_EDIT else GREY if arm["controls"] is not None else COLOURS[0]
        lines.append((name, times * mean, None if half is None else times * half, colour, True))
    return lines


def _differences(result: Figures) -> list[Panel]:
    """Each edit over no edit and over its closest control, by the measure that decides."""
    if not result["comparison"]:
        return []
    chief = chief_of(measured_of(result))
    measure, lines = MEASURES[chief], list[Line]()
    times, better = (100.0 if measure.share else 1.0), (1.0 if measure.higher else -1.0)
    for name, others in result["comparison"].items():
        for other in sorted(others, key=lambda n: n != NO_EDIT):
            d, of = others[other][chief], name if other == NO_EDIT else "over its control"
            half = None if d["half_width"] is None else times * d["half_width"]
            colour = {"better": COLOURS[2], "worse": COLOURS[1]}.get(d["verdict"], GREY)
            lines.append((of, times * d["mean"], half, colour, other == NO_EDIT))
    unit = "points" if measure.share else f"of {measure.called}"
    way = "right" if better > 0 else "left"
    keys = [("better", COLOURS[2], "-"), ("worse", COLOURS[1], "-"), ("not resolved", GREY, "-")]
    draw = partial(_dots, lines, f"difference, {unit} (better to the {way}); hollow: over a control", 0.0, keys)
    title = f"What each edit changes: {measure.called} over no edit and over its controls, 95% intervals"
    return [Panel(title, draw, height=dots_height(len(lines)), tall=True)]


def _dots(lines: list[Line], xlabel: str, zero: float | None, keys: list[tuple[str, str, str]], axes: Axes) -> None:
    """A line for each of ``lines``, the first on top, and a dotted one at ``zero``."""
    places = range(len(lines))[::-1]
    for place, (_, mean, half, colour, filled) in zip(places, lines, strict=True):
        if half is not None:
            axes.plot([mean - half, mean + half], [place, place], color=colour, lw=2.0, solid_capstyle="round")
        axes.plot([mean], [place], "o", color=colour, ms=5, mfc=colour if filled else "white")
    if zero is not None:
        axes.axvline(zero, color=GREY, ls=":", lw=1.0)
    axes.set_yticks(places, [short(name, 28) for name, *_ in lines])
    axes.set(ylim=(-0.6, len(lines) - 0.4), xlabel=xlabel)
    axes.locator_params(axis="x", nbins=5)
    if keys:
        legend(axes, keys)

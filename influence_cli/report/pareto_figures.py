"""Pareto panels: accuracy to the right, fairer or more robust up, no edit as a cross with its quadrant lines."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from influence_cli.report.arm_tables import measure
from influence_cli.report.panel import COLOURS, GREY, Panel, place_legend, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Figures = dict[str, Any]


def pareto_panels(result: Figures) -> list[Panel]:
    """A panel for every measure that accuracy was set against."""
    colours = _colours(result)
    return [_panel(axis, front, colours) for axis, front in result.get("pareto", {}).items()]


def _colours(result: Figures) -> dict[str, str]:
    """One colour a method: its budgets are joined by a line."""
    edits = {n: arm for n, arm in result.get("arms", {}).items() if arm["controls"] is None and n != "no edit"}
    methods: dict[str, None] = {}
    for name, about in ((name, arm["edits"]) for name, arm in edits.items()):
        methods[f"{about['method'].removeprefix('score_')} {about['action']}" if "method" in about else name] = None
    return {method: COLOURS[k % len(COLOURS)] for k, method in enumerate(methods)}


def _panel(axis: str, front: Figures, colours: dict[str, str]) -> Panel:
    what = measure(axis)

    def draw(axes: Axes) -> None:
        points = front["points"]
        for colour, names in _drawn(points, colours).items():
            x = [100 * points[n]["accuracy"]["mean"] for n in names]
            y = [100 * points[n][axis]["mean"] for n in names]
            axes.plot(x, y, color=colour, lw=1.0, alpha=0.7)
            for name, px, py in zip(names, x, y, strict=True):
                _point(axes, points[name], px, py, colour, ellipse=name == names[-1])
                if len(names) > 1:
                    budget, offset = name.rsplit(" ", 1)[-1], "offset points"
                    axes.annotate(budget, (px, py), (4, 4), textcoords=offset, fontsize=8, color=colour)
        for name, point in points.items():
            if point["controls"] is not None:
                axes.plot(100 * point["accuracy"]["mean"], 100 * point[axis]["mean"], ".", color=GREY, ms=4, alpha=0.7)
            elif name == "no edit":
                _cross(axes, point, axis)
        _legend(axes, _drawn(points, colours), {c: m for m, c in reversed(colours.items())})
        axes.set(xlabel="accuracy, %", ylabel=f"{what}, %" + ("" if front["higher_is_better"] else " (up: lower)"))
        if not front["higher_is_better"]:
            axes.invert_yaxis()

    return Panel(f"Accuracy against {what}", draw, height=4.6)


def _drawn(points: Figures, colours: dict[str, str]) -> dict[str, list[str]]:
    """The arms of every method, by colour, in the order of their budgets."""
    found: dict[str, list[str]] = {}
    for name, point in points.items():
        if point["controls"] is None and name != "no edit":
            colour = next((c for m, c in colours.items() if name == m or name.startswith(f"{m} ")), COLOURS[0])
            found.setdefault(colour, []).append(name)
    return found


def _legend(axes: Axes, drawn: dict[str, list[str]], labels: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color=c, marker="o", mfc="white", lw=1.0, label=short(labels[c])) for c in drawn]
    marks.append(Line2D([], [], color="black", marker="P", mec="white", ms=8, ls=":", lw=0.8, label="no edit"))
    marks.append(Line2D([], [], color=GREY, marker=".", ls="", label="random controls"))
    marks.append(Line2D([], [], color="black", marker="o", ls="", label="filled: non-dominated"))
    place_legend(axes, marks)


def _point(axes: Axes, point: Figures, x: float, y: float, colour: str, ellipse: bool) -> None:
    """A mean; with the 95% ellipse over seeds for the largest budget of a method."""
    filled = colour if point["non_dominated"] else "white"
    axes.plot([x], [y], "o", ms=6, mfc=filled, mec=colour, mew=1.4)
    if ellipse:
        _ellipse(axes, point, x, y, fc="none", ec=colour, alpha=0.6, lw=0.9)


def _cross(axes: Axes, point: Figures, axis: str) -> None:
    x, y = 100 * point["accuracy"]["mean"], 100 * point[axis]["mean"]
    axes.axvline(x, color="black", ls=":", lw=0.8)
    axes.axhline(y, color="black", ls=":", lw=0.8)
    axes.plot([x], [y], "P", color="black", ms=9, mec="white", zorder=5)
    _ellipse(axes, point, x, y, color="black", alpha=0.07)


def _ellipse(axes: Axes, point: Figures, x: float, y: float, **look: Any) -> None:
    from matplotlib.patches import Ellipse

    if point["ellipse"] is not None:
        major, minor, angle = point["ellipse"]
        axes.add_patch(Ellipse((x, y), 200 * major, 200 * minor, angle=math.degrees(angle), **look))

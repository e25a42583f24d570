"""Figures of what ``evaluate`` found, by matplotlib: each a panel that draws itself on given axes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_cli.data.earlier import PICTURE
from influence_cli.data.outputs import write_output
from influence_cli.errors import UsageError
from influence_cli.report.counterfactual_figures import counterfactual_panels
from influence_cli.report.panel import COLOURS, GREY, MOST_CURVES, RANDOM, Panel, legend, rendered, short
from influence_cli.report.pareto_figures import pareto_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PAIRED = 4  # columns drawn twice, on canaries and on rows that are really wrong


def panels_of(result: dict[str, Any]) -> list[Panel]:
    """Every panel that a result has something to draw in."""
    made: list[Panel] = []
    colours = _colours(result)
    if result.get("detection"):
        made += _detection_panels(result, "wrong labels", colours)
    for entry in result.get("canaries", []):
        made += _detection_panels(entry, "canaries", colours)
        if result.get("detection"):
            made.append(_paired_panel(entry, result, colours))
    names = result.get("order", {}).get("columns", [])
    if len(names) > 1:
        size = 2.6 + 0.46 * len(names)
        draw = lambda axes: _heat_map(axes, result["order"])  # noqa: E731
        made.append(Panel("Agreement of the columns: Spearman's correlation", draw, size + 0.8, size))
    if "stability" in result and result["stability"]["columns"]:
        made.append(_stability_panel(result["stability"]))
    if result.get("comparison") and "arms" not in result:
        made.append(_comparison_panel(result))
    return made + counterfactual_panels(result) + pareto_panels(result)


def _colours(result: dict[str, Any]) -> dict[str, str]:
    """One colour a column, the same in every panel, the best columns first."""
    parts = [d for d in (result.get("detection"), *(e["detection"] for e in result.get("canaries", []))) if d]
    ordered = [n for d in parts for n in sorted(d, key=lambda n: -(d[n]["average_precision"] or 0.0)) if n != RANDOM]
    return {RANDOM: GREY} | {n: COLOURS[k % len(COLOURS)] for k, n in enumerate(dict.fromkeys(ordered))}


def _detection_panels(result: dict[str, Any], what: str, colours: dict[str, str]) -> list[Panel]:
    known = {n: d for n, d in result["detection"].items() if d["average_precision"] is not None}
    order = sorted(known, key=lambda n: -known[n]["average_precision"])
    if not known:
        return []
    drawn = [n for n in order if n != RANDOM][:MOST_CURVES] + [n for n in order if n == RANDOM]
    rate = next(iter(known.values()))
    base = rate["wrong"] / rate["rows"]
    height = max(2.2, 0.9 + 0.3 * len(order))
    return [
        Panel(
            f"Finding {what}: precision and recall", lambda axes: _precision_recall(axes, known, drawn, base, colours)
        ),
        Panel(f"Finding {what}: ROC", lambda axes: _roc(axes, known, drawn, colours)),
        Panel(
            f"Finding {what}: average precision, 95 % intervals",
            lambda axes: _intervals(axes, known, order, base, colours),
            height=height,
        ),
    ]


def _precision_recall(
    axes: Axes, known: dict[str, Any], drawn: list[str], base: float, colours: dict[str, str]
) -> None:
    for name in drawn:
        c = known[name]["curves"]["precision_recall"]
        axes.plot(c["recall"], c["precision"], color=colours[name], lw=1.0 if name == RANDOM else 1.6)
    axes.axhline(base, color=GREY, ls=":", lw=1.0)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    lines = [(f"{short(n)}  AP {known[n]['average_precision']:.3f}", colours[n], "-") for n in drawn]
    legend(axes, [*lines, (f"share of such rows  {base:.3f}", GREY, ":")])


def _roc(axes: Axes, known: dict[str, Any], drawn: list[str], colours: dict[str, str]) -> None:
    for name in drawn:
        c = known[name]["curves"]["roc"]
        width = 1.0 if name == RANDOM else 1.6
        axes.plot(c["false_positive_rate"], c["true_positive_rate"], color=colours[name], lw=width)
    axes.plot([0, 1], [0, 1], color=GREY, ls=":", lw=1.0)
    axes.set(xlabel="false positive rate", ylabel="recall", xlim=(0, 1), ylim=(0, 1.02))
    legend(axes, [(f"{short(n)}  AUC {known[n]['auc']:.3f}", colours[n], "-") for n in drawn])


def _intervals(axes: Axes, known: dict[str, Any], order: list[str], base: float, colours: dict[str, str]) -> None:
    places = list(range(len(order)))[::-1]
    for place, name in zip(places, order, strict=True):
        value, interval = known[name]["average_precision"], known[name]["average_precision_interval"]
        axes.plot(interval, [place, place], color=colours[name], lw=2.0, solid_capstyle="round")
        axes.plot([value], [place], "o", color=colours[name], ms=5)
    axes.axvline(base, color=GREY, ls=":", lw=1.0)
    axes.set_yticks(places, [short(n) for n in order])
    axes.set(ylim=(-0.6, len(order) - 0.4), xlim=(0, 1.02), xlabel="average precision; dotted: the share of such rows")


def _paired_panel(entry: dict[str, Any], result: dict[str, Any], colours: dict[str, str]) -> Panel:
    both = [n for n in entry["detection"] if n in result["detection"] and n != RANDOM]
    both = [n for n in both if all(r["detection"][n]["auc"] is not None for r in (entry, result))]
    best = sorted(both, key=lambda n: -entry["detection"][n]["auc"])[:MOST_PAIRED]

    def draw(axes: Axes) -> None:
        lines: list[tuple[str, str, str]] = []
        for name in best:
            for source, style, of in ((entry, "-", "canaries"), (result, "--", "really wrong")):
                d = source["detection"][name]
                c, colour = d["curves"]["roc"], colours[name]
                axes.plot(c["false_positive_rate"], c["true_positive_rate"], color=colour, ls=style, lw=1.6)
                lines.append((f"{short(name)}, {of}  AUC {d['auc']:.3f}", colour, style))
        axes.plot([0, 1], [0, 1], color=GREY, ls=":", lw=1.0)
        axes.set(xlabel="false positive rate", ylabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        legend(axes, lines)

    return Panel("Canaries beside rows that are really wrong: ROC", draw)


def _heat_map(axes: Axes, order: dict[str, Any]) -> None:
    names = order["columns"]
    place = {name: k for k, name in enumerate(names)}
    values = [[1.0 if i == j else math.nan for j in range(len(names))] for i in range(len(names))]
    for p in order["pairs"]:
        if p["spearman"] is not None:
            i, j = place[p["a"]], place[p["b"]]
            values[i][j] = values[j][i] = p["spearman"]
    axes.pcolormesh(values, cmap="RdBu", vmin=-1, vmax=1, edgecolors="white", linewidth=1.0)
    axes.set(aspect="equal", xlim=(0, len(names)), ylim=(len(names), 0))
    axes.grid(visible=False)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            text, colour = (
                ("-", "black") if math.isnan(value) else (f"{value:.2f}", "white" if abs(value) > 0.6 else "black")
            )
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=8, color=colour)
    shown = [short(n) for n in names]
    middles = [k + 0.5 for k in range(len(names))]
    axes.set_xticks(middles, shown, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(middles, shown)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _stability_panel(stability: dict[str, Any]) -> Panel:
    columns = stability["columns"]

    def draw(axes: Axes) -> None:
        places, least = list(range(len(columns)))[::-1], 0.0
        for place, c in zip(places, columns.values(), strict=True):
            values = [p["spearman"] for p in c["pairs"] if p["spearman"] is not None]
            axes.plot(values, [place] * len(values), "o", color=COLOURS[0], ms=5, alpha=0.7)
            least = min([least, *(v - 0.02 for v in values)])
        axes.set_yticks(places, [short(n) for n in columns])
        axes.set(ylim=(-0.6, len(columns) - 0.4), xlim=(least, 1.02), xlabel="Spearman's correlation, a dot a pair")

    return Panel("Agreement between the tables", draw, height=max(2.2, 0.9 + 0.3 * len(columns)))


def _comparison_panel(result: dict[str, Any]) -> Panel:
    columns = {n: c for n, c in result["comparison"].items() if c["spearman"] is not None}

    def draw(axes: Axes) -> None:
        places = list(range(len(columns)))[::-1]
        for place, c in zip(places, columns.values(), strict=True):
            axes.plot(c["spearman_interval"], [place, place], color=COLOURS[0], lw=2.0, solid_capstyle="round")
            axes.plot([c["spearman"]], [place], "o", color=COLOURS[0], ms=5)
        bound = result.get("bounds", {}).get("spearman_low")
        if bound is not None:
            axes.axvline(bound, color=COLOURS[1], ls="--", lw=1.2)
            place = (bound - 0.01, len(columns) - 0.45)
            axes.annotate(f"bound {bound:g}", place, color=COLOURS[1], fontsize=8, va="top", ha="right")
        axes.set_yticks(places, [short(n) for n in columns])
        least = min([0.0, *(c["spearman_interval"][0] - 0.02 for c in columns.values())])
        axes.set(ylim=(-0.6, len(columns) - 0.4), xlim=(least, 1.02), xlabel="Spearman's correlation, 95 % interval")

    return Panel("Old scores against new", draw, height=max(2.2, 0.9 + 0.3 * len(columns)))


def write_plot(result: dict[str, Any], path: Path) -> None:
    """All panels of a result in one PNG, two in a row.

    Raises:
        UsageError: there is nothing to draw.
    """
    panels = panels_of(result)
    if not panels:
        raise UsageError("there is nothing to draw", fix="leave --plot out")
    data = rendered(panels, min(2, len(panels)), "png")
    write_output(path, PICTURE, data)

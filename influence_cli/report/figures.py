"""Figures of what ``evaluate`` found, by matplotlib: each a panel that draws itself on given axes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_cli.data.earlier import PICTURE
from influence_cli.data.outputs import write_output
from influence_cli.errors import UsageError
from influence_cli.report.arm_figures import arm_panels
from influence_cli.report.counterfactual_figures import counterfactual_panels
from influence_cli.report.panel import (
    COLOURS,
    GREY,
    MOST_CURVES,
    RANDOM,
    Dots,
    Panel,
    dots_height,
    legend,
    named_dots,
    rendered,
    short,
)
from influence_cli.report.pareto_figures import pareto_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Figures = dict[str, Any]
Colours = dict[str, str]  # by column
MOST_PAIRED = 4  # columns drawn twice, on canaries and on rows that are really wrong


def panels_of(result: Figures) -> list[Panel]:
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
        made.append(
            Panel(
                "Agreement of the columns: Spearman's correlation",
                draw,
                size + 0.8,
                size,
                least_width=2.0 + 0.44 * len(names),
                tall=True,
            )
        )
    if "stability" in result and result["stability"]["columns"]:
        made.append(_stability_panel(result["stability"]["columns"]))
    if result.get("comparison") and "arms" not in result:
        made.append(_comparison_panel(result))
    return made + counterfactual_panels(result) + arm_panels(result) + pareto_panels(result)


def _colours(result: Figures) -> Colours:
    """One colour a column, the same in every panel, the best columns first."""
    parts = [d for d in (result.get("detection"), *(e["detection"] for e in result.get("canaries", []))) if d]
    ordered = [n for d in parts for n in sorted(d, key=lambda n: -(d[n]["average_precision"] or 0.0)) if n != RANDOM]
    return {RANDOM: GREY} | {n: COLOURS[k % len(COLOURS)] for k, n in enumerate(dict.fromkeys(ordered))}


def _detection_panels(result: Figures, what: str, colours: Colours) -> list[Panel]:
    known = {n: d for n, d in result["detection"].items() if d["average_precision"] is not None}
    order = sorted(known, key=lambda n: -known[n]["average_precision"])
    if not known:
        return []
    drawn = [n for n in order if n != RANDOM][:MOST_CURVES] + [n for n in order if n == RANDOM]
    rate = next(iter(known.values()))
    base = rate["wrong"] / rate["rows"]
    title = f"Finding {what}: "
    return [
        Panel(f"{title}precision and recall", lambda axes: _precision_recall(axes, known, drawn, base, colours)),
        Panel(f"{title}ROC", lambda axes: _roc(axes, [(n, known[n], "", colours[n], "-") for n in drawn])),
        Panel(
            f"{title}average precision, 95% intervals",
            lambda axes: _intervals(axes, known, order, base, colours),
            height=dots_height(len(order)),
            tall=True,
        ),
    ]


def _precision_recall(axes: Axes, known: Figures, drawn: list[str], base: float, colours: Colours) -> None:
    for name in drawn:
        c = known[name]["curves"]["precision_recall"]
        axes.plot(c["recall"], c["precision"], color=colours[name], lw=1.0 if name == RANDOM else 1.6)
    axes.axhline(base, color=GREY, ls=":", lw=1.0)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    lines = [(f"{short(n)}  AP {known[n]['average_precision']:.3f}", colours[n], "-") for n in drawn]
    legend(axes, [*lines, (f"share of such rows  {base:.3f}", GREY, ":")])


def _roc(axes: Axes, curves: list[tuple[str, Figures, str, str, str]]) -> None:
    """A curve for each of (name, its detection, of which rows, colour, style)."""
    for name, d, _, colour, style in curves:
        c, width = d["curves"]["roc"], 1.0 if name == RANDOM else 1.6
        axes.plot(c["false_positive_rate"], c["true_positive_rate"], color=colour, ls=style, lw=width)
    axes.plot([0, 1], [0, 1], color=GREY, ls=":", lw=1.0)
    axes.set(xlabel="false positive rate", ylabel="recall", xlim=(0, 1), ylim=(0, 1.02))
    legend(axes, [(f"{short(n)}{of}  AUC {d['auc']:.3f}", colour, style) for n, d, of, colour, style in curves])


def _intervals(axes: Axes, known: Figures, order: list[str], base: float, colours: Colours) -> None:
    rows = [(n, [known[n]["average_precision"]], known[n]["average_precision_interval"], colours[n]) for n in order]
    named_dots(axes, rows, 0.0, "average precision; dotted: the share of such rows")
    axes.axvline(base, color=GREY, ls=":", lw=1.0)


def _paired_panel(entry: Figures, result: Figures, colours: Colours) -> Panel:
    canaries, wrong = entry["detection"], result["detection"]
    both = [n for n in canaries if n in wrong and n != RANDOM]
    both = [n for n in both if canaries[n]["auc"] is not None and wrong[n]["auc"] is not None]
    best = sorted(both, key=lambda n: -canaries[n]["auc"])[:MOST_PAIRED]
    sources = ((canaries, ", canaries", "-"), (wrong, ", really wrong", "--"))
    curves = [(n, source[n], of, colours[n], style) for n in best for source, of, style in sources]
    return Panel("Canaries beside rows that are really wrong: ROC", lambda axes: _roc(axes, curves))


def _heat_map(axes: Axes, order: Figures) -> None:
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
            text = "-" if math.isnan(value) else f"{value:.2f}"
            colour = "#fefefe" if abs(value) > 0.6 else "#111111"  # the cells are light and dark on every page
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=8, color=colour)
    shown = [short(n) for n in names]
    middles = [k + 0.5 for k in range(len(names))]
    axes.set_xticks(middles, shown, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(middles, shown)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _stability_panel(columns: Figures) -> Panel:
    known = {n: [p["spearman"] for p in c["pairs"] if p["spearman"] is not None] for n, c in columns.items()}
    least = min([0.0, *(value - 0.02 for values in known.values() for value in values)])
    rows: list[Dots] = [(name, values, None, COLOURS[0]) for name, values in known.items()]
    draw = lambda axes: named_dots(axes, rows, least, "Spearman's correlation, a dot a pair", 0.7)  # noqa: E731
    return Panel("Agreement between the tables", draw, height=dots_height(len(rows)), tall=True)


def _comparison_panel(result: Figures) -> Panel:
    columns = {n: c for n, c in result["comparison"].items() if c["spearman"] is not None}
    rows: list[Dots] = [(n, [c["spearman"]], c["spearman_interval"], COLOURS[0]) for n, c in columns.items()]
    least = min([0.0, *(c["spearman_interval"][0] - 0.02 for c in columns.values())])
    bound = result.get("bounds", {}).get("spearman_low")

    def draw(axes: Axes) -> None:
        named_dots(axes, rows, least, "Spearman's correlation, 95% interval")
        if bound is not None:
            axes.axvline(bound, color=COLOURS[1], ls="--", lw=1.2)
            place = (bound - 0.01, len(rows) - 0.45)
            axes.annotate(f"bound {bound:g}", place, color=COLOURS[1], fontsize=8, va="top", ha="right")

    return Panel("Old scores against new", draw, height=dots_height(len(rows)), tall=True)


def write_plot(result: Figures, path: str | Path) -> None:
    """All panels of a result in one PNG, two in a row; UsageError where there is nothing to draw."""
    panels = panels_of(result)
    if not panels:
        raise UsageError("there is nothing to draw", fix="leave --plot out")
    write_output(path, PICTURE, rendered(panels, min(2, len(panels)), "png"))

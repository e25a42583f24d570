"""Figures of scores held against retraining: LDS, removal curves, leave-one-out and brittleness."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from influence_cli.report.counterfactual_tables import beside_loss, by_loss, highest_first
from influence_cli.report.panel import (
    COLOURS,
    GREY,
    MOST_CURVES,
    RANDOM,
    Dots,
    Panel,
    legend,
    multiples,
    named_dots,
    short,
    small_height,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Figures = dict[str, Any]
Colours = dict[str, str]
Curve = tuple[list[float], list[float], list[float]]  # x, means, half-widths

MOST_SMALL = 9  # small multiples of a panel
SMALL_NAME = 22  # characters of a name above a small multiple


def counterfactual_panels(result: Figures) -> list[Panel]:
    """Every panel of what retraining said, where there is something to draw."""
    colours, made = _colours(result), list[Panel]()
    if "lds" in result:
        made += _lds_panels(result["lds"], result["refit"]["deterministic"], colours)
    parts = {"removal": _removal_panels, "leave_one_out": _leave_one_out_panels, "brittleness": _brittleness_panels}
    return made + [panel for part, panels in parts.items() if part in result for panel in panels(result[part], colours)]


def _colours(result: Figures) -> Colours:
    """One colour a column, the same in every panel, the best columns first.

    Brittleness scores by method, for the mean target loss: a method has the colour of its column.
    """
    lds, loo = (result.get(part, {}).get("columns", {}) for part in ("lds", "leave_one_out"))
    ordered = [*highest_first(lds, "lds"), *by_loss(result.get("removal", {})), *highest_first(loo, "spearman")]
    methods = [m for m in result.get("brittleness", {}).get("columns", {}) if m != RANDOM]
    alias = {m: f"{m}_utility" if len(methods) > 1 or f"{m}_utility" in ordered else "utility" for m in methods}
    names = [n for n in dict.fromkeys([*ordered, *alias.values()]) if n != RANDOM]
    colours = {n: COLOURS[k % len(COLOURS)] for k, n in enumerate(names)}
    return {**colours, **{m: colours[n] for m, n in alias.items() if m not in colours}, RANDOM: GREY}


def _titled(title: str, part: Figures, done: tuple[str, str, str] | None = None) -> str:
    """The title; of a partial result with how many of how many are done, by the names of these figures, of what."""
    of = "" if done is None else f", {part[done[0]]} of {part[done[1]]}{done[2]}"
    return f"{title} (partial{of})" if part["partial"] else title


def _dots(small: Axes, x: list[float], y: list[float], colour: str) -> None:
    small.plot(x, y, "o", color=colour, ms=3, alpha=0.6, mew=0)
    small.locator_params(axis="x", nbins=4)
    small.locator_params(axis="y", nbins=5)
    small.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useOffset=False)


# -- LDS ------------------------------------------------------------------------------------------------------------


def _lds_panels(part: Figures, deterministic: bool, colours: Colours) -> list[Panel]:
    columns: Figures = part["columns"]
    known = [n for n in highest_first(columns, "lds") if columns[n]["lds"] is not None]
    if not known:
        return []
    title = _titled("Linear datamodeling score, 95% intervals", part, ("subsets", "subsets_asked", " subsets"))
    draw = partial(_lds_intervals, part, known, deterministic, colours)
    made = [Panel(title, draw, height=max(2.4, 1.1 + 0.3 * len(known)), tall=True)]
    drawn = [n for n in known if n != RANDOM][:MOST_SMALL]
    if drawn:
        title = _titled("Target loss after training on a subset, predicted and measured", part)
        draw = partial(_lds_scatter, part, drawn, colours)
        made.append(Panel(title, draw, height=small_height(len(drawn)), many=len(drawn)))
    return made


def _lds_intervals(part: Figures, known: list[str], deterministic: bool, colours: Colours, axes: Axes) -> None:
    least, lines = -0.05, list[tuple[str, str, str]]()
    if part["chance"] is not None:
        axes.axvspan(-part["chance"], part["chance"], color=GREY, alpha=0.18, lw=0)
        lines.append((f"knows nothing, 19 times in 20  ±{part['chance']:.2f}", "#d8d8d8", "-"))
        least = -part["chance"] - 0.05
    axes.axvline(0.0, color=GREY, ls=":", lw=1.0)
    if part["ceiling"] is not None:
        axes.axvline(part["ceiling"], color="black", ls="--", lw=1.0)
        why = "  (no noise)" if deterministic else ""
        lines.append((f"noise ceiling  {part['ceiling']:.3f}{why}", "black", "--"))
    columns = {name: part["columns"][name] for name in known}
    least = min([least, *(b - 0.05 for c in columns.values() for b in (c["lds"], *(c["interval"] or ())))])
    rows: list[Dots] = [(name, [c["lds"]], c["interval"], colours[name]) for name, c in columns.items()]
    named_dots(axes, rows, max(-1.03, least), "LDS: Spearman's correlation")
    axes.set_xlim(right=1.03)
    legend(axes, lines)


def _lds_scatter(part: Figures, drawn: list[str], colours: Colours, axes: Axes) -> None:
    xlabel = "predicted, up to a constant: minus the sum of the subset's scores / rows"
    for name, small in zip(drawn, multiples(axes, len(drawn), xlabel, "measured: mean target loss"), strict=True):
        column = part["columns"][name]
        _dots(small, column["predicted"], part["measured"], colours[name])
        small.set_title(f"{short(name, SMALL_NAME)}  LDS {column['lds']:.2f}", fontsize=8, loc="left")


# -- removal --------------------------------------------------------------------------------------------------------


def _removal_panels(part: Figures, colours: Colours) -> list[Panel]:
    ordered = by_loss(part)
    matched = [n for n in ordered if any(f["class_matched"] for f in part["columns"][n].values())][:MOST_SMALL]
    other = beside_loss(part)
    metrics = {
        "target_loss": "mean target loss",
        **({other: other.replace("_", " ")} if other != "target_loss" else {}),
    }
    together: list[Panel] = []
    apart: list[Panel] = []
    for metric, what in sorted(metrics.items(), key=lambda m: m[0] != "target_loss") if ordered else ():
        title = _titled(f"Training without the rows of lowest score: {what}", part)
        together.append(Panel(title, partial(_removal_curves, part, ordered[:MOST_CURVES], metric, what, colours)))
        if matched:
            title = _titled(f"Against random rows and rows of the same classes: {what}", part)
            draw = partial(_removal_multiples, part, matched, metric, what, colours)
            apart.append(Panel(title, draw, height=small_height(len(matched)), many=len(matched)))
    return together + apart


def _curve(part: Figures, by_size: Figures, metric: str) -> Curve:
    """Shares removed, means and half-widths (0 where there is none), from nothing on, where they are known."""
    points = [(0, part["nothing"]), *((k, by_size.get(str(k))) for k in part["removed_rows"])]
    known = [(k / part["rows"], means[metric]) for k, means in points if means is not None]
    return [x for x, _ in known], [m["mean"] for _, m in known], [m["half_width"] or 0.0 for _, m in known]


def _band(axes: Axes, curve: Curve, colour: str, alpha: float) -> None:
    x, y, half = curve
    low, high = ([v + sign * h for v, h in zip(y, half, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=colour, alpha=alpha, lw=0)
    axes.plot(x, y, color=colour, ls="--", lw=1.0)


def _line(axes: Axes, curve: Curve, colour: str) -> None:
    x, y, half = curve
    bars = half if any(half) else None
    axes.errorbar(x, y, yerr=bars, color=colour, lw=1.6, marker="o", ms=3.5, capsize=2, elinewidth=1.0)


def _means_of(part: Figures, name: str, what: str) -> Figures:
    return {k: f[what] for k, f in part["columns"][name].items()}


def _removal_curves(part: Figures, drawn: list[str], metric: str, what: str, colours: Colours, axes: Axes) -> None:
    _band(axes, _curve(part, part["random"], metric), GREY, 0.2)
    for name in drawn:
        _line(axes, _curve(part, _means_of(part, name, "mean"), metric), colours[name])
    axes.set(xlabel="share of the train rows removed", ylabel=what)
    axes.xaxis.set_major_formatter(_percent)
    lines = [(short(n), colours[n], "-") for n in drawn]
    legend(axes, [*lines, (f"random rows, {part['random_draws']} draws, 95%", GREY, "--")])


def _removal_multiples(part: Figures, drawn: list[str], metric: str, what: str, colours: Colours, axes: Axes) -> None:
    xlabel = "share of the train rows removed; dashed: random rows, grey, and as many of each class, in colour"
    for name, small in zip(drawn, multiples(axes, len(drawn), xlabel, what), strict=True):
        _band(small, _curve(part, part["random"], metric), GREY, 0.2)
        _band(small, _curve(part, _means_of(part, name, "class_matched"), metric), colours[name], 0.2)
        _line(small, _curve(part, _means_of(part, name, "mean"), metric), colours[name])
        small.set_title(short(name, SMALL_NAME + 8), fontsize=8, loc="left")
        small.locator_params(axis="x", nbins=4)
        small.locator_params(axis="y", nbins=5)
        small.xaxis.set_major_formatter(_percent)


def _percent(value: float, _: float) -> str:
    return f"{100.0 * value:.3g}%"


# -- leave-one-out --------------------------------------------------------------------------------------------------


def _leave_one_out_panels(part: Figures, colours: Colours) -> list[Panel]:
    drawn = [n for n in highest_first(part["columns"], "spearman") if n != RANDOM][:MOST_SMALL]
    if not part["changes"] or not drawn:
        return []
    title = _titled("Leaving one row out: change of the target loss", part, ("rows", "rows_asked", ""))
    draw = partial(_leave_one_out, part, drawn, colours)
    return [Panel(title, draw, height=small_height(len(drawn)), many=len(drawn))]


def _leave_one_out(part: Figures, drawn: list[str], colours: Colours, axes: Axes) -> None:
    floor = "; noise floor 0" if part["floor"] == 0 else ""
    if part["floor"]:
        floor = f"; grey: noise floor, ±{part['floor']:.2g}"
    xlabel = f"predicted; dashed: slope 1{floor}"
    for name, small in zip(drawn, multiples(axes, len(drawn), xlabel, "measured"), strict=True):
        column = part["columns"][name]
        ids = sorted(part["changes"])  # whatever order a file keeps them in
        if part["floor"]:
            small.axhspan(-part["floor"], part["floor"], color=GREY, alpha=0.25, lw=0)
        _dots(small, [column["predicted"][i] for i in ids], [part["changes"][i] for i in ids], colours[name])
        small.axline((0.0, 0.0), slope=1.0, color="black", ls="--", lw=0.9)
        slope = "" if column["slope"] is None else f"  slope {column['slope']:.3g}"
        small.set_title(f"{short(name, SMALL_NAME)}{slope}", fontsize=8, loc="left")


# -- brittleness ----------------------------------------------------------------------------------------------------


def _brittleness_panels(part: Figures, colours: Colours) -> list[Panel]:
    columns = {n: c for n, c in part["columns"].items() if c["flipped"]}
    if not columns:
        return []
    drawn = sorted(columns, key=lambda n: (-sum(columns[n]["flipped"].values()), n))
    sizes: list[int] = part["removed_rows"]

    def draw(axes: Axes) -> None:
        lines: list[tuple[str, str, str]] = []
        for name in drawn:
            style, width = ("--", 1.0) if name == RANDOM else ("-", 1.6)
            shares = [columns[name]["flipped"][str(k)] for k in sizes]
            axes.plot(sizes, shares, color=colours[name], ls=style, lw=width, marker="o", ms=3.5)
            median = columns[name]["median"]
            middle = f"median k {median:.4g}" if median is not None else "most never flip"
            lines.append((f"{short(name)}  {middle}", colours[name], style))
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{k:,}" for k in sizes])
        axes.xaxis.minorticks_off()
        axes.set(xlabel="k: most helpful train rows of each removed", ylabel="flipped target rows", ylim=(-0.02, 1.02))
        axes.yaxis.set_major_formatter(_percent)
        legend(axes, lines)

    title = "Brittleness: predictions that flip when helpful rows go"
    return [Panel(_titled(title, part, ("queries", "queries_asked", "")), draw)]

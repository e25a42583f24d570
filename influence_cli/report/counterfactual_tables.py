"""What retraining said of the scores, as tables of text and sentences, for a terminal and for a page alike."""

from __future__ import annotations

from typing import Any

from influence_cli.report.text_table import Judged, TextTable, bracketed, number, share

Figures = dict[str, Any]


def counterfactual_tables(result: Figures) -> list[TextTable]:
    """A table a part of a result."""
    parts = {"lds": _lds, "removal": _removal, "leave_one_out": _leave_one_out, "brittleness": _brittleness}
    return [make(result[name], result) for name, make in parts.items() if name in result]


def sentences(result: Figures) -> list[str]:
    """What was trained, how often, and how much of it is done."""
    refit = result["refit"]
    kind = "deterministic" if refit["deterministic"] else "a training for every seed"
    already = result["trainings_done"] - result["trainings_run_now"]
    done = f"{result['trainings_done']:,} of {result['trainings']:,} trainings done"
    return [
        f"{refit['model']} trained by {refit['recipe']['optimizer']}: {kind}",
        f"{done}: {result['trainings_run_now']:,} now, {already:,} before",
    ]


def cautions(result: Figures) -> list[str]:
    """What a reader of the figures alone could miss."""
    said: list[str] = []
    if result["partial"]:
        said.append("partial: figures and intervals are from what is done; run the same command to continue")
    loo: Figures = result.get("leave_one_out", {})
    if loo.get("resolvable") is False:
        said.append(
            f"leave-one-out is not resolvable here: the median change, {loo['median_change']:.2g}, is below the noise "
            f"floor of training, {loo['floor']:.2g}; use --lds, or more --seeds"
        )
    return said


def highest_first(columns: Figures, figure: str) -> list[str]:
    """Names of columns by a figure of theirs, highest first, unknown ones last, ties by name."""
    return sorted(columns, key=lambda n: (2.0 if (value := columns[n][figure]) is None else -value, n))


def by_loss(removal: Figures) -> list[str]:
    """Names of columns by the target loss without the most rows that all were trained without, lowest first."""
    measured = {name: by_size for name, by_size in removal.get("columns", {}).items() if by_size}
    shared = [k for k in map(str, removal.get("removed_rows", [])) if all(k in f for f in measured.values())]
    if not shared:
        return sorted(measured)
    return sorted(measured, key=lambda n: (measured[n][shared[-1]]["mean"]["target_loss"]["mean"], n))


def beside_loss(removal: Figures) -> str:
    """What to show beside the target loss: the accuracy of the test rows, where there are any; else of the target.

    Where labels are no classes, the loss of the test rows.
    """
    nothing = removal["nothing"]
    if nothing is None or "test_accuracy" in nothing:
        return "test_accuracy"
    known = ("target_accuracy", "test_loss", "target_loss")
    return next(name for name in known if name in nothing)


def _left_out(part: Figures) -> list[str]:
    return [f"left out: {name} ({reason})" for name, reason in part["left_out"].items()]


def _partial(part: Figures) -> str:
    return "; PARTIAL" if part["partial"] else ""


def _lds(part: Figures, result: Figures) -> TextTable:
    """Best column first, each with its paired difference from the next."""
    columns: Figures = part["columns"]
    ordered = highest_first(columns, "lds")
    rows = [
        [name, bracketed(columns[name]["lds"], columns[name]["interval"]), _over(part, name, nearest)]
        for name, nearest in zip(ordered, [*ordered[1:], None], strict=True)
    ]
    seeds = "" if result["refit"]["deterministic"] else f", {part['seeds']} seeds each"
    title = (
        f"LDS: {part['subsets']} subsets of {part['subset_rows']:,} of {result['train_rows']:,} train rows{seeds}; "
        f"mean target loss {number(part['phi_mean'])}, sd {number(part['phi_sd'])}{_partial(part)}"
    )
    notes: list[str] = []
    if part["chance"] is not None:
        notes.append(f"a column that knows nothing lies within {part['chance']:.2f} of 0, 19 times in 20")
    if not result["refit"]["deterministic"]:
        ceiling = "unknown with one seed: pass --seeds 2 or more"
        if part["ceiling"] is not None:
            ceiling = f"{part['ceiling']:.3f} (reliability {part['reliability']:.3f})"
        notes.append(f"noise ceiling {ceiling}")
    return TextTable(title, ["score", "LDS", "over the next"], rows, notes + _left_out(part), 2)


def _over(part: Figures, name: str, other: str | None) -> str:
    """The paired difference of two columns, whichever way round it is kept."""
    if other is None:
        return "-"
    found, sign = part["differences"].get(name, {}).get(other), 1.0
    if found is None:
        found, sign = part["differences"].get(other, {}).get(name), -1.0
    if found is None or found["interval"] is None:
        return "-"
    bounds = sorted(sign * b for b in found["interval"])
    resolved = "better" if bounds[0] > 0 else "not resolved"
    return Judged(f"{sign * found['difference']:+.3f} [{bounds[0]:+.3f}, {bounds[1]:+.3f}]", resolved)


def _removal(part: Figures, result: Figures) -> TextTable:
    """A line for every column and size; differences are of the column's rows from its control's."""
    accuracy = beside_loss(part)
    header = ["removed", "rows", "target loss", "over random", "over class-matched", accuracy.replace("_", " ")]
    rows: list[list[str]] = []
    if part["nothing"] is not None:
        rows.append(["nothing", "0", _mean(part["nothing"]["target_loss"]), "-", "-", _mean(part["nothing"][accuracy])])
    for k in map(str, part["removed_rows"]):
        found = {name: by_size[k] for name, by_size in part["columns"].items() if k in by_size}
        for name, f in sorted(found.items(), key=lambda item: (item[1]["mean"]["target_loss"]["mean"], item[0])):
            over = [_difference(f[c] and f[c]["target_loss"]) for c in ("over_random", "over_class_matched")]
            rows.append([f"lowest by {name}", k, _mean(f["mean"]["target_loss"]), *over, _mean(f["mean"][accuracy])])
        if part["random"][k] is not None:
            random = part["random"][k]
            rows.append(["random", k, _mean(random["target_loss"]), "-", "-", _mean(random[accuracy])])
    title = f"removal: {part['random_draws']} random draws; 95% intervals {part['intervals']}{_partial(part)}"
    return TextTable(title, header, rows, _left_out(part), 3)


def _mean(m: Figures) -> str:
    half = "" if m["half_width"] is None else f" ± {m['half_width']:.2g}"
    return f"{m['mean']:.4f}{half}"


def _difference(d: Figures | None) -> str:
    if d is None:
        return "-"
    half = "" if d["half_width"] is None else f" ± {d['half_width']:.2g}"
    return Judged(f"{d['mean']:+.2g}{half}", d["verdict"])


def _leave_one_out(part: Figures, result: Figures) -> TextTable:
    rows: list[list[str]] = []
    for name in highest_first(part["columns"], "spearman"):
        c = part["columns"][name]
        pearson, spearman = (bracketed(c[figure], c["intervals"][figure]) for figure in ("pearson", "spearman"))
        signs = "-" if c["sign"] is None else f"{share(c['sign'])} of {c['sign_rows']}"
        slope = bracketed(c["slope"], c["intervals"]["slope"], "{:.4g}")
        rows.append([name, pearson, spearman, signs, slope, number(c["offset"])])
    divisor = "divisor kept" if part["convention"] == "loo" else "divided by the rows left"
    title = (
        f"leave-one-out: {part['rows']} rows, {part['extreme_rows']} of them extreme by {part['extreme_by']}; "
        f"{divisor}; median change {number(part['median_change'])}, noise floor {number(part['floor'])}{_partial(part)}"
    )
    header = ["score", "Pearson", "Spearman", "sign agreement", "slope", "offset"]
    return TextTable(title, header, rows, _left_out(part))


def _brittleness(part: Figures, result: Figures) -> TextTable:
    """Shares of predictions flipped by removing the most helpful rows of each target row, against random rows."""
    sizes = part.get("removed_rows", [])
    shown = [k for k in sizes if k in (sizes[-1], *sizes[-2::-2])]  # every other one fits a line
    rows: list[list[str]] = []
    for name, c in part["columns"].items():
        flipped = [share(c["flipped"][str(k)], 0) if c["flipped"] else "-" for k in shown]
        drop = "-" if c["margin_drop"] is None else _mean(c["margin_drop"])
        rows.append([name, *flipped, number(c["median"]), drop, _difference(c.get("over_random"))])
    title = (
        f"brittleness: {part['queries']} correctly predicted target rows; share that flips without the k most helpful "
        f"rows of each{_partial(part)}"
    )
    header = ["score", *(f"k={k:,}" for k in shown), "median k", "margin drop at most k", "over random"]
    return TextTable(title, header, rows, verdict=len(header) - 1)

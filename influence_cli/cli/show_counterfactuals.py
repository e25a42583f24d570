"""Figures from retraining as tables and JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from influence_cli.cli.config import Settings
from influence_cli.cli.console import cell, print_json, print_table
from influence_cli.cli.show import terminal

Figures = dict[str, Any]


def plan(settings: Settings, described: Figures) -> None:
    """The trainings of each part, and how many are kept."""
    if settings["format"] == "json" or (settings["format"] == "auto" and not sys.stdout.isatty()):
        print_json(described)
        return
    rows = [
        [name, str(t["trainings"]), str(t["kept"]), str(t["trainings"] - t["kept"])]
        if "kept" in t
        else [name, f"at most {t['trainings_at_most']}", "-", "-"]
        for name, t in described["trainings"].items()
    ]
    print_table("", ["part", "trainings", "kept", "to run"], rows, terminal(), sys.stdout)


def report(settings: Settings, result: Figures) -> None:
    """The result to --output, as JSON, or as a table a part; what was run goes to standard error."""
    from influence_cli.store.files import write_json

    _progress(result)
    output, how = settings["output"], settings["format"]
    if output not in (None, "-"):
        write_json(Path(output), result)
        return
    if output == "-" or how == "json" or (how == "auto" and not sys.stdout.isatty()):
        print_json(result)
        return
    for name, show in (
        ("lds", _lds),
        ("removal", _removal),
        ("leave_one_out", _leave_one_out),
        ("brittleness", _brittleness),
    ):
        if name in result:
            show(result[name], result)


def _progress(result: Figures) -> None:
    out, refit = terminal(), result["refit"]
    kind = "deterministic" if refit["deterministic"] else "a training for every seed"
    out.note(f"{refit['model']} trained by {refit['recipe']['optimizer']}: {kind}")
    already = result["trainings_done"] - result["trainings_run_now"]
    done = f"{result['trainings_done']:,} of {result['trainings']:,} trainings done"
    out.note(f"{done}: {result['trainings_run_now']:,} now, {already:,} before")
    if result["partial"]:
        out.warn("partial: figures and intervals are from what is done; run the same command to continue")
    if result.get("leave_one_out", {}).get("resolvable") is False:
        out.warn(_not_resolvable(result["leave_one_out"]))


def _not_resolvable(loo: Figures) -> str:
    return (
        f"leave-one-out is not resolvable here: the median change, {loo['median_change']:.2g}, is below the noise "
        f"floor of training, {loo['floor']:.2g}; use --lds, or more --seeds"
    )


def _left_out(part: Figures) -> None:
    for name, reason in part["left_out"].items():
        terminal().note(f"  left out: {name} ({reason})")


def _partial(part: Figures) -> str:
    return "; PARTIAL" if part["partial"] else ""


def _lds(part: Figures, result: Figures) -> None:
    """Best column first, each with its paired difference from the next."""
    columns: Figures = part["columns"]
    ordered = sorted(columns, key=lambda n: -2.0 if columns[n]["lds"] is None else -columns[n]["lds"])
    rows = [
        [name, _bracketed(columns[name]["lds"], columns[name]["interval"]), _over(part, name, nearest)]
        for name, nearest in zip(ordered, [*ordered[1:], None], strict=True)
    ]
    seeds = "" if result["refit"]["deterministic"] else f", {part['seeds']} seeds each"
    title = (
        f"LDS: {part['subsets']} subsets of {part['subset_rows']:,} of {result['train_rows']:,} train rows{seeds}; "
        f"mean target loss {cell(part['phi_mean'])}, sd {cell(part['phi_sd'])}{_partial(part)}"
    )
    print_table(title, ["score", "LDS", "over the next"], rows, terminal(), sys.stdout)
    if part["chance"] is not None:
        terminal().note(f"a column that knows nothing lies within {part['chance']:.2f} of 0, 19 times in 20")
    if part["ceiling"] is not None and not result["refit"]["deterministic"]:
        terminal().note(f"noise ceiling {part['ceiling']:.3f} (reliability {part['reliability']:.3f})")
    elif not result["refit"]["deterministic"]:
        terminal().note("noise ceiling unknown with one seed: pass --seeds 2 or more")
    _left_out(part)


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
    return f"{sign * found['difference']:+.3f} [{bounds[0]:+.3f}, {bounds[1]:+.3f}] {resolved}"


def _removal(part: Figures, result: Figures) -> None:
    """A line for every column and size; differences are of the column's rows from its control's."""
    accuracy = "test_accuracy" if part["nothing"] is None or "test_accuracy" in part["nothing"] else "target_accuracy"
    header = ["removed", "rows", "target loss", "over random", "over class-matched", accuracy.replace("_", " ")]
    rows: list[list[str]] = []
    if part["nothing"] is not None:
        rows.append(["nothing", "0", _mean(part["nothing"]["target_loss"]), "-", "-", _mean(part["nothing"][accuracy])])
    for k in map(str, part["removed_rows"]):
        found = {name: by_size[k] for name, by_size in part["columns"].items() if k in by_size}
        for name, f in sorted(found.items(), key=lambda item: item[1]["mean"]["target_loss"]["mean"]):
            over = [_difference(f[c], "target_loss") for c in ("over_random", "over_class_matched")]
            rows.append([f"lowest by {name}", k, _mean(f["mean"]["target_loss"]), *over, _mean(f["mean"][accuracy])])
        if part["random"][k] is not None:
            random = part["random"][k]
            rows.append(["random", k, _mean(random["target_loss"]), "-", "-", _mean(random[accuracy])])
    title = f"removal: {part['random_draws']} random draws; 95 % intervals {part['intervals']}{_partial(part)}"
    print_table(title, header, rows, terminal(), sys.stdout)
    _left_out(part)


def _mean(m: Figures) -> str:
    half = "" if m["half_width"] is None else f" ± {m['half_width']:.2g}"
    return f"{m['mean']:.4f}{half}"


def _difference(found: Figures | None, metric: str) -> str:
    if found is None:
        return "-"
    d = found[metric]
    half = "" if d["half_width"] is None else f" ± {d['half_width']:.2g}"
    return f"{d['mean']:+.2g}{half} {d['verdict']}"


def _leave_one_out(part: Figures, result: Figures) -> None:
    columns: Figures = part["columns"]
    ordered = sorted(columns, key=lambda n: -2.0 if columns[n]["spearman"] is None else -columns[n]["spearman"])
    rows = [
        [
            name,
            _bracketed(columns[name]["pearson"], columns[name]["intervals"]["pearson"]),
            _bracketed(columns[name]["spearman"], columns[name]["intervals"]["spearman"]),
            _signs(columns[name]),
            _bracketed(columns[name]["slope"], columns[name]["intervals"]["slope"], "{:.4g}"),
            cell(columns[name]["offset"]),
        ]
        for name in ordered
    ]
    divisor = "divisor kept" if part["convention"] == "loo" else "divided by the rows left"
    title = (
        f"leave-one-out: {part['rows']} rows, {part['extreme_rows']} of them extreme by {part['extreme_by']}; "
        f"{divisor}; median change {cell(part['median_change'])}, noise floor {cell(part['floor'])}{_partial(part)}"
    )
    header = ["score", "Pearson", "Spearman", "sign agreement", "slope", "offset"]
    print_table(title, header, rows, terminal(), sys.stdout)
    _left_out(part)


def _brittleness(part: Figures, result: Figures) -> None:
    """Shares of predictions flipped by removing the most helpful rows of each target row, against random rows."""
    columns: Figures = part["columns"]
    sizes = part.get("removed_rows", [])
    shown = [k for k in sizes if k in (sizes[-1], *sizes[-2::-2])]  # every other one fits a line
    rows = [
        [
            name,
            *(f"{c['flipped'][str(k)]:.0%}" if c["flipped"] else "-" for k in shown),
            cell(c["median"]),
            "-" if c["margin_drop"] is None else _mean(c["margin_drop"]),
            _difference({"margin": c["over_random"]}, "margin") if "over_random" in c else "-",
        ]
        for name, c in columns.items()
    ]
    title = (
        f"brittleness: {part['queries']} correctly predicted target rows; share that flips without the k most helpful "
        f"rows of each{_partial(part)}"
    )
    header = ["score", *(f"k={k:,}" for k in shown), "median k", "margin drop at most k", "over random"]
    print_table(title, header, rows, terminal(), sys.stdout)


def _signs(column: Figures) -> str:
    return "-" if column["sign"] is None else f"{column['sign']:.1%} of {column['sign_rows']}"


def _bracketed(value: float | None, bounds: list[float] | None, how: str = "{:.3f}") -> str:
    if value is None:
        return "-"
    if bounds is None:
        return how.format(value)
    return f"{how.format(value)} [{', '.join(how.format(b) for b in bounds)}]"

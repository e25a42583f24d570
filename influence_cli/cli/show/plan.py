"""What a run would do: the rows stored and to compute, what is fitted and solved for, seconds and bytes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import cell, print_json, print_table
from influence_cli.cli.settings.requests import ResultOptions
from influence_cli.processes.seat import count

if TYPE_CHECKING:
    from influence_cli.stages.run.run import Run
    from influence_cli.stages.run.session import Session

Described = dict[str, Any]

STEPS = ("member", "target rows", "rows stored", "rows to compute", "passes", "seconds", "bytes", "why")
FITS = ("method", "rows", "passes", "seconds", "bytes", "why")
SOLVES = ("method", "directions", "rows", "passes", "seconds")
FURTHER = ("method", "what", "steps", "gradients", "losses", "seconds", "bytes")
GRADIENTS = ("rows", "params", "values", "rows_stored", "rows_to_compute", "seconds", "bytes")


def show_plan(result: ResultOptions, run: Run, session: Session) -> None:
    """What would run: as JSON in a pipe or when asked, as tables for people."""
    from influence_cli.stages.run.whole_plan import whole_plan

    described = {**whole_plan(run, session)[1], "processes": count()}
    if result.wants_json:
        print_json(described)
        return
    for line in described.get("auto", {}).get("why", ()):
        terminal().note(line)
    steps: list[list[str]] = []
    for s in described["steps"]:
        member = str(s["member"]) if s["dropout"] is None else f"{s['member']} (dropout {s['dropout']:.4f})"
        member += f" (features of {s['features']})" if s.get("features") else ""
        rows = [cell(s["target_rows_to_pass"]), f"{s['rows_stored']:,}", f"{s['rows_to_compute']:,}"]
        costs = [cell(s["forward_passes"]), cell(s["seconds"]), f"{s['bytes']:,}"]
        steps.append([member, *rows, *costs, s["why"]])
    title = f"store: {described['store']}; seconds are {described['seconds_are']}"
    if described["seconds"]:
        about = f", {cell(described['start_seconds'])} s of them to start" if described["start_seconds"] else ""
        sooner = described["seconds_are"] == "estimated" and any(s["solves"] for s in described["steps"])
        title += f", {'at most ' if sooner else ''}{cell(described['seconds'])} s in all{about}"
    memory = described["memory"]
    if memory["host_bytes"] is not None:
        title += f"; memory about {memory['host_bytes'] / 2**30:.1f} GiB at most"
        if memory["accelerator_bytes"]:
            title += f", {memory['accelerator_bytes'] / 2**30:.1f} on {session.device}"
    if described["processes"] > 1:
        title += f"; {described['processes']} processes divide the rows, seconds are those of one alone"
    print_table(title, STEPS, steps, sys.stdout)
    for name, m in described["members"].items():
        said = f"{m['decided']} members, as decided before"
        if m["decided"] is None:
            said = f"{m['least']} to {m['most']} members, until the lowest rows stay the same; the most are planned"
        terminal().note(f"{name}: {said}")
    _member_table("curvature to fit", described["steps"], "fits", FITS)
    values = [(s["member"], *v) for s in described["steps"] for v in s["row_values_to_compute"].items()]
    if values:
        cells = [[str(m), name, f"{rows:,}"] for m, name, rows in values]
        print_table("values of rows to compute", ["member", "method", "rows"], cells, sys.stdout)
    _member_table("directions to solve for; passes at most", described["steps"], "solves", SOLVES)
    title = "further training; gradients of rows in its steps, losses of rows at what they lead to, at most"
    _member_table(title, described["steps"], "further", FURTHER)
    _gradients(described["row_gradients"])


def _member_table(title: str, steps: list[Described], part: str, names: tuple[str, ...]) -> None:
    """A part of every step, a line an entry, where there is any."""
    cells = [[str(s["member"]), *_figures(entry, names)] for s in steps for entry in s[part]]
    if cells:
        print_table(title, ["member", *names], cells, sys.stdout)


def _figures(entry: Described, names: tuple[str, ...]) -> list[str]:
    return [f"{entry[n]:,}" if isinstance(entry[n], int) else cell(entry[n]) for n in names]


def _gradients(planned: list[Described]) -> None:
    """Rows' own gradients that a plan holds."""
    if planned:
        names = [n.replace("_", " ") for n in GRADIENTS]
        print_table("rows' own gradients", names, [_figures(g, GRADIENTS) for g in planned], sys.stdout)
    for g in planned:
        if g["refused"]:
            terminal().warn(f"these will be refused: {g['refused']}")


def show_pairs_plan(result: ResultOptions, plan: dict[str, Any]) -> None:
    """What would run: as JSON in a pipe or when asked, as a table for people."""
    if result.wants_json:
        print_json(plan)
        return
    names = [n for n, value in plan.items() if n not in ("schema_version", "store") and not isinstance(value, list)]
    rows = [[n.replace("_", " "), f"{v:,}" if isinstance(v := plan[n], int) else cell(v)] for n in names]
    print_table(f"store: {plan['store']}", ["", "per target row"], rows, sys.stdout)
    if plan.get("refused"):
        terminal().warn(f"the row gradients will be refused: {plan['refused']}")
    for kind in ("fits", "solves"):
        for entry in plan[kind]:
            text = ", ".join(f"{k} {cell(v)}" for k, v in entry.items())
            terminal().note(f"{kind.rstrip('s')}: {text}")

"""The rows that help and harm each target row most, for people, and what it takes to find them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import cell, print_json, print_table
from influence_cli.cli.settings.requests import ResultOptions

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN_TARGETS, SHOWN_ROWS = 5, 3  # on a terminal: target rows, and rows of each side
HIDDEN = ("target_row_key", "row_key")


def show_pairs(table: pa.Table) -> None:
    """The first target rows with a few rows of each side, for people."""
    from influence_cli.data.write_tables import rows_of

    targets = list(dict.fromkeys(table.column("target_id").to_pylist()))
    first = set(targets[:SHOWN_TARGETS])
    names = [name for name in table.column_names if name not in HIDDEN]
    rows = [r for r in rows_of(table.select(names)) if r["target_id"] in first and r["rank"] <= SHOWN_ROWS]
    cells = [[cell(v) for v in row.values()] for row in rows]
    title = f"{len(first)} of {len(targets):,} target rows, the first {SHOWN_ROWS} of each side"
    print_table(title, names, cells, sys.stdout)
    terminal().note("all of them with -o FILE, or --format csv")


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

"""A stage's table: to a file, as rows for people on a terminal, or as JSONL in a pipe."""

from __future__ import annotations

import shutil
import sys
from typing import IO, TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import cell, print_json, print_table
from influence_cli.cli.settings.requests import ResultOptions

if TYPE_CHECKING:
    import pyarrow as pa

    from influence_cli.data.classes import Names

LABELS = (  # class numbers
    *("label", "label_was", "best_label", "model_label", "other_label", "canary", "target_label", "doubted_label"),
)
STRONGEST = 20  # rows of a table on a terminal
SHOWN_TARGETS, SHOWN_ROWS = 5, 3  # of a table of pairs on a terminal: target rows, and rows of each side


def put_table(
    result: ResultOptions,
    table: pa.Table,
    kind: str,
    sort_by: str | None = None,
    descending: bool = False,
    classes: Names | None = None,
) -> None:
    """Write a table of a kind to --output, or print it where there is none: for people with the names of classes."""
    from influence_cli.data.write_tables import write_table

    if result.output:
        note_formulas(table, result.output)
        write_table(table, result.output, kind)
    else:
        print_rows(result, table, sort_by, descending, classes)


def print_rows(
    result: ResultOptions,
    table: pa.Table,
    sort_by: str | None = None,
    descending: bool = False,
    classes: Names | None = None,
) -> None:
    """A table on standard output: its strongest rows for people, every row, with class numbers, otherwise."""
    from influence_cli.data.write_tables import csv_parts, jsonl_parts, rows_of, write_all

    how = result.format
    if result.for_people:
        _print_strongest(table, sort_by, descending, classes)
    elif how == "json":
        print_json({"schema_version": 1, "rows": rows_of(table)})
    elif how == "csv":
        note_formulas(table)
        for part in csv_parts(table):
            write_all(part)
    else:
        for part in jsonl_parts(table):
            write_all(part)


def _print_strongest(table: pa.Table, sort_by: str | None, descending: bool, classes: Names | None) -> None:
    """The first rows in an order, in as many columns as there is room for."""
    from influence_cli.data.tables import provenance
    from influence_cli.data.write_tables import rows_of

    if sort_by is not None:
        table = table.sort_by([(sort_by, "descending" if descending else "ascending")])
    hidden = {"row_key", "payload_key", provenance(table.schema).get("score_is")}  # the last: what score repeats
    shown = table.slice(0, STRONGEST).select([n for n in table.column_names if n not in hidden])
    order = f", by {sort_by}" if sort_by else ""
    cells = [_cells(row, classes) for row in rows_of(shown)]
    names, rows, left_out = fitting(shown.column_names, cells, sys.stdout)
    print_table(f"{len(cells)} of {table.num_rows:,} rows{order}", names, rows, sys.stdout)
    if left_out:
        terminal().note(f"no room for {', '.join(left_out)}: see all with -o FILE, or --format csv")


def _cells(row: dict[str, Any], classes: Names | None) -> list[str]:
    """A row's values as people read them, class numbers as the names of the classes."""
    from influence_cli.data.classes import class_name

    return [class_name(classes, v) if n in LABELS and isinstance(v, int) else cell(v) for n, v in row.items()]


def note_formulas(table: pa.Table, output: str = "-.csv") -> None:
    """Say how many texts a spreadsheet would run, where a table becomes CSV."""
    from influence_cli.data.formulas import formulas_in, said

    count = formulas_in(table) if output.endswith(".csv") else 0
    if count:
        terminal().note(said(count))


def fitting(names: list[str], cells: list[list[str]], stream: IO[str]) -> tuple[list[str], list[list[str]], list[str]]:
    """As many columns, from the left, as the terminal is wide: a cut id helps nobody.  Last: what was left out."""
    if not stream.isatty():
        return names, cells, []
    width, used, kept = shutil.get_terminal_size().columns, 0, 0
    for k, name in enumerate(names):
        used += max([len(name), *(len(row[k]) for row in cells)]) + 2
        if used > width + 2 and k > 0:
            break
        kept += 1
    return names[:kept], [row[:kept] for row in cells], names[kept:]


def show_pairs(table: pa.Table, classes: Names | None = None) -> None:
    """The first target rows with a few rows of each side, for people."""
    from influence_cli.data.write_tables import rows_of

    targets = list(dict.fromkeys(table.column("target_id").to_pylist()))
    first = set(targets[:SHOWN_TARGETS])
    names = [name for name in table.column_names if name not in ("target_row_key", "row_key")]
    rows = [r for r in rows_of(table.select(names)) if r["target_id"] in first and r["rank"] <= SHOWN_ROWS]
    cells = [_cells(row, classes) for row in rows]
    title = f"{len(first)} of {len(targets):,} target rows, the first {SHOWN_ROWS} of each side"
    print_table(title, names, cells, sys.stdout)
    terminal().note("all of them with -o FILE, or --format csv")

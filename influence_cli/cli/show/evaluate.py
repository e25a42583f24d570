"""What ``evaluate`` found: JSON or tables on standard output, a page and a picture where they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import print_json, print_table
from influence_cli.cli.settings.requests import ResultOptions
from influence_cli.cli.show.page import write_pages

Figures = dict[str, Any]


def show_evaluation(result: ResultOptions, found: Figures) -> None:
    """Write the page and the picture, then the result: to --output, else for people or as JSON."""
    _note_gaps(found)
    put_figures(result, found, terminal().detail)


def put_figures(result: ResultOptions, found: Figures, note: Callable[[str], None]) -> None:
    """Figures to wherever they are asked for; ``note`` takes the notes of tables."""
    nothing = f"there is nothing to draw yet: {result.plot} is not written" if found.get("partial") else None
    write_pages(result, found, nothing)
    if result.output not in (None, "-"):
        from influence_cli.data.earlier import RESULT
        from influence_cli.data.outputs import write_output
        from influence_cli.store.files import as_json

        write_output(result.output, RESULT, as_json(found))
    elif result.output == "-" or result.wants_json:
        print_json(found)
    else:
        _print_tables(found, note)


def _note_gaps(found: Figures) -> None:
    """What a reader of the result alone could miss."""
    from influence_cli.report.tables import sentence

    out = terminal()
    if "detection" in found and not found["detection"]:
        plant = "" if "canaries" in found else ", or plant canaries with `retrain --canaries 5%`"
        out.note(
            "no truth is known, so detection is left out: name a column with --clean-label, or ids with --known-bad"
            + plant
        )
    for entry in found.get("canaries", []):
        if entry["best_against_random"] is None:
            out.warn("no score column finds canaries better than chance")
    if "recompute" in found:
        out.note(sentence(found))
        if found["same_checkpoint"]:
            out.warn("the checkpoint is the one that the table was scored at")


def _print_tables(found: Figures, note: Callable[[str], None]) -> None:
    from influence_cli.report.tables import tables_of

    for k, table in enumerate(tables_of(found)):
        if k:
            sys.stdout.write("\n")
        print_table(table.title, table.header, table.rows, sys.stdout)
        for text in table.notes:
            note(text)

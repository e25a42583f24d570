"""What ``evaluate`` found: JSON or tables on standard output, a page and a picture where they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from influence_cli.cli.console import print_json, print_table
from influence_cli.cli.settings.resolve import Settings
from influence_cli.cli.show.tables import terminal


def result(settings: Settings, found: dict[str, Any]) -> None:
    """Write the page and the picture, then the result: to --output, else for people or as JSON."""
    _say(found)
    put(settings, found, terminal().detail)


def put(settings: Settings, found: dict[str, Any], say: Callable[[str], None]) -> None:
    """A result, once what there is to say of it is said, to wherever it is asked for; notes of tables to ``say``."""
    if settings["report"]:
        from influence_cli.report.page import write_page

        write_page(found, Path(settings["report"]))
        terminal().note(f"report written to {settings['report']}")
    if settings["plot"]:
        _plot(found, settings["plot"])
    how = settings["format"] if settings["output"] != "-" else "json"
    if settings["output"] not in (None, "-"):
        from influence_cli.data.earlier import RESULT
        from influence_cli.data.outputs import write_output
        from influence_cli.store.files import as_json

        write_output(settings["output"], RESULT, as_json(found))
    elif how == "json" or (how == "auto" and not sys.stdout.isatty()):
        print_json(found)
    else:
        _tables(found, say)


def _plot(found: dict[str, Any], place: str) -> None:
    from influence_cli.report.figures import panels_of, write_plot

    if found.get("partial") and not panels_of(found):
        terminal().warn(f"there is nothing to draw yet: {place} is not written")
        return
    write_plot(found, Path(place))
    terminal().note(f"figures written to {place}")


def _say(found: dict[str, Any]) -> None:
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


def _tables(found: dict[str, Any], say: Callable[[str], None]) -> None:
    from influence_cli.report.tables import tables_of

    for k, table in enumerate(tables_of(found)):
        if k:
            sys.stdout.write("\n")
        print_table(table.title, table.header, table.rows, terminal(), sys.stdout)
        for note in table.notes:
            say(note)

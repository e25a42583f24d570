"""What a manifest holds: its classes by split, and the rows that were skipped."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import print_json, print_table
from influence_cli.cli.settings.requests import ResultOptions

if TYPE_CHECKING:
    from influence_cli.data.ingest import Ingested


def show_ingested(result: ResultOptions, ingested: Ingested) -> None:
    """Rows of each class and split, notes, and what was skipped."""
    from influence_cli.data.ingest import class_table

    rows = class_table(ingested.manifest)
    if result.format == "json":
        skipped = [{"id": i, "reason": reason} for i, reason in ingested.skipped]
        print_json({"schema_version": 1, "classes": rows, "notes": ingested.notes, "skipped": skipped})
    out = terminal()
    if out.quiet:
        return
    cells = [[str(r["class"]), r["name"], *(f"{r[s]:,}" for s in ("train", "val", "test"))] for r in rows]
    title = f"{len(ingested.manifest):,} rows from {ingested.kind}, written to {result.output}"
    print_table(title, ["class", "name", "train", "val", "test"], cells, sys.stderr)
    for note in ingested.notes:
        out.note(note)
    for row, reason in ingested.skipped:
        out.warn(f"skipped row id={row}: {reason}")

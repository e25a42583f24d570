"""What a store holds, and what was done to it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from influence_cli.cli.printing import cell, print_json, print_table
from influence_cli.cli.settings.requests import ResultOptions

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.store.maintenance import Entry


def show_entries(result: ResultOptions, store: str, found: list[Entry]) -> None:
    """What the store holds."""
    if result.wants_json:
        print_json({"schema_version": 1, "entries": [dataclasses.asdict(e) for e in found]})
        return
    rows = [[e.kind, e.name, cell(e.files), cell(e.rows), f"{e.bytes:,}", e.about] for e in found]
    title = f"{store}: {sum(e.bytes for e in found):,} bytes"
    print_table(title, ["kind", "name", "files", "rows", "bytes", "what"], rows, sys.stdout)


def show_facts(result: ResultOptions, facts: dict[str, Any]) -> None:
    """A few named facts: JSON in a pipe or when asked, lines for people."""
    if result.wants_json:
        print_json({"schema_version": 1, **facts})
        return
    for name, value in facts.items():
        shown = (", ".join(value) or "none") if isinstance(value, list) else f"{value:,}"
        sys.stdout.write(f"{name.replace('_', ' ')}: {shown}\n")


def show_keys(manifests: Iterable[Rows]) -> None:
    """The keys under which rows are stored."""
    for rows in manifests:
        for name, payload, row in zip(rows.ids, rows.payload_keys, rows.row_keys, strict=True):
            sys.stdout.write(f"{payload.tobytes().hex()} {row.tobytes().hex()} {name}\n")

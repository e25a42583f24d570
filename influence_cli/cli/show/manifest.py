"""What manifests, stores and methods hold, for people and as JSON."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import cell, print_json, print_table
from influence_cli.cli.settings.resolve import Settings
from influence_cli.cli.show import tables as show
from influence_cli.errors import UsageError, nearest

if TYPE_CHECKING:
    from influence_cli.data.ingest import Ingested
    from influence_cli.store.maintenance import Entry


def ingested(settings: Settings, result: Ingested) -> None:
    """What the manifest holds: rows of each class and split, notes, and what was skipped."""
    from influence_cli.data.ingest import class_table

    rows = class_table(result.manifest)
    if settings["format"] == "json":
        skipped = [{"id": i, "reason": reason} for i, reason in result.skipped]
        print_json({"schema_version": 1, "classes": rows, "notes": result.notes, "skipped": skipped})
    out = show.terminal()
    if out.quiet:
        return
    cells = [[str(r["class"]), r["name"], *(f"{r[s]:,}" for s in ("train", "val", "test"))] for r in rows]
    title = f"{len(result.manifest):,} rows from {result.kind}, written to {settings['output']}"
    print_table(title, ["class", "name", "train", "val", "test"], cells, out, sys.stderr)
    for note in result.notes:
        out.note(note)
    for row, reason in result.skipped:
        out.warn(f"skipped row id={row}: {reason}")


def entries(settings: Settings, found: list[Entry]) -> None:
    """What the store holds."""
    if settings["format"] == "json" or (settings["format"] == "auto" and not sys.stdout.isatty()):
        print_json({"schema_version": 1, "entries": [dataclasses.asdict(e) for e in found]})
        return
    rows = [[e.kind, e.name, cell(e.files), cell(e.rows), f"{e.bytes:,}", e.about] for e in found]
    total = sum(e.bytes for e in found)
    title = f"{settings['store']}: {total:,} bytes"
    print_table(title, ["kind", "name", "files", "rows", "bytes", "what"], rows, show.terminal(), sys.stdout)


def report(settings: Settings, facts: dict[str, Any]) -> None:
    """A few named facts: JSON in a pipe or when asked, lines for people."""
    if settings["format"] == "json" or (settings["format"] == "auto" and not sys.stdout.isatty()):
        print_json({"schema_version": 1, **facts})
        return
    for name, value in facts.items():
        shown = (", ".join(value) or "none") if isinstance(value, list) else f"{value:,}"
        sys.stdout.write(f"{name.replace('_', ' ')}: {shown}\n")


def keys(settings: Settings, manifests: list[str], skip_bad: bool) -> None:
    """The keys under which rows are stored."""
    from influence_cli.data.open import open_manifest

    for path in manifests:
        rows = open_manifest(path, skip_bad=skip_bad).all_rows()
        for name, payload, row in zip(rows.ids, rows.payload_keys, rows.row_keys, strict=True):
            sys.stdout.write(f"{payload.tobytes().hex()} {row.tobytes().hex()} {name}\n")


def methods(settings: Settings) -> None:
    """The table of methods, or one method with its options."""
    show.check_format(settings, ("auto", "table", "json"))
    from influence_cli.methods import METHODS

    if settings.source is not None and settings.source not in METHODS:
        raise UsageError(f"unknown method {settings.source!r}", fix=nearest(settings.source, list(METHODS)))
    described = [_describe(info) for name, info in METHODS.items() if settings.source in (None, name)]
    if settings["format"] == "json" or (settings["format"] == "auto" and not sys.stdout.isatty()):
        print_json({"schema_version": 1, "methods": described})
        return
    header = ["method", "kind", "needs", "effect", "cost", "paper", "what it is"]
    keys = ("name", "kind", "needs", "effect", "cost", "paper", "summary")
    rows = [[cell("yes" if d[k] is True else "no" if d[k] is False else d[k]) for k in keys] for d in described]
    print_table("", header, rows, show.terminal(), sys.stdout)
    if settings.source is not None:
        options = [
            [f"{settings.source}.{o['name']}", o["type"], _default(o["default"]), o["unit"] or "-", o["help"]]
            for o in described[0]["options"]
        ]
        header = ["option (--set)", "type", "default", "unit", "meaning"]
        print_table("", header, options, show.terminal(), sys.stdout)
        sys.stdout.write(f"\n{described[0]['about']}\n")


def _default(value: Any) -> str:
    """A default for people: the rule that stands in the option's meaning, where it is none."""
    if isinstance(value, bool):
        return str(value).lower()
    return "see meaning" if value is None else cell(value)


def _describe(info: Any) -> dict[str, Any]:
    cls = info.load()
    options = [
        {
            "name": f.name,
            "type": str(f.type),
            "default": f.default,
            "unit": f.metadata.get("unit"),
            "help": f.metadata.get("help", ""),
        }
        for f in dataclasses.fields(cls)
    ]
    return {
        "name": info.name,
        "kind": cls.kind,
        "needs": cls.needs,
        "effect": cls.effect,
        "relative": getattr(cls, "relative", False),
        "cost": info.cost,
        "paper": info.paper,
        "summary": info.summary,
        "about": (sys.modules[cls.__module__].__doc__ or "").strip(),
        "options": options,
    }

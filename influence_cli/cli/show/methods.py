"""The table of methods, and one method with its options."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any

from influence_cli.cli.printing import cell, print_json, print_table
from influence_cli.cli.settings.requests import ResultOptions

COLUMNS = ("name", "kind", "needs", "effect", "cost", "paper", "summary")


def show_methods(result: ResultOptions, methods: Iterable[Any], alone: bool) -> None:
    """The table of methods; of one that is asked for ``alone`` its options and what it does too."""
    described = [_describe(info) for info in methods]
    if result.wants_json:
        print_json({"schema_version": 1, "methods": described})
        return
    rows = [[cell("yes" if d[k] is True else "no" if d[k] is False else d[k]) for k in COLUMNS] for d in described]
    print_table("", ["method", *COLUMNS[1:-1], "what it is"], rows, sys.stdout)
    for method in described if alone else ():
        options = [
            [f"{method['name']}.{o['name']}", o["type"], _default(o["default"]), o["unit"] or "-", o["help"]]
            for o in method["options"]
        ]
        print_table("", ["option (--set)", "type", "default", "unit", "meaning"], options, sys.stdout)
        sys.stdout.write(f"\n{method['about']}\n")


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

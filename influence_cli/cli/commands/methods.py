"""``influence methods``: what there is to score by."""

from __future__ import annotations

import sys
from typing import Any

from influence_cli.cli.printing import cell, print_json, print_table
from influence_cli.cli.settings.requests import ResultOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.errors import UsageError, nearest
from influence_cli.settings import option_fields

COLUMNS = ("name", "kind", "needs", "effect", "cost", "paper", "summary")


def methods(settings: Settings) -> None:
    """Every scoring method: paper, what it needs, cost, kind, and with a NAME its options."""
    from influence_cli.methods import METHODS

    result = settings.make(ResultOptions)
    result.check_format("methods")
    name = settings.source
    if name is not None and name not in METHODS:
        raise UsageError(f"unknown method {name!r}", fix=nearest(name, list(METHODS)))
    described = [_describe(info) for info in (METHODS.values() if name is None else [METHODS[name]])]
    if result.wants_json:
        print_json({"schema_version": 1, "methods": described})
        return
    rows = [[cell("yes" if d[k] is True else "no" if d[k] is False else d[k]) for k in COLUMNS] for d in described]
    print_table("", ["method", *COLUMNS[1:-1], "what it is"], rows, sys.stdout)
    for method in described if name is not None else ():
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
    options: list[dict[str, Any]] = []
    for f in option_fields(cls):
        about = {"unit": f.metadata.get("unit"), "help": f.metadata.get("help", "")}
        options.append({"name": f.name, "type": str(f.type), "default": f.default, **about})
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

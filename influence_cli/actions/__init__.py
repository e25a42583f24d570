"""What can be done to rows: one lazy table, one file each."""

from __future__ import annotations

import importlib
from typing import Any

from influence_cli.errors import UsageError, nearest
from influence_cli.settings import Options, build_options

ACTIONS: dict[str, str] = {
    "trim": "influence_cli.actions.trim:Trim",
    "relabel": "influence_cli.actions.relabel:Relabel",
    "reweight": "influence_cli.actions.reweight:Reweight",
}


def make_action(name: str, options: Options) -> Any:
    """An action by name, with its options; UsageError where one is unknown."""
    if name not in ACTIONS:
        raise UsageError(f"unknown action {name!r}", fix=nearest(name, list(ACTIONS)))
    module, cls = ACTIONS[name].split(":")
    return build_options(getattr(importlib.import_module(module), cls), name, options.get(name, {}))

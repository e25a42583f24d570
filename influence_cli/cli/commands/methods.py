"""``influence methods``: what there is to score by."""

from __future__ import annotations

from influence_cli.cli.settings.requests import ResultOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.methods import show_methods
from influence_cli.errors import UsageError, nearest


def methods(settings: Settings) -> None:
    """Every scoring method: paper, what it needs, cost, kind, and with a NAME its options."""
    from influence_cli.methods import METHODS

    result = settings.make(ResultOptions)
    result.check_format("auto", "table", "json")
    name = settings.source
    if name is not None and name not in METHODS:
        raise UsageError(f"unknown method {name!r}", fix=nearest(name, list(METHODS)))
    show_methods(result, METHODS.values() if name is None else [METHODS[name]], alone=name is not None)

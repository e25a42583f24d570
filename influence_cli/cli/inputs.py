"""The positional argument, where a command cannot do without."""

from __future__ import annotations

from influence_cli.cli.config import Settings
from influence_cli.errors import UsageError


def require_source(settings: Settings, what: str) -> str:
    """The positional argument.

    Raises:
        UsageError: there is none, and no settings file names one.
    """
    if settings.source is None:
        raise UsageError(f"no input: {what} is needed", fix=f"influence {settings.command} FILE")
    return settings.source

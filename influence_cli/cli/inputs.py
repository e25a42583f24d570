"""The positional argument, where a command cannot do without, and what a score table says of itself."""

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


def said_of_scores(settings: Settings) -> tuple[str | None, str | None]:
    """Manifest and label of a score table: its provenance says, unless a flag does, or it says nothing."""
    manifest = settings["manifest"] if settings.explicit("manifest") or _no_origin(settings.source) else None
    return manifest, settings["label"] if settings.explicit("label") else None


def _no_origin(source: str | None) -> bool:
    """Whether a score table says nothing of its manifest, so that the settings file may."""
    from influence_cli.tables import provenance, read_table

    return source is not None and "manifest" not in provenance(read_table(source, ["id"]).schema)

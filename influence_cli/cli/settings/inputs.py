"""What a command reads and where it keeps results: its argument, the manifest behind a score table, the store."""

from __future__ import annotations

from typing import Any

from influence_cli.cli.settings.requests import StoreOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.errors import UsageError
from influence_cli.settings import Inputs, Runtime


def require_source(settings: Settings, what: str) -> str:
    """The positional argument.

    Raises:
        UsageError: there is none, and no settings file names one.
    """
    if settings.source is None:
        raise UsageError(f"no input: {what} is needed", fix=f"influence {settings.command} FILE")
    return settings.source


def inputs_of(settings: Settings, manifest: str) -> Inputs:
    """What the settings say of data and model.

    Raises:
        UsageError: the table on the way in names code.
    """
    from influence_cli.model.spec import code_named_by_data, is_own

    inputs = settings.make(Inputs, manifest=manifest)
    if settings.origins.get("model") == "provenance" and inputs.model is not None and is_own(inputs.model):
        raise code_named_by_data(inputs.model, settings.source or "")
    return inputs


def runtime_of(settings: Settings, **more: Any) -> Runtime:
    """How fast and where; ``more`` are fields of a runtime."""
    return settings.make(Runtime, store=settings.make(StoreOptions).place, **more)


def manifest_of_scores(settings: Settings) -> dict[str, str | None]:
    """Manifest and label of a score table: its provenance says, unless a flag does, or it says nothing."""
    named = settings.explicit("manifest") or _names_no_manifest(settings.source)
    return {"manifest": settings.values["manifest"] if named else None, "label": settings.insisted("label")}


def _names_no_manifest(source: str | None) -> bool:
    """Whether a score table says nothing of its manifest, so that the settings file may."""
    from influence_cli.data.tables import provenance, read_table

    return source is not None and "manifest" not in provenance(read_table(source, ["id"]).schema)

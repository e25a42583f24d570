"""What a command reads: its argument, the manifest behind a score table, and the flags about data and model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from influence_cli.cli.settings.resolve import Settings
from influence_cli.errors import UsageError

if TYPE_CHECKING:
    from influence_cli.settings import Inputs


def require_source(settings: Settings, what: str) -> str:
    """The positional argument.

    Raises:
        UsageError: there is none, and no settings file names one.
    """
    if settings.source is None:
        raise UsageError(f"no input: {what} is needed", fix=f"influence {settings.command} FILE")
    return settings.source


def inputs_of(settings: Settings, manifest: str) -> Inputs:
    """What the flags say of data and model; a command that lacks one of them leaves it at its default.

    Raises:
        UsageError: the table on the way in names code.
    """
    from influence_cli.model.spec import code_named_by_data, is_own
    from influence_cli.settings import Inputs

    if settings.origins.get("model") == "provenance" and is_own(settings["model"]):
        raise code_named_by_data(settings["model"], settings.source or "")
    given = {n: settings.values.get(n) for n in ("target", "checkpoint", "model", "input_size", "num_classes")}
    return Inputs(
        manifest,
        **given,
        label=settings["label"],
        allow_overlap=bool(settings.values.get("allow_overlap")),
        mean=settings["mean"],
        std=settings["std"],
        interpolation=settings["interpolation"],
        crop=settings["crop"],
        skip_bad=settings["skip_bad"],
        fit_rows=settings.values.get("fit_rows"),
        group=settings.values.get("group") or "group",
    )


def said_of_scores(settings: Settings) -> tuple[str | None, str | None]:
    """Manifest and label of a score table: its provenance says, unless a flag does, or it says nothing."""
    manifest = settings["manifest"] if settings.explicit("manifest") or _no_origin(settings.source) else None
    return manifest, settings["label"] if settings.explicit("label") else None


def _no_origin(source: str | None) -> bool:
    """Whether a score table says nothing of its manifest, so that the settings file may."""
    from influence_cli.data.tables import provenance, read_table

    return source is not None and "manifest" not in provenance(read_table(source, ["id"]).schema)

"""What a command reads, where it keeps results and what it writes, checked before it does anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_cli.cli.settings.requests import StoreOptions, options_of
from influence_cli.cli.settings.settings import Settings
from influence_cli.errors import ManifestError, UsageError, shell_line
from influence_cli.options import CURATE, EVALUATE, GRADS, MANIFEST, RETRAIN, SCORE, options_in, values_kept
from influence_cli.settings import GradSpec, Inputs, Limits, Runtime

if TYPE_CHECKING:
    from influence_cli.stages.curate.review import Commands

WRITTEN = ("output", "edits", "bins", "write_baseline", "report", "plot")
WEIGHTS = ("checkpoint", "init", "canaries_from")  # of their folders no table is read
OTHER = (*WRITTEN, "export", "store")  # paths that name no input
TABLES = ("other_scores", "scores")  # as the positional arguments, they may name more that is read


def require_source(settings: Settings, what: str) -> str:
    """The positional argument; UsageError where there is none, and no settings file names one."""
    if settings.source is None:
        raise UsageError(f"no input: {what} is needed", fix=f"influence {settings.command} FILE")
    return settings.source


def inputs_of(settings: Settings, manifest: str) -> Inputs:
    """What the settings say of data and model; UsageError where the table on the way in names code."""
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
    from influence_cli.data.tables import provenance, schema_of

    named, source = settings.explicit("manifest"), settings.source
    if not named and source is not None:  # where the table says nothing the settings file may
        named = "manifest" not in provenance(schema_of(source), str(source))
    return {"manifest": settings.values["manifest"] if named else None, "label": settings.insisted("label")}


def carried_settings(source: str) -> dict[str, Any] | None:
    """Settings from a stage table's provenance; None for a manifest with payload, or a table without provenance."""
    from influence_cli.data.kinds import kind_in
    from influence_cli.data.locators import origin_of
    from influence_cli.data.tables import PROVENANCE_KEY, parquet_files, read_schema

    if Path(source).suffix in (".csv", ".jsonl"):
        return None
    schema = read_schema(parquet_files(source)[0])
    if kind_in(schema.names) is not None:
        return None
    origin = origin_of(schema, source)
    if not origin:
        if PROVENANCE_KEY in (schema.metadata or {}):
            raise ManifestError("its provenance cannot be read", where=source, fix="run `influence grads` again")
        return None
    carried: dict[str, Any] = {"origin": origin}
    for kind in (Inputs, GradSpec, Limits):
        kept = values_kept(kind, origin)
        carried.update({o.name: kept[o.field] for o in options_in(kind) if o.field in kept})
    carried["options"] = carried.pop("set", {})
    return carried


def review_commands(settings: Settings, scores: str) -> Commands:
    """The command that is running, and the one that applies what is decided on its page to the rows of ``scores``."""
    from influence_cli.stages.curate.review import Commands

    made = ["influence", settings.command, *([settings.source] if settings.source else []), *settings.every_word()]
    read = settings.repeated_of(
        "label", "skip_bad", "allow_outside", *(["manifest"] if settings.command == CURATE else [])
    )
    apply = ["influence", "curate", scores, *read, "--decisions", "decisions.json", "-o", "decided.parquet"]
    return Commands(shell_line(made), shell_line(apply))


def check_written(settings: Settings) -> None:
    """Refuse (UsageError) outputs that cannot be written or would replace what they must not, but a run's folder."""
    given = {name: settings.values[name] for name in WRITTEN if settings.values.get(name)}
    if settings.command == RETRAIN:
        given.pop("output", None)
    if not given:
        return
    from influence_cli.data.outputs import Output, check_outputs

    flags = {name: "-o" if name == "output" else f"--{name.replace('_', '-')}" for name in given}
    outputs = [Output(flags[name], str(path), kind_of(settings, name)) for name, path in given.items()]
    store = None if settings.values.get("no_store") else settings.values.get("store")
    check_outputs(outputs, reads(settings), store, probe=not settings.values.get("dry_run"))


def reads(settings: Settings) -> list[Any]:
    """The files and folders that a command reads, as far as its settings and its tables' provenance say."""
    from influence_cli.data.locators import named_in

    names = {o.name for o in options_of(settings.command) if o.path and o.name not in OTHER} | {"other_scores"}
    if settings.values.get("write_baseline") and not settings.values.get("check"):
        names.discard("baseline")  # one that is written anew is read by the gate alone
    named = {name: settings.values.get(name) for name in sorted(names)}
    found = [settings.source, *settings.more, settings.file]
    if settings.command == MANIFEST:
        from influence_cli.data.sources import is_saved

        found = [path for path in found if not is_saved(path)]
    found += [
        path
        for name, path in named.items()
        if not isinstance(path, tuple)  # names, as provenance holds them
        and not (name in WEIGHTS and path and os.path.isdir(path))
    ]
    found += [text.partition("=")[2] for text in settings.values.get("arm", [])]
    if settings.command in (SCORE, CURATE, EVALUATE):
        tables = [settings.source, *settings.more, *(settings.values.get(name) for name in TABLES)]
        found += [path for table in tables if table is not None for path in named_in(table)]
    return [path for path in found if path is not None]


def kind_of(settings: Settings, name: str) -> str:
    """The kind of what the command writes to an output of that name."""
    from influence_cli.data import earlier

    if name != "output":
        kinds = {
            "edits": earlier.EDITS,
            "bins": earlier.BINS,
            "write_baseline": earlier.BASELINE,
            "report": earlier.PAGE,
        }
        return kinds.get(name, earlier.PICTURE)
    if settings.command == SCORE:
        values = settings.values
        if values["explain"]:
            return earlier.REASONS
        return earlier.PER_TARGET if values["per_target"] else earlier.TOKENS if values["tokens"] else earlier.SCORES
    if settings.command == CURATE:
        return earlier.RESTORED if settings.values["undo"] else earlier.CURATED
    return {MANIFEST: earlier.MADE, GRADS: earlier.GRADS}.get(settings.command, earlier.RESULT)

"""What a command writes by its settings, checked before it does anything."""

from __future__ import annotations

import os
from typing import Any

from influence_cli.cli.settings.requests import options_of
from influence_cli.cli.settings.settings import Settings
from influence_cli.options import CURATE, EVALUATE, GRADS, MANIFEST, RETRAIN, SCORE

WRITTEN = ("output", "edits", "write_baseline", "report", "plot")
WEIGHTS = ("checkpoint", "init", "canaries_from")  # of their folders no table is read
OTHER = (*WRITTEN, "export", "store")  # paths that name no input
TABLES = ("other_scores", "scores")  # as the positional arguments, they may name more that is read


def check(settings: Settings) -> None:
    """Refuse outputs that cannot be written, or would replace what they must not; not the folder of ``retrain -o``.

    Raises:
        UsageError: an output is refused.
    """
    given = {name: settings.values[name] for name in WRITTEN if settings.values.get(name)}
    if settings.command == RETRAIN:
        given.pop("output", None)
    if not given:
        return
    from influence_cli.data.outputs import Output, check_outputs

    outputs = [Output(_flag(name), str(path), _kind(settings, name)) for name, path in given.items()]
    store = None if settings.values.get("no_store") else settings.values.get("store")
    check_outputs(outputs, reads(settings), store, probe=not settings.values.get("dry_run"))


def reads(settings: Settings) -> list[Any]:
    """The files and folders that a command reads, as far as its settings and its tables' provenance say."""
    from influence_cli.data.outputs import named_in

    names = {o.name for o in options_of(settings.command) if o.path and o.name not in OTHER} | {"other_scores"}
    if settings.values.get("write_baseline") and not settings.values.get("check"):
        names.discard("baseline")  # one that is written anew is read by the gate alone
    named = {name: settings.values.get(name) for name in sorted(names)}
    found = [settings.source, *settings.more, settings.file]
    if settings.command == MANIFEST:
        from influence_cli.data.sources import is_saved

        found = [path for path in found if not is_saved(path)]
    found += [path for name, path in named.items() if not (name in WEIGHTS and path and os.path.isdir(path))]
    found += [text.partition("=")[2] for text in settings.values.get("arm", [])]
    if settings.command in (SCORE, CURATE, EVALUATE):
        tables = [settings.source, *settings.more, *(settings.values.get(name) for name in TABLES)]
        found += [path for table in tables if table is not None for path in named_in(table)]
    return [path for path in found if path is not None]


def table_kind(settings: Settings) -> str:
    """The kind of the table that ``-o`` writes."""
    return _kind(settings, "output")


def _kind(settings: Settings, name: str) -> str:
    from influence_cli.data import earlier

    if name != "output":
        kinds = {"edits": earlier.EDITS, "write_baseline": earlier.BASELINE, "report": earlier.PAGE}
        return kinds.get(name, earlier.PICTURE)
    if settings.command == SCORE:
        return earlier.PER_TARGET if settings.values["per_target"] else earlier.SCORES
    if settings.command == CURATE:
        return earlier.RESTORED if settings.values["undo"] else earlier.CURATED
    return {MANIFEST: earlier.MADE, GRADS: earlier.GRADS}.get(settings.command, earlier.RESULT)


def _flag(name: str) -> str:
    return "-o" if name == "output" else f"--{name.replace('_', '-')}"

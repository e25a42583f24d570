"""The run behind a score table, opened again from the table's provenance: at its checkpoint, or at another."""

from __future__ import annotations

from typing import Any

from influence_cli.data.locators import require_found
from influence_cli.errors import ModelError, UsageError
from influence_cli.events import Listener
from influence_cli.methods import AUTO
from influence_cli.model.checkpoints import find_model
from influence_cli.model.spec import code_named_by_data, is_own
from influence_cli.options import values_kept
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.run.open import open_run
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session


def reopen(
    origin: dict[str, Any],
    runtime: Runtime,
    listener: Listener,
    *,
    source: str,
    manifest: Any = None,
    label: str | None = None,
    target: str | None = None,
    checkpoint: str | None = None,
    class_map: Any = None,
    spec: GradSpec | None = None,
    another: bool = False,
    remember: bool = True,
) -> tuple[Run, Session]:
    """The run of a score table's provenance, its checkpoint where ``checkpoint`` says; ``another`` may be meant.

    ``manifest``, ``label``, ``target`` and ``spec``, where given, stand for those of the provenance; a target that is
    given is meant, whatever was scored for.

    Raises:
        UsageError: the table has no provenance, nothing that a model is needed for, or other target rows by now; or
            it names code that ``runtime`` does not.
        ModelError: its checkpoint is not the one that it was scored at, and no other is asked for.
    """
    _check_origin(origin, source)
    kept = values_kept(Inputs, origin)
    named = kept.get("model") or (origin.get("model") or {}).get("name")
    if is_own(named):
        if not is_own(runtime.code) or (runtime.code != named and not another):
            raise code_named_by_data(str(named), source)
        kept["model"] = runtime.code
    given = {"manifest": manifest, "label": label, "target": target, "checkpoint": checkpoint, "class_map": class_map}
    for part in ("manifest", "target"):
        if given[part] is None and kept.get(part) is not None:
            require_found(origin, part, source)
    meant = {name: value for name, value in given.items() if value is not None}
    if another and "class_map" in kept and (find_model(str(checkpoint))[1] or {}).get("classes"):
        del kept["class_map"]  # the other checkpoint says its classes itself
    inputs = Inputs(**{"manifest": None, **kept, **meant, "overlap": overlap_of(origin)})
    session = Session.open(runtime, listener, remember)
    run = open_run(inputs, spec or spec_of(origin), session, _why_effects(origin))
    if not another and run.checkpoint is not None and run.checkpoint.digest != origin["checkpoint"]["fingerprint"]:
        where = inputs.checkpoint or ""
        raise ModelError("the checkpoint has changed since", where=where, fix="run `influence score` again")
    features = (origin.get("features_model") or {}).get("fingerprint")
    if run.backbone is not None and features not in (None, run.backbone.checkpoint.digest):
        what = "the weights of --features have changed since"
        raise ModelError(what, where=str(inputs.features), fix="run `influence score` again")
    scored_for = origin["target"].get("fingerprint")
    if target is None and scored_for not in (None, run.target_fingerprint):
        what = "the target rows have changed since, so its scores are of another question"
        raise UsageError(what, where=source, fix="run `influence score` again")
    return run, session


def _check_origin(origin: dict[str, Any], source: str) -> None:
    """Refuse a table whose provenance leads to no run that can be opened again (UsageError)."""
    if not origin:
        raise UsageError("the table does not say how it was made", where=source, fix="give one that `score` wrote")
    if origin.get("checkpoint") is None and origin.get("features_model") is None:
        raise UsageError("no method of the table needs a model", where=source, fix="score with ip or loss, say")
    if (origin.get("fit_rows") or {}).get("in_memory"):
        fix = "score with a manifest's path as --fit-rows"
        raise UsageError("its curvature was fitted on rows in memory, which are not found again", where=source, fix=fix)


def _why_effects(origin: dict[str, Any]) -> str:
    """Why ``auto`` was a method of effects when the table was made, so that it is again; nothing where it was not."""
    told = origin.get("auto") or {}
    return str(told.get("because") or "its table was made so") if told.get("method", AUTO) != AUTO else ""


def overlap_of(origin: dict[str, Any]) -> str:
    """What is done with target rows that are train rows, as when the table was made: what was refused is not there."""
    return "keep" if (origin.get("model_flags") or {}).get("overlap") == "keep" else "drop"


def spec_of(origin: dict[str, Any]) -> GradSpec:
    """What a score table's provenance says was asked for."""
    return GradSpec(**values_kept(GradSpec, origin))

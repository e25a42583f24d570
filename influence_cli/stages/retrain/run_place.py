"""Where ``retrain`` may write: a new folder, or a run folder of its own recipe; asked before anything is computed.

In a run folder only a run's own files are replaced: weights, checkpoints, ``run.json`` and ``metrics.json``, where they
are as a run writes them; whatever else is there stays.  Finished trainings, under ``arms/``, are never replaced.
"""

from __future__ import annotations

import filecmp
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_cli.data.outputs import check_no_store, check_writable, is_inside, is_same, is_stream, status_of
from influence_cli.errors import DamagedModel, UsageError
from influence_cli.events import SILENT, Listener
from influence_cli.model.run_folder import ARMS, CHECKPOINTS, EPOCHS, FOLDS, METRICS_FILE, MOMENTS, RUN_FILE, RunFolder
from influence_cli.model.run_record import WEIGHTS_FILE, RunRecord
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.store import remote
from influence_cli.store.mirror import run_mirrored

if TYPE_CHECKING:
    from influence_cli.model.train.recipe import Recipe

_NOTES = ("models", "tasks")
_ARM, _TEMPORARY = re.compile(r"[0-9a-f]{32}"), re.compile(r"\..+\.tmp")
_INSIDE = {  # folders of files that an arm has and the top has copies of, by what the files are called
    CHECKPOINTS: re.compile(r"step-\d+\.safetensors"),
    MOMENTS: re.compile(r"step-\d+\.safetensors"),
    EPOCHS: re.compile(r"(rows|\d+-\d+)\.safetensors"),
    FOLDS: re.compile(r"fold-\d+-of-\d+\.safetensors"),
}
_ANOTHER = "give a new folder, or move that one away"


def at_hand(request: RetrainRequest) -> RetrainRequest:
    """The same request; of a run folder at an address with the folder here that is its copy, and puts what is written.

    Raises:
        UsageError: nothing can be read or written there.
    """
    if not remote.is_remote(request.output):
        return request
    return replace(request, output=str(run_mirrored(request.output)))


def check_run_folder(request: RetrainRequest, recipe: Recipe, probe: bool = True, listener: Listener = SILENT) -> None:
    """Refuse a place that no run may be written to, before anything is done; say what a run there would lose.

    Raises:
        UsageError: a file, a folder that this run reads, one with other content, a run of another recipe or model, or
            a place that cannot be written.
    """
    output = request.output
    status_of("-o", output)
    place = Path(os.path.realpath(output))
    if is_stream(output) or (place.exists() and not place.is_dir()):
        raise UsageError(
            f"cannot write {_asked_place(request)}: it is no folder, and a run is one", where=output, fix=_ANOTHER
        )
    models = (request.init, None if request.canaries is None else request.canaries.source)
    tables = (request.inputs.manifest, request.against, request.test, *(p for _, p in request.arms))
    read = [p for p in models if p is not None and is_inside(Path(os.path.realpath(p)), place)]
    read += [str(t) for t in tables if isinstance(t, str | Path) and str(t) != "-" and is_same(Path(t), place)]
    if read:
        raise UsageError(f"{_asked_place(request)} is read by this run", where=read[0], fix=_ANOTHER)
    check_no_store("-o", output)
    if place.is_dir():
        _check_content(request, recipe, place, listener)
    check_writable("-o", os.path.join(output, RUN_FILE), probe)


def check_model(request: RetrainRequest, name: str) -> None:
    """Refuse a run folder of another model, once it is known which one will be trained.

    Raises:
        UsageError: the run that stands there is of another.
    """
    place = Path(request.output)
    there = _read(place).model["name"] if (place / RUN_FILE).exists() else name
    if there != name:
        raise _of_another(request, "model", there, name)


def _check_content(request: RetrainRequest, recipe: Recipe, place: Path, listener: Listener) -> None:
    """Refuse a folder with other content, a run of another recipe, and one in which a file of the user's would go."""
    for name in (ARMS, *_INSIDE, *_NOTES):
        if (place / name).is_symlink() and not is_inside(Path(os.path.realpath(place / name)), place):
            what = f"{name} in {_asked_place(request)} is a link to another place, which would be written to"
            raise UsageError(what, where=str(place / name), fix="give a new folder, or move that link away")
    if not os.path.lexists(place / RUN_FILE):
        inside = sorted(place.iterdir(), key=lambda p: (p.is_dir(), p.name))
        others = [p.name for p in inside if not (_TEMPORARY.fullmatch(p.name) or _unfinished(p))]
        if others:
            what = f"{_asked_place(request)} is there and is no run folder: it holds {others[0]}"
            raise UsageError(what, where=str(place), fix=_ANOTHER)
        return
    _check_same(request, recipe, _read(place), listener)
    named = request.inputs.model
    if named is not None and request.inputs.task is None and not named.startswith(("python:", "hf:")):
        check_model(request, named)
    replaced = [WEIGHTS_FILE, METRICS_FILE]
    for folder, called in _INSIDE.items():
        if _is_written(folder, request, recipe) and os.path.lexists(place / folder):
            names = sorted(p.name for p in (place / folder).iterdir()) if (place / folder).is_dir() else []
            replaced += [f"{folder}/{n}" for n in names if called.fullmatch(n)] or [folder]
    for name in replaced:
        if os.path.lexists(place / name) and not RunFolder(place).wrote(name):
            what = f"{name} in {_asked_place(request)} is no earlier output of a run of influence"
            raise UsageError(what, where=str(place / name), fix="give a new folder, or move that file away")


def _is_written(folder: str, request: RetrainRequest, recipe: Recipe) -> bool:
    """Whether a run writes into one of its folders."""
    asked = {CHECKPOINTS: request.keep_checkpoints, EPOCHS: request.records_epochs and recipe.has_epochs}
    asked |= {FOLDS: request.folds, MOMENTS: request.wants_moments}
    return bool(asked.get(folder))


def _check_same(request: RetrainRequest, recipe: Recipe, run: RunRecord, listener: Listener) -> None:
    """Refuse a run of another recipe; say which record is replaced where seed, calibration rows or canaries differ.

    More seeds and other rows are the same run.  What an earlier version did not note is not compared.
    """
    now: dict[str, Any] = {**recipe.describe(), "lr": recipe.peak_lr, "pretrained": request.pretrained}
    then = {**run.recipe, **({} if run.pretrained is None else {"pretrained": run.pretrained})}
    for values in (now, then):
        values.setdefault("amp", "fp32")  # as it stands where a recipe says nothing
    now["init"], then["init"] = _place_of(request.init), _place_of(run.init)
    for name in sorted(now.keys() & then.keys()):
        if now[name] != then[name]:
            raise _of_another(request, name, then[name], now[name])
    for name, (old, new) in _records(request, run).items():
        if old != new:
            listener.warn(
                f"{_asked_place(request)} holds a run with {name} {old}, now {new}: what {RUN_FILE} says "
                "of its calibration rows and canaries is replaced"
            )


def _records(request: RetrainRequest, run: RunRecord) -> dict[str, tuple[Any, Any]]:
    """By name, what a run says of how its rows were drawn, and what is asked for now."""
    unnoted = (request.calibration or "some of the rows") if run.calibration_ids else 0.0
    asked, planted = request.canaries, run.canaries
    found: dict[str, tuple[Any, Any]] = {
        "seed": (request.seed if run.seed is None else run.seed, request.seed),
        "share of calibration rows": (unnoted if run.calibration is None else run.calibration, request.calibration),
        "share of canaries": (planted.share if planted else 0.0, asked.share if asked else 0.0),
    }
    if asked and planted:
        found["noise of canaries"] = planted.noise, asked.kind
        found["source of canaries"] = _place_of(planted.source), _place_of(asked.source)
    return found


def _unfinished(path: Path) -> bool:
    """Whether it is what a run leaves that was stopped before its ``run.json`` was written."""
    if path.name in (WEIGHTS_FILE, *_INSIDE):
        return _is_copy(path)
    if not path.is_dir() or path.name not in (ARMS, *_NOTES):
        return False
    return path.name != ARMS or all(_ARM.fullmatch(p.name) or _TEMPORARY.fullmatch(p.name) for p in path.iterdir())


def _is_copy(path: Path, inside: str = "") -> bool:
    """Whether weights, or all files in a folder, are copies of an arm's, as a run puts them at the top at its end.

    Nothing is lost where these are replaced, whatever recipe they are of.
    """
    if path.is_dir():
        files = [p for p in path.iterdir() if not _TEMPORARY.fullmatch(p.name)]
        return path.name in _INSIDE and all(_is_copy(p, f"{path.name}/") for p in files)
    root = path.parent.parent if inside else path.parent
    kept = [p for p in root.glob(f"{ARMS}/*/{inside}{path.name}") if _ARM.fullmatch(p.relative_to(root).parts[1])]
    same = (p.is_file() and filecmp.cmp(p, path, shallow=False) for p in kept)
    return RunFolder(path.parent).wrote(path.name) and any(same)


def _read(place: Path) -> RunRecord:
    """The record of the run that a folder holds.

    Raises:
        UsageError: it cannot be read, or is no run's.
    """
    why = "it is not as `retrain` writes it"
    try:
        if (record := RunFolder(place).read()) is not None:
            return record
    except DamagedModel as error:
        why = error.what
    what = f"{RUN_FILE} is there and is no earlier run of influence ({why})"
    raise UsageError(what, where=remote.called(place / RUN_FILE), fix=_ANOTHER)


def _asked_place(request: RetrainRequest) -> str:
    """The option as it was given: an address is not called by its copy here."""
    return f"-o {remote.called(request.output)!r}"


def _place_of(path: Any) -> str | None:
    return None if path is None else os.path.realpath(str(path))


def _of_another(request: RetrainRequest, name: str, then: Any, now: Any) -> UsageError:
    what = f"{_asked_place(request)} holds a run of another recipe: its {name} is {then}, not {now}"
    return UsageError(what, where=os.path.join(remote.called(request.output), RUN_FILE), fix=_ANOTHER)

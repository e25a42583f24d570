"""Where ``retrain`` may write: a new folder, or a run folder of its own recipe; asked before anything is computed.

In a run folder only a run's own files are replaced: weights, checkpoints, ``run.json`` and ``metrics.json``; whatever
else is there stays.  Finished trainings, under ``arms/``, are never replaced.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_cli.data.outputs import check_no_store, check_writable, is_inside, is_same, is_stream, status_of
from influence_cli.errors import UsageError
from influence_cli.model.checkpoints import RUN_FILE, WEIGHTS_FILE
from influence_cli.stages.training_run import RetrainRequest
from influence_cli.store.files import METADATA_KEY

if TYPE_CHECKING:
    from influence_cli.model.training import Recipe

_UNFINISHED = ("arms", "models", "tasks")  # what is in a run folder before its first run is finished
_ARM, _TEMPORARY = re.compile(r"[0-9a-f]{32}"), re.compile(r"\..+\.tmp")
_ANOTHER = "give a new folder, or move that one away"


def check_run_folder(request: RetrainRequest, recipe: Recipe, probe: bool = True) -> None:
    """Refuse a place that no run may be written to, before anything is done.

    Raises:
        UsageError: a file, a folder that this run reads, one with other content, a run of another recipe or model, or
            a place that cannot be written.
    """
    output = request.output
    status_of("-o", output)
    place = Path(os.path.realpath(output))
    if is_stream(output) or (place.exists() and not place.is_dir()):
        raise UsageError(f"cannot write -o {output!r}: it is no folder, and a run is one", where=output, fix=_ANOTHER)
    for path in (request.init, None if request.canaries is None else request.canaries.source):
        if path is not None and is_inside(Path(os.path.realpath(path)), place):
            raise UsageError(f"-o {output!r} is read by this run", where=path, fix=_ANOTHER)
    for source in (request.inputs.manifest, request.against, request.test, *(p for _, p in request.arms)):
        if isinstance(source, str | Path) and str(source) != "-" and is_same(Path(source), place):
            raise UsageError(f"-o {output!r} is read by this run", where=str(source), fix=_ANOTHER)
    check_no_store("-o", output)
    if place.is_dir():
        _check_content(request, recipe, place)
    check_writable("-o", os.path.join(output, RUN_FILE), probe)


def check_model(request: RetrainRequest, name: str) -> None:
    """Refuse a run folder of another model, once it is known which one will be trained.

    Raises:
        UsageError: the run that stands there is of another.
    """
    run = Path(request.output) / RUN_FILE
    there = _read(run)["model"].get("name") if run.exists() else name
    if there != name:
        raise _of_another(request, "model", there, name)


def _check_content(request: RetrainRequest, recipe: Recipe, place: Path) -> None:
    if not os.path.lexists(place / RUN_FILE):
        others = [p.name for p in sorted(place.iterdir()) if not (_TEMPORARY.fullmatch(p.name) or _unfinished(p))]
        if others:
            raise UsageError(
                f"-o {request.output!r} is there and is no run folder: it holds {others[0]}",
                where=str(place),
                fix=_ANOTHER,
            )
        return
    run = _read(place / RUN_FILE)
    now: dict[str, Any] = {**recipe.describe(), "lr": recipe.peak_lr, "pretrained": request.pretrained}
    then = {**run["recipe"], **({"pretrained": run["pretrained"]} if "pretrained" in run else {})}
    now["init"], then["init"] = _weights(request.init), _weights(run.get("init"))
    for name in sorted(now.keys() & then.keys()):
        if now[name] != then[name]:
            raise _of_another(request, name, then[name], now[name])
    named = request.inputs.model
    if named is not None and request.inputs.task is None and not named.startswith(("python:", "hf:")):
        check_model(request, named)
    weights = place / WEIGHTS_FILE
    if weights.exists() and not _are_ours(weights):
        what = f"{WEIGHTS_FILE} in -o {request.output!r} is no earlier output of a run of influence"
        raise UsageError(what, where=str(weights), fix="give a new folder, or move that file away")


def _unfinished(path: Path) -> bool:
    if path.name not in _UNFINISHED or not path.is_dir():
        return False
    return path.name != "arms" or all(_ARM.fullmatch(p.name) or _TEMPORARY.fullmatch(p.name) for p in path.iterdir())


def _read(file: Path) -> dict[str, Any]:
    """What a run folder says of its run.

    Raises:
        UsageError: it cannot be read, or is no run's.
    """
    try:
        run = json.loads(file.read_text())
        if all(isinstance(run[part], dict) for part in ("model", "recipe", "trained_on")):
            return run
        why = "it is not as `retrain` writes it"
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = str(error)
    raise UsageError(f"{RUN_FILE} is there and is no earlier run of influence ({why})", where=str(file), fix=_ANOTHER)


def _are_ours(weights: Path) -> bool:
    """Whether weights say the model that a run writes into them; only their header is read."""
    try:
        with open(weights, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(min(length, 100_000_000)))
        return "model" in json.loads(header["__metadata__"][METADATA_KEY])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _weights(path: Any) -> str | None:
    return None if path is None else os.path.realpath(str(path))


def _of_another(request: RetrainRequest, name: str, then: Any, now: Any) -> UsageError:
    return UsageError(
        f"-o {request.output!r} holds a run of another recipe: its {name} is {then}, not {now}",
        where=os.path.join(request.output, RUN_FILE),
        fix=_ANOTHER,
    )

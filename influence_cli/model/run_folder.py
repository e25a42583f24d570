"""``run.json``: what a run folder of ``retrain`` says of its model, its training and its weights.

It carries a checksum of itself and the digest of each file of weights.  One that is there and cannot be read, or is
not as it was written, is an error for whoever reads it: the l2 of training, canaries and calibration rows are in it,
and numbers would be other ones without them.  Folders of earlier versions carry no checksums and are read as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from influence_cli.data.kinds import is_input
from influence_cli.errors import DamagedModel
from influence_cli.store.files import DamagedFile, tensor_digest
from influence_cli.store.sealed import CHECKSUM, WEIGHTS, parsed_object, write_sealed_json

RUN_FILE, WEIGHTS_FILE, CHECKPOINTS = "run.json", "model.safetensors", "checkpoints"
MODEL_KEYS = {
    "name", "num_classes", "kind", "shape", "mean", "std", "interpolation", "decoder", "classes", "crop", "code",
}  # fmt: skip
_OURS = {"schema_version", "model", "recipe", CHECKSUM, WEIGHTS}  # any of these: not another program's run.json


def run_folder(locator: str | Path) -> Path:
    """The folder whose ``run.json`` speaks of a checkpoint: itself, or where its file or its ``checkpoints`` lies."""
    path = Path(locator)
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name == CHECKPOINTS else path.parent


def read_run(folder: str | Path) -> dict[str, Any] | None:
    """What the ``run.json`` of a folder says, verified; None where there is none, or it is another program's.

    Raises:
        DamagedModel: it is there and cannot be read, or is not as ``retrain`` wrote it.
    """
    path = Path(folder) / RUN_FILE
    if path.exists() and not path.is_file():
        raise _unreadable(path, "it is no regular file")
    try:
        run = parsed_object(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise _unreadable(path, error) from error
        return None
    except (OSError, DamagedFile) as error:
        raise _unreadable(path, error) from error
    if run and not _OURS & run.keys() and not (Path(folder) / WEIGHTS_FILE).exists():
        return None
    wrong = _wrong(run)
    if wrong is not None:
        raise _unreadable(path, wrong)
    return run


def write_run(folder: Path, about: dict[str, Any], files: Iterable[str]) -> None:
    """Write what a run folder says of its model, with the digests of its ``files`` of weights."""
    weights = {name: tensor_digest((folder / name,)) for name in files}
    write_sealed_json(folder / RUN_FILE, {**about, WEIGHTS: weights})


def check_weights_of_run(path: Path, digest: str, whole: bool) -> None:
    """Refuse weights that are not those which the ``run.json`` of their folder names; ``whole``: it must name them.

    Raises:
        DamagedModel: the weights have another digest, or the ``run.json`` cannot be read.
    """
    folder = run_folder(path)
    named = (read_run(folder) or {}).get(WEIGHTS)
    if named is None:
        return
    name = path.relative_to(folder).as_posix()
    if named.get(name, None if whole else digest) != digest:
        raise DamagedModel(
            f"{name} is not the weights that {RUN_FILE} names: damaged, or replaced",
            where=str(path),
            fix=f"copy the run folder again, or train again; for other weights, put them where no {RUN_FILE} is",
        )


def is_model(value: Any) -> bool:
    """Whether a value is a model spec as JSON keeps it: the keys that say what is built, each of its type."""
    if not isinstance(value, dict) or not isinstance(value.get("shape"), list):
        return False
    numbers = [value[k] for k in ("mean", "std") if k in value]
    names = value.get("classes")
    return (
        isinstance(value.get("name"), str)
        and type(value.get("num_classes")) is int
        and is_input(value.get("kind"))
        and all(type(n) is int and n > 0 for n in value["shape"])
        and all(isinstance(some, list) and all(type(v) in (int, float) for v in some) for some in numbers)
        and all(isinstance(value[k], str) for k in ("interpolation", "decoder") if k in value)
        and (names is None or (isinstance(names, list) and all(isinstance(n, str) for n in names)))
        and value.keys() <= MODEL_KEYS
    )


def _unreadable(path: Path, why: object) -> DamagedModel:
    return DamagedModel(
        f"{RUN_FILE} is not as retrain wrote it ({why})",
        where=str(path),
        fix=f"copy the run folder again, or train again; to do without it, move {RUN_FILE} away and pass --model",
    )


def _wrong(run: dict[str, Any]) -> str | None:
    """What no ``run.json`` that ``retrain`` wrote has, or None."""
    if (CHECKSUM in run) != (WEIGHTS in run):
        return "its checksum or its digests of weights are missing"
    ids = run.get("calibration_ids", [])
    canaries = run.get("canaries", {})
    listed = [canaries.get(k, []) for k in ("ids", "row_keys", "planted")] if isinstance(canaries, dict) else []
    checks = {
        "model": is_model(run.get("model")),
        "recipe": isinstance(run.get("recipe"), dict) and _is_recipe(run["recipe"]),
        "init": isinstance(run.get("init"), str | None),
        "pretrained": isinstance(run.get("pretrained", False), bool),
        "checkpoints": isinstance(run.get("checkpoints", []), list),
        "trained_on": isinstance(run.get("trained_on", {}), dict),
        "calibration_ids": isinstance(ids, list) and all(isinstance(i, str) for i in ids),
        "canaries": bool(listed) and all(isinstance(v, list) and len(v) == len(listed[0]) for v in listed),
        WEIGHTS: isinstance(run.get(WEIGHTS, {}), dict),
    }
    wrong = [name for name, right in checks.items() if not right]
    return f"no usable {wrong[0]!r}" if wrong else None


def _is_recipe(recipe: dict[str, Any]) -> bool:
    number = (int, float)
    kinds: dict[str, Any] = dict.fromkeys(("weight_decay", "lr", "momentum", "warmup"), number)
    kinds |= dict.fromkeys(("epochs", "batch_size"), int) | dict.fromkeys(("optimizer", "schedule", "augment"), str)
    return all(
        isinstance(recipe[k], kind) and not isinstance(recipe[k], bool) for k, kind in kinds.items() if k in recipe
    )

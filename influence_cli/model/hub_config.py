"""What timm's ``config.json`` beside weights says of a model, as the Hugging Face hub keeps it.

It names the architecture, its number of outputs, what they are called, and how pixels become its input.  Other
programs' ``config.json`` is none of this, and is passed by.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from influence_cli.errors import ModelError
from influence_cli.model.run_record import is_model
from influence_cli.settings import INTERPOLATIONS
from influence_cli.store.lfs import refuse_pointer

CONFIG_FILE = "config.json"
_BUILT = {"num_classes", "in_chans", "img_size", "drop_rate", "drop_path_rate", "pretrained"}  # arguments of a model


def read_hub_config(folder: Path) -> dict[str, Any] | None:
    """The model spec that a folder's ``config.json`` says, as ``ModelSpec.from_dict`` reads it, or None.

    Raises:
        ModelError: it is timm's and says of no model that can be built.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    refuse_pointer(path, ModelError)
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None  # whose it is cannot be told
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        return None
    if not isinstance(config.get("pretrained_cfg"), dict):
        return None
    fix = f"correct {CONFIG_FILE}, or move it away and pass --model"
    _refuse_arguments(config.get("model_args") or {}, path)
    try:
        made = _spec(config, {**config["pretrained_cfg"], **_plain(config)})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{CONFIG_FILE} cannot be read ({error!r})", where=str(path), fix=fix) from error
    if not is_model(made):
        raise ModelError(f"{CONFIG_FILE} says of no model that can be built", where=str(path), fix=fix)
    return made


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """What stands at the top of the configuration, as timm's loader prefers it."""
    return {k: config[k] for k in ("num_classes", "label_names") if config.get(k) is not None}


def _spec(config: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    arguments = config.get("model_args") or {}
    shape = [int(n) for n in about["input_size"]]
    if "img_size" in arguments:
        size = arguments["img_size"]
        shape[1:] = [size, size] if isinstance(size, int) else [int(n) for n in size]
    interpolation = about.get("interpolation")
    made = {
        "name": config["architecture"],
        "num_classes": int(arguments.get("num_classes", about["num_classes"])),
        "kind": "image",
        "shape": [int(arguments.get("in_chans", shape[0])), *shape[1:]],
        "mean": [float(v) for v in about["mean"]],
        "std": [float(v) for v in about["std"]],
        "interpolation": interpolation if interpolation in INTERPOLATIONS else "bicubic",
    }
    if not len(made["mean"]) == len(made["std"]) == made["shape"][0]:
        raise ValueError("mean and std have another number of channels than the input")
    crop = about.get("crop_pct") if about.get("crop_mode") in (None, "center") else None
    names = _labels(about.get("label_names"), made["num_classes"])
    return {**made, **({} if crop is None else {"crop": float(crop)}), "classes": names}


def _labels(names: Any, count: int) -> list[str] | None:
    """The names of all outputs, from a list or a dict by number; None where some are not named."""
    if isinstance(names, dict):
        names = [names.get(str(k)) for k in range(count)]
    if not isinstance(names, list) or len(names) != count or not all(isinstance(n, str) for n in names):
        return None
    return names


def _refuse_arguments(arguments: dict[str, Any], path: Path) -> None:
    """Refuse arguments that build another model than its name does (ModelError)."""
    others = sorted(set(arguments) - _BUILT)
    if others:
        what = f"{CONFIG_FILE} builds the model with {', '.join(others)}, which influence does not pass on"
        fix = "pass --model python:PKG.MOD:FACTORY with a function that makes it, and move the file away"
        raise ModelError(what, where=str(path), fix=fix)

"""What the ``run.json`` of a run folder says: the model, how and on which rows it was trained, and what was planted.

Folders of earlier versions say less; what they do not say is None or empty here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.kinds import is_input
from influence_cli.data.manifest import Rows
from influence_cli.model.hf_folder import is_network
from influence_cli.model.losses import is_loss
from influence_cli.model.text_input import is_text_input
from influence_cli.store.sealed import WEIGHTS

WEIGHTS_FILE = "model.safetensors"
_PLAIN = ("model", "recipe", "seed", "init", "pretrained")  # fields that JSON holds as they are
MODEL_KEYS = {
    "name", "num_classes", "kind", "shape", "mean", "std", "interpolation", "decoder", "classes", "crop", "code",
    "order", "features", "one_logit", "network", "text", "loss",
}  # fmt: skip


@dataclass(frozen=True)
class EpochCheckpoint:
    """Weights that were kept at the end of an epoch, after so many steps, and the learning rate of the last one."""

    file: str
    epoch: int
    step: int
    lr: float

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> EpochCheckpoint:
        """The checkpoint as ``run.json`` and ``metrics.json`` keep it."""
        return cls(**{f.name: value[f.name] for f in fields(cls)})


@dataclass(frozen=True)
class PlantedLabels:
    """The canaries of a run: rows by id and row key, their own labels, and the wrong ones that were trained on."""

    ids: list[str]
    row_keys: list[str]
    planted: list[int]
    labels: list[int] | None = None
    share: float | None = None
    noise: str | None = None
    source: str | None = None  # the checkpoint whose confusion the labels were drawn from

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> PlantedLabels:
        """The canaries as ``run.json`` keeps them."""
        lists = [value.get(name, []) for name in ("ids", "row_keys", "planted")]
        return cls(*lists, *(value.get(name) for name in ("labels", "share", "noise", "from")))

    def as_json(self) -> dict[str, Any]:
        """The canaries as ``run.json`` keeps them."""
        return {"from" if name == "source" else name: value for name, value in asdict(self).items()}

    def of(self, rows: Rows) -> NDArray[np.int64]:
        """The label planted for each row [n], -1 for none.

        A row that has changed since (another payload or label under its id) is no canary any more.
        """
        known = dict(zip(self.ids, zip(self.row_keys, self.planted, strict=True), strict=True))
        planted = np.full(len(rows), -1, dtype=np.int64)
        for k, (i, key) in enumerate(zip(rows.ids, rows.row_keys, strict=True)):
            if i in known and known[i][0] == key.tobytes().hex():
                planted[k] = known[i][1]
        return planted


@dataclass(frozen=True)
class RunRecord:
    """One training: its model, recipe and start, the rows it left out, and the weights that came of it."""

    model: dict[str, Any]  # as ``ModelSpec.from_dict`` reads it
    recipe: dict[str, Any]  # the fields of the recipe, with the highest learning rate as ``lr``
    seed: int | None = None
    init: str | None = None  # the checkpoint it began with
    pretrained: bool | None = None
    trained_rows: int | None = None
    arm: str | None = None  # the fingerprint of the training
    steps: int | None = None
    seconds: float | None = None  # that the training took, where it was run
    checkpoints: tuple[EpochCheckpoint, ...] = ()  # in the order of training
    calibration: float | None = None  # the share of the train rows that was left out for calibration
    calibration_ids: tuple[str, ...] = ()
    calibration_keys: tuple[str, ...] | None = None  # row keys, in hex
    canaries: PlantedLabels | None = None
    epochs: tuple[tuple[int, float], ...] = ()  # steps by the end of each, and the learning rate of the last
    values: dict[str, str] = field(default_factory=dict)  # files of values of its rows by epoch, with their digests
    moments: dict[str, str] = field(default_factory=dict)  # files of the optimizer's state, with their digests
    folds: dict[str, str] = field(default_factory=dict)  # files of logits out of fold, with their digests
    asked: dict[str, Any] = field(default_factory=dict)  # what was asked of rows and model beside the recipe
    digests: dict[str, str] | None = None  # by file of weights

    @property
    def weights(self) -> list[str]:
        """The files of weights: the final ones, and those kept during training."""
        return [WEIGHTS_FILE, *(c.file for c in self.checkpoints)]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RunRecord:
        """The record that ``run.json`` holds.  Raises ValueError: no ``run.json`` that ``retrain`` wrote says this."""
        wrong = _wrong(value)
        if wrong is not None:
            raise ValueError(f"no usable {wrong!r}")
        trained_on, keys = value.get("trained_on", {}), value.get("calibration_keys")
        plain: dict[str, Any] = {name: value.get(name) for name in (*_PLAIN, "steps", "seconds", "calibration")}
        return cls(
            **plain,
            trained_rows=trained_on.get("rows"),
            arm=trained_on.get("arm"),
            checkpoints=tuple(map(EpochCheckpoint.from_json, value.get("checkpoints", ()))),
            calibration_ids=tuple(value.get("calibration_ids", ())),
            calibration_keys=None if keys is None else tuple(keys),
            canaries=PlantedLabels.from_json(value["canaries"]) if value.get("canaries") else None,
            epochs=tuple((e["step"], e["lr"]) for e in value.get("epochs", ())),
            values=value.get("epoch_values", {}),
            moments=value.get("moments", {}),
            folds=value.get("out_of_fold", {}),
            asked=value.get("asked", {}),
            digests=value.get(WEIGHTS),
        )

    def as_json(self) -> dict[str, Any]:
        """The record as ``run.json`` holds it, without the digests of its weights."""
        value: dict[str, Any] = {"schema_version": 1, **{name: getattr(self, name) for name in _PLAIN}}
        value["checkpoints"] = [asdict(c) for c in self.checkpoints]
        value["trained_on"] = {"rows": self.trained_rows, "arm": self.arm}
        if self.epochs:
            value["epochs"] = [{"step": step, "lr": rate} for step, rate in self.epochs]
        files = {"asked": self.asked, "epoch_values": self.values, "out_of_fold": self.folds}
        files |= {"moments": self.moments}
        value |= {name: found for name, found in files.items() if found}
        if self.steps is not None:
            value["steps"] = self.steps
        if self.seconds is not None:
            value["seconds"] = self.seconds
        if self.calibration is not None:
            ids, keys = list(self.calibration_ids), list(self.calibration_keys or ())
            value |= {"calibration": self.calibration, "calibration_ids": ids, "calibration_keys": keys}
        if self.canaries is not None:
            value["canaries"] = self.canaries.as_json()
        return value


def is_model(value: Any) -> bool:
    """Whether a value is a model spec as JSON keeps it: the keys that say what is built, each of its type."""
    if not isinstance(value, dict) or not isinstance(value.get("shape"), list):
        return False
    numbers = [value[k] for k in ("mean", "std") if k in value]
    order = value.get("order")
    return (
        isinstance(value.get("name"), str)
        and type(value.get("num_classes")) is int
        and is_input(value.get("kind"))
        and all(type(n) is int and n > 0 for n in value["shape"])
        and all(isinstance(some, list) and all(type(v) in (int, float) for v in some) for some in numbers)
        and all(isinstance(value[k], str) for k in ("interpolation", "decoder") if k in value)
        and all(value.get(k) is None or _are_texts(value[k]) for k in ("classes", "features"))
        and (order is None or (isinstance(order, list) and sorted(order) == list(range(value["num_classes"]))))
        and (value.get("one_logit") is None or (value["one_logit"] is True and value["num_classes"] == 2))
        and (value.get("network") is None or is_network(value["network"]))
        and (value.get("text") is None or is_text_input(value["text"]))
        and (value.get("loss") is None or is_loss(value["loss"]))
        and value.keys() <= MODEL_KEYS
    )


def _wrong(value: dict[str, Any]) -> str | None:
    """The first key under which no ``run.json`` that ``retrain`` wrote has this value, or None."""
    canaries, kept, keys = value.get("canaries", {}), value.get("checkpoints", []), value.get("calibration_keys")
    listed = [canaries.get(k, []) for k in ("ids", "row_keys", "planted")] if isinstance(canaries, dict) else []
    checks = {
        "model": is_model(value.get("model")),
        "recipe": isinstance(value.get("recipe"), dict) and _is_recipe(value["recipe"]),
        "init": isinstance(value.get("init"), str | None),
        "pretrained": isinstance(value.get("pretrained", False), bool),
        "checkpoints": isinstance(kept, list) and all(map(_is_checkpoint, kept)),
        "trained_on": isinstance(value.get("trained_on", {}), dict),
        "asked": isinstance(value.get("asked", {}), dict),
        "epochs": _are_epochs(value.get("epochs", [])),
        "epoch_values": _are_files(value.get("epoch_values", {})),
        "moments": _are_files(value.get("moments", {})),
        "out_of_fold": _are_files(value.get("out_of_fold", {})),
        "calibration_ids": _are_texts(value.get("calibration_ids", [])),
        "calibration_keys": keys is None or _are_texts(keys),
        "canaries": bool(listed) and all(isinstance(v, list) and len(v) == len(listed[0]) for v in listed),
        WEIGHTS: isinstance(value.get(WEIGHTS, {}), dict),
    }
    return next((name for name, right in checks.items() if not right), None)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _are_epochs(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(e, dict) and e.keys() >= {"step", "lr"} for e in value)


def _are_files(value: Any) -> bool:
    return isinstance(value, dict) and _are_texts(list(value.values()))


def _is_checkpoint(value: Any) -> bool:
    known = isinstance(value, dict) and value.keys() >= {"file", "epoch", "step", "lr"}
    return known and isinstance(value["file"], str)


def _is_recipe(recipe: dict[str, Any]) -> bool:
    kinds: dict[str, Any] = dict.fromkeys(("weight_decay", "lr", "momentum", "warmup"), (int, float))
    kinds |= dict.fromkeys(("epochs", "batch_size"), int) | dict.fromkeys(
        ("optimizer", "schedule", "augment", "amp"), str
    )
    return all(isinstance(recipe[k], kinds[k]) and not isinstance(recipe[k], bool) for k in kinds.keys() & recipe)

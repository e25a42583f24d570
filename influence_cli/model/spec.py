"""Which model, from what input, with which weights: plain data, resolved without importing torch where possible.

A checkpoint that ``retrain`` wrote says all of this itself (``run.json``, or the metadata of the file).  For any
other file the architecture comes from ``--model`` and its input from timm's configuration, remembered in the store
under timm's version so that a warm run need not import timm.
"""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from influence_cli.data.payloads import REPAIR_IMAGE, open_image
from influence_cli.errors import ManifestError, UsageError
from influence_cli.model.checkpoints import Checkpoint, find_checkpoint
from influence_cli.store.keys import fingerprint

if TYPE_CHECKING:
    from influence_cli.data.manifest import Manifest
    from influence_cli.model.task import Task
    from influence_cli.settings import Inputs
    from influence_cli.store import Store


TORCHVISION = "torchvision:"  # prefix of torchvision's own architectures
PYTHON = "python:"  # prefix of a function of the user's that makes a model or a Task


@dataclass(frozen=True)
class ModelSpec:
    """An architecture and how a payload becomes its input."""

    name: str  # a timm name, "torchvision:NAME", "linear", "mlp:128,128", "python:PACKAGE.MODULE:FACTORY", "task:NAME"
    num_classes: int
    kind: str  # "image", "features", or "task" where a transform of the user's own makes the input
    shape: tuple[int, ...]  # [channels, height, width] or [d]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = "bicubic"
    decoder: str = "pillow"
    classes: tuple[str, ...] | None = None
    crop: float | None = None  # None: stretch to the size; else cut the middle, as timm and torchvision evaluate
    code: str | None = None  # of a model of the user's own: what its outputs on a few rows are known by
    task: Task | None = field(default=None, compare=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for fingerprints; what came later is left out where it says nothing."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "task"}
        return json.loads(json.dumps({k: v for k, v in values.items() if v is not None or k not in ("crop", "code")}))

    @staticmethod
    def from_dict(value: dict[str, Any]) -> ModelSpec:
        """The inverse of ``as_dict``."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != "task"}
        return ModelSpec(**known)


def is_plain(name: str) -> bool:
    """Whether the architecture is ours (``linear``, ``mlp:...``), not timm's."""
    return name == "linear" or name.startswith("mlp:") or name == "mlp"


def is_own(name: str | None) -> bool:
    """Whether the architecture is the user's Python code."""
    return name is not None and name.startswith(PYTHON)


def code_named_by_data(name: str, where: str) -> UsageError:
    """The error for a file that names code: whoever wrote the file must not choose what runs here."""
    what = f"a file names the model {name}, which is code, and only a flag or a setting may name code"
    return UsageError(what, where=where, fix=f"pass --model {name} to say that you trust it")


def with_own_code(spec: ModelSpec, inputs: Inputs, where: str) -> ModelSpec:
    """The spec that a checkpoint carries, with the user's own code where its architecture is that.

    Raises:
        UsageError: the checkpoint names code that this run does not.
    """
    if not is_own(spec.name) or spec.task is not None:
        return spec
    from influence_cli.model.task import checked_task, own_code

    if inputs.task is not None:
        return replace(spec, task=checked_task(inputs.task))
    if inputs.model != spec.name:
        raise code_named_by_data(spec.name, where)
    return replace(spec, task=own_code(spec.name)[0])


def known_again(spec: ModelSpec, inputs: Inputs, where: str, manifest: Manifest, store: Store) -> ModelSpec:
    """The spec that a checkpoint carries, for training: the user's own code is known by what it does now."""
    if not is_own(spec.name):
        return spec
    from influence_cli.model.task import known_untrained

    return known_untrained(with_own_code(spec, inputs, where), manifest, store)


def resolve_model(inputs: Inputs, manifest: Manifest, store: Store, precision: str) -> tuple[ModelSpec, Checkpoint]:
    """The model and checkpoint of a scoring run.

    Raises:
        UsageError: no checkpoint, no architecture, or a flag that contradicts the checkpoint.
        ModelError: the checkpoint cannot be used.
    """
    checkpoint, carried = (None, None) if inputs.checkpoint is None else find_checkpoint(inputs.checkpoint)
    if carried is not None:
        spec = ModelSpec.from_dict(carried)
        _refuse_contradictions(inputs, spec)
        if is_own(spec.name):
            from influence_cli.model.task import carried_task

            spec = with_own_code(spec, inputs, inputs.checkpoint or "")
            spec = carried_task(spec, required(checkpoint), manifest, store, precision)
        return spec, required(checkpoint)
    if inputs.task is not None or is_own(inputs.model):
        from influence_cli.model.task import resolve_task

        return resolve_task(inputs, manifest, store, checkpoint, precision)
    found = required(checkpoint)
    if inputs.model is None:
        raise UsageError(
            "the checkpoint does not say its architecture", where=inputs.checkpoint or "", fix="pass --model NAME"
        )
    return new_spec(inputs, manifest, store), found


def required(checkpoint: Checkpoint | None) -> Checkpoint:
    """The checkpoint.

    Raises:
        UsageError: there is none.
    """
    if checkpoint is None:
        raise UsageError("no checkpoint", fix="pass --checkpoint PATH (a run folder of `retrain`, .safetensors or .pt)")
    return checkpoint


def _refuse_contradictions(inputs: Inputs, spec: ModelSpec) -> None:
    image = spec.kind == "image"
    for flag, asked, there in (
        ("--model", inputs.model, spec.name),
        ("--num-classes", inputs.num_classes, spec.num_classes),
        ("--input-size", inputs.input_size, spec.shape[-1] if image else None),
        ("--mean", _wide(inputs.mean, spec), spec.mean if image else None),
        ("--std", _wide(inputs.std, spec), spec.std if image else None),
        ("--interpolation", inputs.interpolation, spec.interpolation if image else None),
        ("--crop", inputs.crop, spec.crop if image else None),
    ):
        if asked is not None and asked != there:
            raise UsageError(
                f"{flag} {_shown(asked)} contradicts the checkpoint, which was trained with {_shown(there)}",
                where=inputs.checkpoint or "",
                fix=f"leave {flag} out",
            )


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return ",".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)


def new_spec(inputs: Inputs, manifest: Manifest, store: Store | None, from_scratch: bool = False) -> ModelSpec:
    """A spec for an architecture's name: input from flags, then timm's configuration, then the first image.

    With ``from_scratch`` (training) the images' own size, mean 0.5 and sd 0.5 are used in place of timm's
    configuration, which describes pretrained weights.
    """
    if inputs.model is None:
        raise UsageError("no model", fix="pass --model NAME (a timm name, linear, or mlp:128)")
    classes = manifest.classes
    num_classes = inputs.num_classes or (len(classes) if classes else int(manifest.all_rows().labels.max()) + 1)
    if manifest.kind == "features":
        width = next(len(value) for _, value in manifest.payloads(manifest.all_rows().index[:1]))
        if not (is_plain(inputs.model) or is_own(inputs.model)):
            raise UsageError(f"{inputs.model} takes images, the manifest has features", fix="use linear or mlp:128")
        return ModelSpec(inputs.model, num_classes, "features", (width,), classes=classes)
    if is_plain(inputs.model) or is_own(inputs.model) or from_scratch:
        channels, height, width = _image_shape(manifest, inputs.skip_bad)
        if inputs.model.startswith(TORCHVISION):
            channels = 3  # torchvision's architectures take nothing else
        note = {"mean": [0.5] * channels, "std": [0.5] * channels, "interpolation": "bicubic"}
        note["shape"] = [channels, height, width]
    else:
        note = _timm_note(inputs.model, store)
    if inputs.input_size:
        note["shape"] = [note["shape"][0], inputs.input_size, inputs.input_size]
        note["crop"] = None  # images are stretched to a size that was asked for: small ones are used whole
    spec = ModelSpec.from_dict(
        {"name": inputs.model, "num_classes": num_classes, "kind": "image", "classes": classes, **note}
    )
    return _overridden(inputs, spec)


def _overridden(inputs: Inputs, spec: ModelSpec) -> ModelSpec:
    """The spec with the preprocessing that was asked for."""
    channels = spec.shape[0]
    for flag, values in (("--mean", inputs.mean), ("--std", inputs.std)):
        if values is not None and len(values) not in (1, channels):
            fix = f"give one number, or one for each of the {channels} channels"
            raise UsageError(f"{flag} {_shown(values)} has {len(values)} numbers", fix=fix)
    return replace(
        spec,
        mean=_wide(inputs.mean, spec) or spec.mean,
        std=_wide(inputs.std, spec) or spec.std,
        interpolation=inputs.interpolation or spec.interpolation,
        crop=inputs.crop or spec.crop,
    )


def _wide(values: tuple[float, ...] | None, spec: ModelSpec) -> tuple[float, ...] | None:
    """One number for each channel, where one was given for all."""
    return values * spec.shape[0] if values is not None and len(values) == 1 and spec.kind == "image" else values


def _image_shape(manifest: Manifest, skip_bad: bool) -> tuple[int, int, int]:
    rows = manifest.all_rows().index
    for row, payload in manifest.payloads(rows if skip_bad else rows[:1]):
        assert isinstance(payload, bytes)
        try:
            with open_image(payload) as image:
                if skip_bad:
                    image.load()  # a row that is left out says nothing of the input
                return (1 if image.mode in ("L", "1") else 3), image.height, image.width
        except Exception as error:
            if skip_bad:
                continue  # it is listed where the rows are decoded
            where = f"{manifest.source}, row id={manifest.ids[row]}, column {manifest.kind}"
            fix = f"{REPAIR_IMAGE}, or pass --skip-bad"
            raise ManifestError(f"the image cannot be decoded ({error})", where=where, fix=fix) from error
    raise ManifestError("no image can be decoded", where=manifest.source, fix="give a manifest of images")


def _timm_note(name: str, store: Store | None) -> dict[str, Any]:
    key = fingerprint("timm-config", 2, name=name, timm=importlib.metadata.version("timm"))
    note = store.read_model_note(key) if store else None
    if note is None:
        from influence_cli.model.build import timm_config

        note = timm_config(name)
        if store:
            store.write_model_note(key, note)
    return note

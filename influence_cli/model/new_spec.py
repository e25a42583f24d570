"""The spec of an architecture by its name: its input from flags, then what timm states, then the rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from influence_cli.data.label_kinds import CLASSES
from influence_cli.errors import UsageError
from influence_cli.events import SILENT, Listener
from influence_cli.model.hf_folder import CONFIG_FILE, HF, folder_of, spec_values
from influence_cli.model.image_input import image_input, installed
from influence_cli.model.losses import loss_in_spec
from influence_cli.model.spec import GPT, TORCHVISION, ModelSpec, is_gpt, is_own, is_plain
from influence_cli.store.keys import fingerprint

if TYPE_CHECKING:
    from influence_cli.data.manifest import Manifest
    from influence_cli.settings import Inputs
    from influence_cli.store import Store


UNLABELLED = "make a manifest without labels: influence manifest SOURCE --task language -o MANIFEST"


def as_text(value: Any) -> str:
    """A value of a setting for messages."""
    if value is None:
        return "none"
    return ",".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)


def new_spec(
    inputs: Inputs,
    manifest: Manifest,
    store: Store | None,
    from_scratch: bool = False,
    listener: Listener = SILENT,
) -> ModelSpec:
    """A spec for an architecture's name: input from flags, then timm's configuration, then all images.

    With ``from_scratch`` (training) the images' own size, mean 0.5 and sd 0.5 are used in place of timm's
    configuration, which describes pretrained weights.
    """
    if inputs.model is None:
        raise UsageError("no model", fix="pass --model NAME (a timm name, linear, or mlp:128)")
    classes, kind = manifest.classes, manifest.payload_kind.input_name
    num_classes = outputs_of(inputs, manifest)
    if not manifest.payload_kind.pixels:
        _refuse_of_images(inputs, manifest)
    if is_gpt(inputs.model):
        return _of_gpt(inputs, manifest)
    if inputs.model.startswith(HF):
        return _of_transformers(inputs, manifest, num_classes)
    if not manifest.payload_kind.pixels:
        return _of_numbers(inputs, manifest, num_classes)
    if is_plain(inputs.model) or is_own(inputs.model) or from_scratch:
        found = image_input(manifest, inputs.skip_bad, store)
        found.say(listener, resized=not inputs.input_size)
        channels, height, width = found.shape
        if inputs.model.startswith(TORCHVISION):
            channels = 3  # torchvision's architectures take nothing else
        half, shape = [0.5] * channels, [channels, height, width]
        note: dict[str, Any] = {"mean": half, "std": half, "interpolation": "bicubic", "shape": shape}
    else:
        note = _timm_note(inputs.model, store)
    if inputs.input_size:
        note["shape"] = [note["shape"][0], inputs.input_size, inputs.input_size]
        note["crop"] = None  # images are stretched to a size that was asked for: small ones are used whole
    loss = loss_in_spec(inputs.loss, manifest.label_kind, own=False)
    about = {"name": inputs.model, "num_classes": num_classes, "kind": kind, "classes": classes, "loss": loss}
    return _overridden(inputs, ModelSpec.from_dict({**about, **note}))


def outputs_of(inputs: Inputs, manifest: Manifest) -> int:
    """How many outputs a model of these rows has: a class each, the prediction of a number, or a label each.

    Raises:
        UsageError: --num-classes is given where labels are no classes.
    """
    labels = manifest.label_kind
    if inputs.num_classes is not None and labels.holds != CLASSES:
        what = f"--num-classes is about classes, and the labels are {labels.called}"
        raise UsageError(what, fix="leave it out")
    return inputs.num_classes or labels.outputs(manifest.all_rows().labels, manifest.classes)


def _refuse_of_images(inputs: Inputs, manifest: Manifest) -> None:
    """Refuse options about pixels where there are none (UsageError)."""
    if is_own(inputs.model):
        return  # code of one's own may be told how payloads become its input
    for name in ("input_size", "mean", "std", "interpolation", "crop"):
        if getattr(inputs, name) is not None:
            what = f"--{name.replace('_', '-')} is about images, and the rows have {manifest.payload_kind.column}"
            raise UsageError(what, fix="leave it out")


def _overridden(inputs: Inputs, spec: ModelSpec) -> ModelSpec:
    """The spec with the preprocessing that was asked for."""
    channels = spec.shape[0]
    for flag, values in (("--mean", inputs.mean), ("--std", inputs.std)):
        if values is not None and len(values) not in (1, channels):
            fix = f"give one number, or one for each of the {channels} channels"
            raise UsageError(f"{flag} {as_text(values)} has {len(values)} numbers", fix=fix)
    return replace(
        spec,
        mean=for_each_channel(inputs.mean, spec) or spec.mean,
        std=for_each_channel(inputs.std, spec) or spec.std,
        interpolation=inputs.interpolation or spec.interpolation,
        crop=inputs.crop or spec.crop,
    )


def for_each_channel(values: tuple[float, ...] | None, spec: ModelSpec) -> tuple[float, ...] | None:
    """One number for each channel, where one was given for all."""
    return values * spec.shape[0] if values is not None and len(values) == 1 and spec.payload_kind.pixels else values


def _of_numbers(inputs: Inputs, manifest: Manifest, num_classes: int) -> ModelSpec:
    """The spec of a model that takes payloads as they are."""
    if not (is_plain(inputs.model or "") or is_own(inputs.model)):
        what = f"{inputs.model} takes images, the manifest has {manifest.payload_kind.column}"
        fix = "use hf:FOLDER, with a model of transformers" if manifest.payload_kind.ragged else "use linear or mlp:128"
        fix = fix if manifest.labelled else f"use hf:FOLDER, with a language model, or {GPT}"
        raise UsageError(what, fix=fix)
    if manifest.payload_kind.ragged and is_plain(inputs.model or ""):
        raise UsageError(f"{inputs.model} takes numbers, the manifest has texts", fix="use hf:FOLDER")
    kind, (_, payload) = manifest.payload_kind, next(manifest.payloads(manifest.all_rows().index[:1]))
    shape = kind.shape(payload)
    loss = loss_in_spec(inputs.loss, manifest.label_kind, own=False)
    return ModelSpec(inputs.model or "", num_classes, kind.input_name, shape, classes=manifest.classes, loss=loss)


def _of_gpt(inputs: Inputs, manifest: Manifest) -> ModelSpec:
    """The spec of a small GPT.  Raises UsageError: the rows are no texts without labels."""
    if manifest.labelled:
        what = f"{inputs.model} predicts the texts themselves, and the rows have labels"
        raise UsageError(what, where=manifest.source, fix=UNLABELLED)
    from influence_cli.model.new_language import new_gpt

    loss_in_spec(inputs.loss, manifest.label_kind, own=False)  # another is refused
    return new_gpt(inputs, manifest)


def _of_transformers(inputs: Inputs, manifest: Manifest, num_classes: int) -> ModelSpec:
    """The spec of a folder of transformers.

    Raises:
        ModelError: there is none, or it does not say how rows become its input.
        UsageError: the manifest has rows of another kind.
    """
    kind, folder = manifest.payload_kind, folder_of(inputs.model or "")
    language = not manifest.labelled
    values = spec_values(folder, inputs.max_length, num_classes, images=kind.pixels, language=language)
    if values is None:
        what = f"{CONFIG_FILE} is not one of transformers: it says no model_type"
        raise UsageError(what, where=str(folder), fix="give a folder that save_pretrained wrote")
    if not (kind.pixels or kind.ragged):
        what = f"{inputs.model} takes texts or images, the manifest has {kind.column}"
        raise UsageError(what, fix="name the column of texts: influence manifest SOURCE --text COLUMN -o MANIFEST")
    if kind.ragged and inputs.checkpoint is None:  # the model is to be trained on such rows
        values["text"]["texts"] = len(kind.columns)
    loss = loss_in_spec(inputs.loss, manifest.label_kind, own=False)
    if language:
        return ModelSpec.from_dict({**values, "loss": loss})
    own = values["classes"] if inputs.checkpoint is not None else None  # a head that is trained anew has other classes
    spec = ModelSpec.from_dict({**values, "classes": own or manifest.classes, "loss": loss})
    return _overridden(inputs, spec) if kind.pixels else spec


def _timm_note(name: str, store: Store | None) -> dict[str, Any]:
    key = fingerprint("timm-config", 2, name=name, timm=installed("timm"))
    note = store.read_model_note(key) if store else None
    if note is None:
        from influence_cli.model.build import timm_config

        note = timm_config(name)
        if store:
            store.write_model_note(key, note)
    return note

"""Which model, from what input, with which weights: plain data, resolved without importing torch where possible.

A checkpoint that ``retrain`` wrote says all of this itself (``run.json``, or the metadata of the file).  For any
other file the architecture comes from ``--model`` and its input from timm's configuration, remembered in the store
under timm's version so that a warm run need not import timm.
"""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from influence_cli.errors import ManifestError, UsageError
from influence_cli.model.checkpoints import Checkpoint, find_checkpoint
from influence_cli.store.keys import fingerprint

if TYPE_CHECKING:
    from influence_cli.manifest import Manifest
    from influence_cli.settings import Inputs
    from influence_cli.store import Store


TORCHVISION = "torchvision:"  # prefix of torchvision's own architectures


@dataclass(frozen=True)
class ModelSpec:
    """An architecture and how a payload becomes its input."""

    name: str  # a timm name, "torchvision:NAME", "linear", or "mlp:128,128"
    num_classes: int
    kind: str  # "image" or "features"
    shape: tuple[int, ...]  # [channels, height, width] or [d]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = "bicubic"
    decoder: str = "pillow"
    classes: tuple[str, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for fingerprints."""
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_dict(value: dict[str, Any]) -> ModelSpec:
        """The inverse of ``as_dict``."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return ModelSpec(**known)


def is_plain(name: str) -> bool:
    """Whether the architecture is ours (``linear``, ``mlp:...``), not timm's."""
    return name == "linear" or name.startswith("mlp:") or name == "mlp"


def resolve_model(inputs: Inputs, manifest: Manifest, store: Store) -> tuple[ModelSpec, Checkpoint]:
    """The model and checkpoint of a scoring run.

    Raises:
        UsageError: no checkpoint, no architecture, or a flag that contradicts the checkpoint.
        ModelError: the checkpoint cannot be used.
    """
    if inputs.checkpoint is None:
        raise UsageError("no checkpoint", fix="pass --checkpoint PATH (a run folder of `retrain`, .safetensors or .pt)")
    checkpoint, carried = find_checkpoint(inputs.checkpoint)
    if carried is not None:
        spec = ModelSpec.from_dict(carried)
        for flag, asked, there in (
            ("--model", inputs.model, spec.name),
            ("--num-classes", inputs.num_classes, spec.num_classes),
            ("--input-size", inputs.input_size, spec.shape[-1] if spec.kind == "image" else None),
        ):
            if asked is not None and asked != there:
                raise UsageError(
                    f"{flag} {asked} contradicts the checkpoint, which was trained with {there}",
                    where=inputs.checkpoint,
                    fix=f"leave {flag} out",
                )
        return spec, checkpoint
    if inputs.model is None:
        raise UsageError(
            "the checkpoint does not say its architecture", where=inputs.checkpoint, fix="pass --model NAME"
        )
    return new_spec(inputs, manifest, store), checkpoint


def new_spec(inputs: Inputs, manifest: Manifest, store: Store | None, from_scratch: bool = False) -> ModelSpec:
    """A spec for an architecture's name: input from flags, then timm's configuration, then the first image.

    With ``from_scratch`` (training) the images' own size, mean 0.5 and sd 0.5 are used in place of timm's
    configuration, which describes pretrained weights.
    """
    assert inputs.model is not None
    classes = manifest.classes
    num_classes = inputs.num_classes or (len(classes) if classes else int(manifest.labels.max()) + 1)
    if manifest.kind == "features":
        width = next(len(value) for _, value in manifest.payloads(manifest.all_rows().index[:1]))
        if not is_plain(inputs.model):
            raise UsageError(f"{inputs.model} takes images, the manifest has features", fix="use linear or mlp:128")
        return ModelSpec(inputs.model, num_classes, "features", (width,), classes=classes)
    if is_plain(inputs.model) or from_scratch:
        channels, height, width = _image_shape(manifest)
        if inputs.model.startswith(TORCHVISION):
            channels = 3  # torchvision's architectures take nothing else
        if inputs.input_size:
            height = width = inputs.input_size
        note = {"mean": [0.5] * channels, "std": [0.5] * channels, "interpolation": "bicubic"}
        note["shape"] = [channels, height, width]
    else:
        note = _timm_note(inputs.model, store)
        if inputs.input_size:
            note["shape"] = [note["shape"][0], inputs.input_size, inputs.input_size]
    return ModelSpec.from_dict(
        {"name": inputs.model, "num_classes": num_classes, "kind": "image", "classes": classes, **note}
    )


def _image_shape(manifest: Manifest) -> tuple[int, int, int]:
    import io

    from PIL import Image, UnidentifiedImageError

    _, payload = next(manifest.payloads(manifest.all_rows().index[:1]))
    assert isinstance(payload, bytes)
    try:
        with Image.open(io.BytesIO(payload)) as image:
            return (1 if image.mode in ("L", "1") else 3), image.height, image.width
    except (UnidentifiedImageError, OSError) as error:
        where = f"{manifest.source}, row id={manifest.ids[0]}, column {manifest.kind}"
        fix = "repair the payload or take the row out"
        raise ManifestError(f"the image cannot be decoded ({error})", where=where, fix=fix) from error


def _timm_note(name: str, store: Store | None) -> dict[str, Any]:
    key = fingerprint("timm-config", 1, name=name, timm=importlib.metadata.version("timm"))
    note = store.read_model_note(key) if store else None
    if note is None:
        from influence_cli.model.build import timm_config

        note = timm_config(name)
        if store:
            store.write_model_note(key, note)
    return note

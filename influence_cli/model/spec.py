"""Which model, from what input, with which weights: plain data, resolved without importing torch where possible.

A checkpoint that ``retrain`` wrote says all of this itself (``run.json``, or the metadata of the file).  For any
other file the architecture comes from ``--model`` and its input from timm's configuration, remembered in the store
under timm's version so that a warm run need not import timm.
"""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_cli.errors import ModelError, UsageError
from influence_cli.store.files import METADATA_KEY, DamagedFile, file_digest, tensor_digest
from influence_cli.store.keys import fingerprint

if TYPE_CHECKING:
    from influence_cli.manifest import Manifest
    from influence_cli.settings import Inputs
    from influence_cli.store import Store

RUN_FILE, WEIGHTS_FILE = "run.json", "model.safetensors"
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class ModelSpec:
    """An architecture and how a payload becomes its input."""

    name: str  # a timm name, "linear", or "mlp:128,128"
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


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights and the digest of what is in it."""

    locator: str
    path: Path
    digest: str


def is_plain(name: str) -> bool:
    """Whether the architecture is ours (``linear``, ``mlp:...``), not timm's."""
    return name == "linear" or name.startswith("mlp:") or name == "mlp"


def find_checkpoint(locator: str) -> tuple[Checkpoint, dict[str, Any] | None]:
    """The weights behind a path or run folder, and the model spec they carry, if any.

    Raises:
        ModelError: nothing there, or an unknown kind of file.
    """
    path = Path(locator)
    carried = None
    if path.is_dir():
        if not (path / WEIGHTS_FILE).exists():
            raise ModelError(f"no {WEIGHTS_FILE} in the folder", where=locator, fix="give a run folder of `retrain`")
        try:
            carried = json.loads((path / RUN_FILE).read_text())["model"]
        except (OSError, ValueError, KeyError):
            carried = None
        path = path / WEIGHTS_FILE
    if not path.exists():
        raise ModelError("no such checkpoint", where=locator, fix="pass --checkpoint PATH")
    try:
        if path.suffix == ".safetensors":
            carried = carried or _carried_spec(path)
            return Checkpoint(locator, path, tensor_digest(path)), carried
        if path.suffix in TORCH_SUFFIXES:
            return Checkpoint(locator, path, file_digest(path)), None
    except DamagedFile as error:
        raise ModelError(f"the checkpoint is damaged ({error})", where=locator, fix="copy it again") from error
    raise ModelError(f"unknown kind of checkpoint {path.suffix!r}", where=locator, fix="use .safetensors, .pt or .pth")


def _carried_spec(path: Path) -> dict[str, Any] | None:
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(min(length, 100_000_000)))
    try:
        return json.loads(header["__metadata__"][METADATA_KEY])["model"]
    except (KeyError, ValueError, TypeError):
        return None


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

    from PIL import Image

    _, payload = next(manifest.payloads(manifest.all_rows().index[:1]))
    assert isinstance(payload, bytes)
    with Image.open(io.BytesIO(payload)) as image:
        return (1 if image.mode in ("L", "1") else 3), image.height, image.width


def _timm_note(name: str, store: Store | None) -> dict[str, Any]:
    key = fingerprint("timm-config", 1, name=name, timm=importlib.metadata.version("timm"))
    note = store.read_model_note(key) if store else None
    if note is None:
        from influence_cli.model.build import timm_config

        note = timm_config(name)
        if store:
            store.write_model_note(key, note)
    return note

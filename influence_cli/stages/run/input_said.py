"""What size images are brought to, and whose word that is: said before anything is scored.

A wrong size costs much accuracy and looks like nothing else, so it is never left unsaid.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from influence_cli.model.checkpoints import Checkpoint
from influence_cli.model.hub_config import read_hub_config
from influence_cli.model.image_input import size_text
from influence_cli.model.new_spec import as_text
from influence_cli.model.run_folder import RunFolder
from influence_cli.model.spec import is_own, is_plain
from influence_cli.model.text_lengths import TextLengths, text_lengths
from influence_cli.stages.run.backbone import Backbone
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.store import fingerprint
from influence_cli.store.sealed import read_weights_metadata

SAMPLE = 64  # images whose own size is looked at
FAR = 1.5  # times larger or smaller than the images' own size


def input_of(run: Run, session: Session) -> dict[str, Any] | None:
    """The size of the model's input, its origin, and the images' own sizes; None where the input is no image."""
    if run.model is None:
        return None
    if run.model.text is not None:
        texts = text_lengths(run.train, run.model, session.store)
        return (
            None
            if texts is None
            else {"tokens": run.model.text.max_length, "cut": run.model.text.cut, "texts": asdict(texts)}
        )
    if not run.model.payload_kind.pixels:
        return None
    channels, height, width = run.model.shape
    own = _own_sizes(run, session)
    found: dict[str, Any] = {"size": [height, width], "channels": channels, "from": _origin(run), "images": own}
    for name in ("mean", "std"):
        if getattr(run.inputs, name) is not None:
            found[name] = {"values": list(getattr(run.model, name)), "from": f"--{name}"}
    if own is not None:
        ratio = max(height, width) / max(1.0, max(own["median"]))
        found["far"] = bool(ratio > FAR or ratio < 1.0 / FAR)
    return found


def say_input(run: Run, session: Session) -> None:
    """One line of it, for whoever listens; and of the model that ``--features`` names."""
    if run.backbone is not None:
        session.listener.note(_backbone_said(run.backbone))
    found = input_of(run, session)
    if found is None:
        return
    if "texts" in found:
        TextLengths(**found["texts"]).say(found["tokens"], "train", found["cut"], session.listener)
        return
    channels = "1 channel" if found["channels"] == 1 else f"{found['channels']} channels"
    text = f"input: {size_text(found['size'])} pixels, {channels}, from {found['from']}"
    for name in ("mean", "std"):
        if name in found:
            text += f"; {name} {as_text(tuple(found[name]['values']))} from --{name}"
    if found["images"] is not None:
        text += f"; {_images(found['images'])}{_channels_said(found['images'], found['channels'])}"
        if found["far"]:
            text += ", far from it: accuracy falls where the model was trained at another size"
    session.listener.note(text)


def _backbone_said(backbone: Backbone) -> str:
    """Whose features rows are compared by, and of which input."""
    spec = backbone.model
    sizes = [spec.shape[1:], *((size, size) for size in backbone.smaller)]
    size = f", input {' and '.join(map(size_text, sizes))} pixels" if spec.payload_kind.pixels else ""
    return f"features: of {spec.name}, weights {backbone.checkpoint.locator}{size}"


def _images(own: dict[str, Any]) -> str:
    if own["least"] == own["most"]:
        return f"the images are {size_text(own['median'])}"
    return f"the images are {size_text(own['least'])} to {size_text(own['most'])}"


def _channels_said(own: dict[str, Any], channels: int) -> str:
    """What becomes of images that have other channels than the model's input; "" where none has."""
    grey, colour = own["grey"], own["colour"]
    others, kind = (colour, "in colour") if channels == 1 else (grey, "grey")
    if others == 0:
        return ""
    done = "turned into grey" if channels == 1 else "repeated in every channel"
    which = f", {kind}" if others == grey + colour else f", {others} of {grey + colour} looked at {kind}"
    return f"{which}: they are {done}, as the model takes {'1 channel' if channels == 1 else f'{channels} channels'}"


def _origin(run: Run) -> str:
    """Whose word the size is: the checkpoint's own, a flag's, timm's, or the images'."""
    assert run.model is not None
    inputs = run.inputs
    if run.checkpoint is not None and run.checkpoint.files and _says_its_model(run.checkpoint):
        return f"{run.checkpoint.locator}, as it was trained"
    if inputs.input_size is not None:
        return "--input-size"
    if is_plain(run.model.name) or is_own(run.model.name) or run.model.task is not None:
        return "the images' own size"
    if run.model.network is not None:
        return f"{run.inputs.checkpoint}, as its image processor has it"
    return f"timm's configuration of {run.model.name}"


def _says_its_model(checkpoint: Checkpoint) -> bool:
    """Whether a run folder, the metadata of the weights or a ``config.json`` of the hub says what the model is."""
    file, record = checkpoint.files[0], RunFolder.of(checkpoint.locator).read()
    if record is not None:
        return True
    own = read_weights_metadata(file, checkpoint.digest) if file.suffix == ".safetensors" else None
    return bool((own or {}).get("model")) or read_hub_config(file.parent) is not None


def _own_sizes(run: Run, session: Session) -> dict[str, Any] | None:
    """Median, least and most (height, width) of some train images, how many are grey and in colour, remembered.

    None where none can be read.
    """
    note = fingerprint("image sizes", 2, rows=run.manifest.fingerprint, sample=SAMPLE)
    known = session.store.read_model_note(note)
    if known is None:
        every = run.train.index
        rows, kind = every[:: max(1, len(every) // SAMPLE)][:SAMPLE], run.manifest.payload_kind
        sizes, grey = list[tuple[int, int]](), 0
        for _, payload in run.manifest.payloads(rows):
            try:
                channels, *size = kind.shape(payload)
                sizes.append((size[0], size[1]))
                grey += channels == 1
            except Exception:  # a damaged image is named where it is decoded
                continue
        if not sizes:
            return None
        values = np.array(sizes)
        known = {
            "median": np.median(values, axis=0).astype(int).tolist(),
            "least": values.min(axis=0).tolist(),
            "most": values.max(axis=0).tolist(),
            "grey": grey,
            "colour": len(sizes) - grey,
        }
        session.store.write_model_note(note, known)
    return known

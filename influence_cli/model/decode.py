"""One payload into what a model is fed with, as an array; imports no torch, so that a warm run may decode too."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from influence_cli.data.manifest import Manifest, Payload, Rows
from influence_cli.data.payloads import REPAIR_IMAGE, open_image
from influence_cli.data.row_checks import BadRow
from influence_cli.errors import ManifestError
from influence_cli.model.spec import ModelSpec

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def decode(payload: Payload, spec: ModelSpec) -> NDArray[Any]:
    """Pixels u8 [C, H, W] at the model's size, features f32 [d], or what the task's transform gives.

    Raises:
        ValueError: not decodable, or of another width; callers add the row's name.
    """
    if spec.kind == "task":
        assert spec.task is not None
        return spec.task.input(payload)
    if spec.kind == "features":
        if not isinstance(payload, np.ndarray) or payload.shape != spec.shape:
            raise ValueError(f"{np.shape(payload)} features where the model takes {spec.shape}")
        return payload
    if not isinstance(payload, bytes):
        raise ValueError("features where the model takes images")
    channels = spec.shape[0]
    try:
        with open_image(payload) as image:
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # the same colours; Pillow warns of going straight to RGB
            pixels = np.asarray(_sized(image.convert("L" if channels == 1 else "RGB"), spec))
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        raise ValueError(f"the image cannot be decoded ({error})") from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _sized(image: Image.Image, spec: ModelSpec) -> Image.Image:
    """The image at the model's size: stretched to it, or with ``crop`` as timm and torchvision evaluate.

    With ``crop`` the shorter side is resized to floor(size / crop) and the middle is cut out.
    """
    _, height, width = spec.shape
    how = _FILTERS[spec.interpolation]
    if spec.crop is None:
        return image if image.size == (width, height) else image.resize((width, height), how)
    shorter = int(height / spec.crop)
    w, h = image.size
    size = (shorter, int(shorter * h / w)) if w <= h else (int(shorter * w / h), shorter)
    image = image if image.size == size else image.resize(size, how)
    left, top = round((image.width - width) / 2.0), round((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))


def decode_row(manifest: Manifest, row: int, payload: Payload, spec: ModelSpec) -> NDArray[Any]:
    """``decode`` with an error that names file, row and column.

    Raises:
        ManifestError: it cannot be decoded.
    """
    try:
        return decode(payload, spec)
    except ValueError as error:
        repair = REPAIR_IMAGE if spec.kind == "image" else "repair the payload or take the row out"
        raise ManifestError(
            str(error),
            where=f"{manifest.source}, row id={manifest.ids[row]}, column {manifest.kind}",
            fix=f"{repair}, or pass --skip-bad",
        ) from error


def undecodable(rows: Rows, spec: ModelSpec) -> list[BadRow]:
    """Every one of ``rows`` whose payload cannot be decoded."""
    found: list[BadRow] = []
    for row, payload in rows.manifest.payloads(rows.index):
        try:
            decode(payload, spec)
        except ValueError as error:
            found.append(BadRow(row, rows.manifest.ids[row], rows.manifest.kind, str(error)))
    return found

"""Encoded images: opened with care, and brought to the size of a model's input."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from influence_cli.data.kinds.protocol import InputSpec
from influence_cli.errors import ManifestError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


# What images of data sets are stored as.  Pillow knows more, some of which start another program (EPS).
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000")
REPAIR_IMAGE = f"store it as one of {', '.join(IMAGE_FORMATS)}, or take the row out"


def open_image(data: bytes) -> PILImage:
    """The image in a payload, of one of ``IMAGE_FORMATS`` and of at most as many pixels as Pillow takes for harmless.

    Raises:
        ValueError: it is none, or is larger; Pillow raises much else where a file is damaged.
    """
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    try:
        image = pillow.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:  # its own text is the address of an object
        raise ValueError("no known image format") from error
    most = pillow.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than {most:,}")
    return image


def image_of(data: bytes, where: str) -> PILImage:
    """``open_image`` with an error that says where the payload is.

    Raises:
        ManifestError: it is no image that is read.
    """
    try:
        return open_image(data)
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        raise ManifestError(f"the image cannot be decoded ({error})", where=where, fix=REPAIR_IMAGE) from error


def sized(image: PILImage, spec: InputSpec) -> PILImage:
    """The image at the model's size: stretched to it, or with ``crop`` as timm and torchvision evaluate.

    With ``crop`` the shorter side is resized to floor(size / crop) and the middle is cut out.
    """
    from PIL.Image import Resampling

    _, height, width = spec.shape
    how = Resampling[spec.interpolation.upper()]
    if spec.crop is None:
        return image if image.size == (width, height) else image.resize((width, height), how)
    shorter = int(height / spec.crop)
    w, h = image.size
    size = (shorter, int(shorter * h / w)) if w <= h else (int(shorter * w / h), shorter)
    image = image if image.size == size else image.resize(size, how)
    left, top = round((image.width - width) / 2.0), round((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))

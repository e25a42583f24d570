"""Images that are not plain 8-bit grey or colour: the one rule by which each becomes so, and what is said of it.

- 16 bits a pixel: 0 to 65535 becomes 0 to 255, whatever values an image has; 1 bit: 0 and 255.
- 32-bit integers and floating-point numbers, whose range no file says: as they are where all are from 0 to 255; other
  images are refused, and so are those whose floating-point numbers end at 1.
- Transparency is dropped, as torchvision does; CMYK becomes RGB without a colour profile; EXIF turns nothing; of
  several frames or pages the first is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from influence_cli.data.kinds.protocol import BadPayload

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

GREY = ("1", "L", "LA", "La", "I", "F")
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_PLAIN = ("L", "RGB", "P", "RGBX")
_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}  # modes whose colours are multiplied with their transparency
_FRAMES = ("GIF", "WEBP", "PNG", "TIFF")
_ORIENTATION = 0x0112  # the EXIF tag


def is_grey(image: PILImage) -> bool:
    """Whether an image has one channel, transparency aside."""
    return image.mode in GREY or image.mode.startswith("I;16")


def is_deep(image: PILImage) -> bool:
    """Whether an image has more than 8 bits a pixel in its one channel."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def in_8_bits(image: PILImage) -> PILImage:
    """An image that Pillow converts to grey or colour as it should; a plain one is itself.

    Raises:
        BadPayload: its numbers are of no known range.
    """
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")  # the same colours; Pillow warns of going straight to RGB
    if image.mode in _STRAIGHT:
        return image.convert(_STRAIGHT[image.mode])
    if not is_deep(image):
        return image
    from PIL import Image as pillow

    values = np.asarray(image)
    if _has_16_bits(image):
        return pillow.fromarray(((values.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8))
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255) or (image.mode == "F" and 0 < high <= 1):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        what = f"its pixels are {kind} from {low:g} to {high:g}, of no known range: store 8 or 16 bits"
        raise BadPayload(what, _scaled_by(low, high))
    return pillow.fromarray(values.astype(np.uint8))


def _scaled_by(low: float, high: float) -> str:
    """How such an image becomes one of 8 bits."""
    known = low >= 0 and high <= 1
    scaled = "255 * a" if known else "255 * (a - LOW) / (HIGH - LOW)"
    one = "" if known else ", and LOW and HIGH the same for every image"
    return (
        f"scale it to 8 bits: PIL.Image.fromarray(({scaled}).round().clip(0, 255).astype('uint8')).save('NAME.png'), "
        f"with a = numpy.asarray(PIL.Image.open(FILE)){one}"
    )


def _has_16_bits(image: PILImage) -> bool:
    """Whether the range is that of 16 bits; Pillow opens some such files as 32-bit integers."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM", "JPEG2000"))


def may_be_deep(payload: bytes) -> bool:
    """Whether encoded bytes begin as those of an image that may have more than 8 bits a pixel."""
    if payload.startswith(b"\x89PNG"):
        return payload[24:26] == b"\x10\x00"  # the bits of a sample, and that it is grey
    return payload.startswith((b"II", b"MM", b"P2", b"P5", b"Pf", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"))


def remarks_of(image: PILImage) -> list[str]:
    """What of an image is read otherwise than people may think, as "WHAT: HOW"."""
    said: list[str] = []
    if is_deep(image):
        said.append(_of_range(image))
    elif image.mode == "1":
        said.append("1 bit a pixel: it becomes 0 and 255")
    elif image.mode not in (*_PLAIN, *_ALPHA):
        said.append(f"{image.mode}: converted to RGB, without a colour profile")
    if image.mode in _ALPHA or "transparency" in image.info:
        said.append("transparency: it is dropped, and the colours under it are used")
    if image.format in _FRAMES and getattr(image, "n_frames", 1) > 1:
        said.append("several frames or pages: the first one is used")
    if image.getexif().get(_ORIENTATION, 1) not in (0, 1):
        said.append("an EXIF orientation: the pixels are used as they are stored, not turned")
    return said


def _of_range(image: PILImage) -> str:
    """How the values of an image with more than 8 bits are taken, and that they turn out dark where they do."""
    if not _has_16_bits(image):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        return f"{kind} from 0 to 255: taken as they are"
    text, high = "16 bits a pixel: 0 to 65,535 becomes 0 to 255", int(np.asarray(image).max())
    bits = next((bits for bits in (8, 10, 12) if high < 1 << bits), None)
    if bits is None:
        return text
    return (
        f"{text}, and no value above {(1 << bits) - 1:,}, so that they are dark: spread their values, or store 8 bits"
    )

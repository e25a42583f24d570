"""Images made small, as data URIs that stand in a page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from influence_cli.data.kinds.image_pixels import in_8_bits, is_deep

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

LARGEST = 160  # pixels of the longer side
SHARP = 48  # pixels of the longer side up to which every pixel is kept as it is
QUALITY = 80  # of JPEG


def thumbnail(image: PILImage) -> str:
    """The image as a data URI: PNG where it is tiny, otherwise JPEG of at most ``LARGEST`` pixels a side."""
    grey = image.mode in ("1", "L") or is_deep(image)
    small = in_8_bits(image).convert("L" if grey else "RGB")
    small.thumbnail((LARGEST, LARGEST))
    out = io.BytesIO()
    if max(small.size) <= SHARP:
        small.save(out, format="PNG", optimize=True)
        kind = "png"
    else:
        small.save(out, format="JPEG", quality=QUALITY, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"

"""Images: encoded bytes or the path of a file in a manifest, pixels u8 [C, H, W] at the model's size when decoded.

Encoded images are opened with care, and brought to the size of a model's input.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.kinds.image_pixels import in_8_bits, is_deep, is_grey, may_be_deep, remarks_of
from influence_cli.data.kinds.protocol import BadPayload, InputSpec, Kind, is_text, read_file
from influence_cli.data.kinds.thumbnail import thumbnail
from influence_cli.errors import ManifestError
from influence_cli.store.keys import payload_key
from influence_cli.store.lfs import FIX, WHAT, is_pointer

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

EMBEDDED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


# What images of data sets are stored as.  Pillow knows more, some of which start another program (EPS).
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000")
REPAIR_IMAGE = f"store it as one of {', '.join(IMAGE_FORMATS)}, or take the row out"
DEEP = "influence.image2"  # the domain of keys of images with more than 8 bits a pixel


class Image(Kind):
    """An image in column ``image``: its bytes, or {bytes, path} with one or both; named by its bytes, not pixels."""

    name = "image"
    columns = ("image",)
    types = {"image": EMBEDDED}  # noqa: RUF012
    wanted = "bytes or {bytes, path}"
    domain = "influence.image"
    pixels = True
    as_it_is = False
    repair = REPAIR_IMAGE
    bounds = (0.0, 1.0)
    largest_change = 8.0 / 255.0

    def holds(self, kind: pa.DataType) -> bool:
        """Bytes, or a struct."""
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)

    def stored(self, batch: pa.RecordBatch, folder: Path) -> list[Any]:
        """Encoded bytes; a Path where the file is not embedded."""
        column = batch.column("image")
        values = column.to_pylist()
        return [_bytes_or_path(v, folder) for v in values] if pa.types.is_struct(column.type) else values

    def by_path(self, schema: pa.Schema) -> bool:
        """Where there is a column or a field of paths."""
        kind = schema.field(self.columns[0]).type
        return not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def paths(self, batch: pa.RecordBatch) -> list[str | None]:
        """The paths in the struct."""
        column = batch.column("image")
        at = column.type.get_field_index("path") if pa.types.is_struct(column.type) else -1
        return [None] * len(column) if at < 0 else pa.StructArray.flatten(column)[at].to_pylist()

    def moved(self, table: pa.Table, move: Callable[[str | None], str | None]) -> pa.Table:
        """Paths change where nothing is embedded."""
        kind, values = table.schema.field("image").type, table.column("image").to_pylist()
        if not pa.types.is_struct(kind) or all(v is None or v.get("bytes") is not None for v in values):
            return table
        fixed = [v if v is None or v.get("bytes") is not None else {**v, "path": move(v.get("path"))} for v in values]
        return table.set_column(table.column_names.index("image"), "image", pa.array(fixed, kind))

    def key(self, payload: bytes) -> bytes:
        """16 bytes that name the image; those of more than 8 bits a pixel have names of their own.

        Their pixels were cut off at 255 once: what is stored under their former names is of other inputs.
        """
        return payload_key(DEEP if _is_deep(payload) else self.domain, payload)

    def file_named(self, row: Mapping[str, Any], folder: Path) -> Path | None:
        """The file of an image that is not in the row itself."""
        value = _of_source(row[self.columns[0]])
        return folder / value if isinstance(value, str) and value else None

    def from_source(self, row: Mapping[str, Any], folder: Path) -> bytes:
        """The bytes of an image that decodes.  Raises BadPayload: it is missing, cannot be read or does not decode."""
        value = _of_source(row[self.columns[0]])
        if not value:
            raise BadPayload("the image is missing")
        if isinstance(value, str):
            try:
                value = read_file(folder / value)
            except OSError as error:
                raise BadPayload(f"cannot read {value} ({error.strerror})") from error
        if is_pointer(value):
            raise BadPayload(WHAT, FIX)
        try:
            self.shape(value, whole=True)
        except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
            raise BadPayload(f"the image cannot be decoded ({error})", getattr(error, "fix", self.repair)) from error
        return value

    def remarks(self, payload: bytes) -> list[str]:
        """Its bits, transparency, colours, frames and EXIF, where they are not those of a plain image."""
        with open_image(payload) as image:
            return remarks_of(image)

    def placed(self, row: dict[str, Any], payload: bytes, embed: bool, folder: Path, output: Path) -> dict[str, Any]:
        """The row with its image embedded."""
        row.pop("image", None)
        return row | self.embedded(payload, row.pop("path", None))

    def shape(self, payload: bytes, whole: bool = False) -> tuple[int, ...]:
        """Channels (1 of a grey image, else 3), height and width."""
        with open_image(payload) as image:
            if whole:
                image.load()
                in_8_bits(image)
            return (1 if is_grey(image) else 3), image.height, image.width

    def decode(self, payload: Any, spec: InputSpec) -> NDArray[np.uint8]:
        """Pixels u8 [C, H, W] at the model's size.  Raises ValueError: it is no image, or is damaged."""
        if not isinstance(payload, bytes):
            raise ValueError("features where the model takes images")
        channels = spec.shape[0]
        try:
            with open_image(payload) as image:
                pixels = np.asarray(sized(in_8_bits(image).convert("L" if channels == 1 else "RGB"), spec))
        except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
            raise BadPayload(f"the image cannot be decoded ({error})", getattr(error, "fix", self.repair)) from error
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

    def decoder(self, spec: InputSpec) -> str:
        """Pillow and its version."""
        import PIL

        return f"{spec.decoder} {PIL.__version__}"

    def as_numbers(self, decoded: Any, dtype: Any) -> Any:
        """Pixels in [0, 1]."""
        values = decoded.to(dtype)
        return (values.clone() if values is decoded else values).div_(255.0)

    def normalised(self, values: Any, spec: InputSpec) -> Any:
        """Less the mean, by the sd, channel by channel."""
        mean, std = _mean_and_std(spec, values)
        return (values - mean) / std

    def to_input(self, decoded: Any, spec: InputSpec, dtype: Any) -> Any:
        """(pixels / 255 - mean) / sd per channel, in memory of its own."""
        values = self.as_numbers(decoded, dtype)
        mean, std = _mean_and_std(spec, values)
        return values.sub_(mean).div_(std)

    def shown(self, payload: bytes, where: str) -> dict[str, Any]:
        """The image as a data URI."""
        from PIL import Image as pillow

        with image_of(payload, where) as opened:
            kind = pillow.MIME.get(opened.format or "", "image/png")
        return {"image": f"data:{kind};base64,{base64.b64encode(payload).decode()}"}

    def card(self, payload: bytes, where: str) -> dict[str, Any]:
        """The image made small, and the size that it has."""
        with image_of(payload, where) as image:
            width, height = image.size
            return {"picture": thumbnail(image), "size": [width, height]}

    def as_arrays(self, payload: bytes, where: str) -> NDArray[np.uint8]:
        """Pixels [H, W] or [H, W, 3]."""
        with image_of(payload, where) as image:
            grey = image.mode in ("1", "L") or is_deep(image)
            return np.asarray(in_8_bits(image).convert("L" if grey else "RGB"))

    def embedded(self, payload: bytes, path: str | None) -> dict[str, Any]:
        """The bytes, and the name of the file."""
        return {"image": {"bytes": payload, "path": path}}

    @property
    def embedded_types(self) -> dict[str, tuple[pa.DataType, dict[str, Any]]]:
        """One column ``image``, however the manifest stores it."""
        return {"image": (EMBEDDED, {"_type": "Image"})}


class ImagePath(Image):
    """An image by the path of its file, in column ``path``."""

    name = "path"
    columns = ("path",)
    types = {"path": pa.string()}  # noqa: RUF012
    wanted = "text"
    model_kind = "image"

    def holds(self, kind: pa.DataType) -> bool:
        """Text."""
        return is_text(kind)

    def stored(self, batch: pa.RecordBatch, folder: Path) -> list[Any]:
        """Paths."""
        return [None if v is None else folder / v for v in self.paths(batch)]

    def paths(self, batch: pa.RecordBatch) -> list[str | None]:
        """The column."""
        return batch.column("path").to_pylist()

    def moved(self, table: pa.Table, move: Callable[[str | None], str | None]) -> pa.Table:
        """Every path changes."""
        fixed = pa.array([move(v) for v in table.column("path").to_pylist()], table.schema.field("path").type)
        return table.set_column(table.column_names.index("path"), "path", fixed)

    def placed(self, row: dict[str, Any], payload: bytes, embed: bool, folder: Path, output: Path) -> dict[str, Any]:
        """The path as seen from the manifest, or the image embedded."""
        if embed:
            return super().placed(row, payload, embed, folder, output)
        row["path"] = os.path.relpath(folder / row["path"], output)
        return row


def _of_source(value: Any) -> Any:
    """An image's bytes, or its path, of what a source holds."""
    return value.get("bytes") or value.get("path") if isinstance(value, dict) else value


def _bytes_or_path(value: dict[str, Any] | None, folder: Path) -> bytes | Path | None:
    if value is None:
        return None
    if value.get("bytes") is not None:
        return value["bytes"]
    return folder / value["path"] if value.get("path") else None


def _mean_and_std(spec: InputSpec, like: Any) -> tuple[Any, Any]:
    import torch

    mean, std = (torch.tensor(v, dtype=like.dtype, device=like.device).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    return mean, std


def _is_deep(payload: bytes) -> bool:
    """Whether an image has more than 8 bits a pixel; what does not open has not."""
    if not may_be_deep(payload):
        return False
    try:
        with open_image(payload) as image:
            return is_deep(image)
    except Exception:  # Pillow's readers raise whatever a damaged file makes them stumble over
        return False


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
        raise ValueError(f"{WHAT}: {FIX}" if is_pointer(data) else "no known image format") from error
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

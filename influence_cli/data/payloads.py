"""Payloads where a manifest keeps them: streamed from Parquet, read from files, named by content."""

from __future__ import annotations

import errno
import functools
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.row_checks import RowChecks, check_widths
from influence_cli.data.tables import read_batches
from influence_cli.errors import ManifestError
from influence_cli.store.keys import KEY_BYTES, Keys, payload_key, stack

if TYPE_CHECKING:
    from PIL.Image import Image

Payload = bytes | NDArray[np.float32]

# What images of data sets are stored as.  Pillow knows more, some of which start another program (EPS).
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000")
REPAIR_IMAGE = f"store it as one of {', '.join(IMAGE_FORMATS)}, or take the row out"
LARGEST_FILE = 1 << 30  # bytes of one payload: more than any image that is decoded


def open_image(data: bytes) -> Image:
    """The image in a payload, of one of ``IMAGE_FORMATS`` and of at most as many pixels as Pillow takes for harmless.

    Raises:
        ValueError: it is none, or is larger; Pillow raises much else where a file is damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:  # its own text is the address of an object
        raise ValueError("no known image format") from error
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than {most:,}")
    return image


def image_of(data: bytes, where: str) -> Image:
    """``open_image`` with an error that says where the payload is.

    Raises:
        ManifestError: it is no image that is read.
    """
    try:
        return open_image(data)
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        raise ManifestError(f"the image cannot be decoded ({error})", where=where, fix=REPAIR_IMAGE) from error


def read_file(path: Path) -> bytes:
    """The bytes of a regular file: a pipe would be waited for, and a device may have no end.

    Raises:
        OSError: it is no regular file, is too large, or cannot be read.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "its name has a null character")
    found = os.stat(path)  # before it is opened: to open a device may already do something, and a pipe waits
    if not stat.S_ISREG(found.st_mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        kind = next((name for test, name in kinds if test(found.st_mode)), "a device")
        raise OSError(errno.EINVAL, f"{kind}, not a regular file")
    if found.st_size > LARGEST_FILE:
        raise OSError(errno.EFBIG, f"more than {LARGEST_FILE >> 30} GiB")
    return path.read_bytes() if found.st_size else b""  # files of /proc say 0, and may be waited for


def payload_batches(files: Sequence[Path], kind: str) -> Iterator[tuple[int, pa.Array]]:
    """(first row, payload column) of each record batch, in file order."""
    first = 0
    for file in files:
        for batch in read_batches(file, 1024, [kind]):
            yield first, batch.column(0)
            first += batch.num_rows


def payload_values(column: pa.Array, kind: str, folder: Path) -> list[Payload | Path | None]:
    """Payloads as they are stored; a Path where only a path is."""
    if kind == "features":
        return _feature_values(column)
    if kind == "path":
        return [None if v is None else folder / v for v in column.to_pylist()]
    if pa.types.is_struct(column.type):
        return [_image_value(v, folder) for v in column.to_pylist()]
    return column.to_pylist()


def _feature_values(column: pa.Array) -> list[Payload | Path | None]:
    """Feature vectors f32; rows of one buffer where none is null and all are as long, which is quick."""
    lengths = column.value_lengths() if not pa.types.is_fixed_size_list(column.type) else None
    values = column.flatten()  # leaves null rows out
    even = lengths is None or (len(lengths) > 0 and lengths.null_count == 0 and len(lengths.unique()) == 1)
    if len(column) and column.null_count == 0 and values.null_count == 0 and even:
        stacked = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        return list(stacked.reshape(len(column), -1))
    return [None if v is None else np.asarray(v, dtype=np.float32) for v in column.to_pylist()]


def _image_value(value: dict[str, Any] | None, folder: Path) -> bytes | Path | None:
    if value is None:
        return None
    if value.get("bytes") is not None:
        return value["bytes"]
    return folder / value["path"] if value.get("path") else None


def read_payload(value: Payload | Path | None, where: Callable[[], str]) -> Payload:
    """The payload, read from its file where it is one.

    Raises:
        ManifestError: it is empty, or its file cannot be read.
    """
    if value is None:
        raise ManifestError("the payload is empty", where=where(), fix="fill it in or take the row out")
    if not isinstance(value, Path):
        return value
    try:
        return read_file(value)
    except OSError as error:
        raise ManifestError(
            f"cannot read {value} ({error.strerror})",
            where=where(),
            fix="name a regular file; paths count from the manifest's folder",
        ) from error


class FileKeys(Protocol):
    """Keys of payload files known from earlier runs."""

    def find(self, path: Path) -> bytes | None:
        """The key of a file that is as it was when its key was put, or None."""
        ...

    def put(self, path: Path, key: bytes) -> None:
        """Remember the key of a file that was read just now."""
        ...

    def save(self) -> None:
        """Keep what was put."""
        ...


def payload_keys(
    files: Sequence[Path], kind: str, folder: Path, checks: RowChecks, known: FileKeys | None = None
) -> Keys:
    """Payload keys [n, 16], by streaming every payload once; zeros for rows that are left out.

    Raises:
        ManifestError: a payload is empty, unreadable, or has a feature that is not finite (unless rows are skipped).
    """
    keys: list[bytes] = []
    widths: list[int] = []
    for first, column in payload_batches(files, kind):
        for offset, stored in enumerate(payload_values(column, kind, folder)):
            key, width = _key(stored, first + offset, kind, checks, known)
            keys.append(key)
            widths.append(width)
    check_widths(checks, np.array(widths, dtype=np.int64), kind)
    if known is not None:
        known.save()
    return stack(keys)


_NO_KEY = bytes(KEY_BYTES)


def _key(
    stored: Payload | Path | None, row: int, kind: str, checks: RowChecks, known: FileKeys | None
) -> tuple[bytes, int]:
    """A payload's key and, for features, its width (-1 for others)."""
    found = known.find(stored) if known is not None and isinstance(stored, Path) else None
    if found is not None:
        return found, -1
    try:
        value = read_payload(stored, functools.partial(checks.place, row, kind))
    except ManifestError as error:
        checks.fail(row, kind, error.what, error.fix)
        return _NO_KEY, -1
    if isinstance(value, np.ndarray):
        if not np.isfinite(value).all():
            checks.fail(row, kind, "a feature is not finite", "impute it or take the row out")
            return _NO_KEY, -1
        return payload_key("influence.feat", value.astype("<f4").tobytes()), len(value)
    key = payload_key("influence.image", value)
    if known is not None and isinstance(stored, Path):
        known.put(stored, key)
    return key, -1

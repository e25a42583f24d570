"""Payloads that are files of their own: read with care, and known by key from earlier runs."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Protocol

LARGEST_FILE = 1 << 30  # bytes of one payload: more than any image that is decoded


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

"""Opening what the store keeps: a pipe or a device in a file's place would be waited for, or has no end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from influence_cli.errors import StoreError


def open_regular(path: Path) -> BinaryIO:
    """A file of the store, open for reading.

    Raises:
        FileNotFoundError: there is none.
        StoreError: what is there is no regular file.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise StoreError("what is there is no regular file", where=str(path), fix="move it away")
    return open(path, "rb")

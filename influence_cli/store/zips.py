"""What Python's zip files raise where the bytes are not those of a zip, as one error."""

from __future__ import annotations

import contextlib
import errno
import lzma
import struct
import zipfile
import zlib
from collections.abc import Generator
from pathlib import Path

from influence_cli.store.files import DamagedFile

UNREADABLE = (  # offsets before the file, other methods of compression, passwords, sizes that cannot be
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError, RuntimeError,
    ValueError, OverflowError, LookupError, MemoryError,
)  # fmt: skip


@contextlib.contextmanager
def damage_told() -> Generator[None]:
    """Errors of reading a zip as DamagedFile; those of the machine stay as they are."""
    try:
        yield
    except UNREADABLE as error:
        raise DamagedFile(str(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning
            raise
        raise DamagedFile("an offset in it is none") from error


def is_zip(path: Path) -> bool:
    """Whether a file ends as a zip does; DamagedFile where it says so of itself and is none."""
    with damage_told():
        return zipfile.is_zipfile(path)

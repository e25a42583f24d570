"""Files that are whole or not there: atomic writes, and what a reader does about the others."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, BinaryIO

from influence_cli.errors import StoreError, disk_full

_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.EFBIG)  # the user's to put right


_told_of: dict[Path, Callable[[Path], None]] = {}  # by folder: who is told of every file that is written below it


def on_written(folder: Path, told: Callable[[Path], None]) -> None:
    """Have somebody told of every file that is written below a folder, once it has its name."""
    _told_of[folder] = told


class DamagedFile(Exception):
    """A file whose bytes are not those that were written."""


@contextlib.contextmanager
def open_regular(path: Path) -> Generator[BinaryIO]:
    """A file, open for reading; a pipe or a device in its place would be waited for, or has no end.

    Raises:
        FileNotFoundError: there is none.
        StoreError: what is there is no regular file.
        OSError: it cannot be read; the error names it, as that of a failed read by itself does not.
    """
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)  # asked once: another run may take the file away meanwhile
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        regular = False  # a link that leads to itself
    if not regular:
        raise StoreError("what is there is no regular file", where=str(path), fix="move it away")
    try:
        with open(path, "rb") as handle:
            yield handle
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _refusal(what: str, path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot {what}: {error.strerror}", where=str(path), fix="pick a writable place")


def _beside(path: Path) -> Path:
    """A hidden temporary name beside ``path``, whose folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if disk_full(error):
            raise
        raise _refusal(f"create {path.parent}", path, error) from error
    return path.with_name(f".{path.name[:40]}.{os.getpid()}.{secrets.token_hex(8)}.tmp")


@contextlib.contextmanager
def _told(temporary: Path, path: Path) -> Generator[None]:
    """Errors of writing, as they are told: a full disk and a place that cannot be written name the path."""
    try:
        yield
    except Exception as error:
        named = getattr(error, "filename", None)
        if named is not None and not str(named).startswith(str(temporary)) and str(named) != str(path):
            raise  # of another file, which was read
        if disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            raise _refusal(f"write {path}", path, error) from error
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A hidden temporary path beside ``path``; on success it is synced and renamed to ``path``."""
    temporary = _beside(path)
    _reserve(temporary, path)
    try:
        with _told(temporary, path):
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    for root, told in _told_of.items():
        if path.is_relative_to(root):
            told(path)
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Generator[Path]:
    """A hidden name beside ``path`` for a new folder; on success it is renamed to ``path``, where nothing may be."""
    temporary = _beside(path)
    try:
        with _told(temporary, path):
            yield temporary
            try:
                os.rename(temporary, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                raise StoreError(f"{path} has been written by somebody else", fix="give a new place") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reserve(temporary: Path, path: Path) -> None:
    """Create the temporary file: a place that cannot be written (StoreError) is told from an error of the writer."""
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        if disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise _refusal(f"write {path}", path, error) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write indented, key-sorted JSON to ``path`` whole or not at all."""
    write_bytes(path, as_json(value))


def as_json(value: Any) -> bytes:
    """Indented, key-sorted JSON."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def file_digest(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

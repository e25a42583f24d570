"""The folder of a store: one that we made, and say so in it; no other folder is written to or looked after.

A folder that is missing or empty becomes a store when something is first written.  One of an earlier version, which
has no marker yet, is taken for a store where everything in it is the store's by place and name, and at least one file
carries the store's metadata.
"""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import tempfile
from pathlib import Path

from influence_cli.errors import StoreError, UsageError
from influence_cli.store.files import DamagedFile, read_metadata
from influence_cli.store.layout import HARMLESS, MARKER, NAME, NOTED, SHARDED, SINGLE, TAG, fits, walk

SIGNATURE = b"influence store\n"
MARKER_TEXT = (
    SIGNATURE + b"This folder was made by influence, which remembers results in it and looks after its own files.\n"
    b"It may be deleted: what is missing is computed again.\n"
)
TAG_TEXT = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# This folder is a cache of influence; backups may leave it out (https://bford.info/cachedir/).\n"
)
_FIX = "name the store's folder, or a new one, with --store PATH"


def store_root(named: str | None) -> Path:
    """The root that a setting names; None: a temporary folder that is thrown away at the end.

    Raises:
        UsageError: the name is empty, which would mean the folder one happens to be in.
    """
    if named is None:
        root = tempfile.mkdtemp(prefix="influence-store-")
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        return Path(root)
    if not named.strip():
        raise UsageError("the store has an empty name", where="--store", fix="pass --store PATH, or --no-store")
    return Path(named)


def is_marked(root: Path) -> bool:
    """Whether we made this folder."""
    return _beginning(root / MARKER, len(SIGNATURE)) == SIGNATURE


def _beginning(path: Path, size: int = len(MARKER_TEXT) + 1) -> bytes | None:
    """The first bytes of a file, or None where there is none."""
    try:
        with open(path, "rb") as handle:
            return handle.read(size)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def check_place(root: Path, looked_after: bool = False) -> None:
    """Refuse a folder that is no store and cannot become one; one that is ``looked_after`` must be one already.

    Raises:
        StoreError: it holds something else, or is a file.
    """
    if is_marked(root) or not os.path.lexists(root):
        return
    if not root.is_dir():
        raise StoreError("the store is not a folder", where=str(root), fix=_FIX)
    strange = _first_other(root)
    if strange is None:
        if looked_after:
            raise StoreError("this folder is empty, and no store", where=str(root.absolute()), fix=_FIX)
    elif not _of_earlier_version(root):
        what = f"this folder is no store: it holds other files, {strange!r} among them"
        raise StoreError(what, where=str(root.absolute()), fix=f"{_FIX}; nothing was touched here")


def _first_other(root: Path) -> str | None:
    """A name in a folder that is not empty but for what means nothing, or a marker that a run began to write."""
    begun = _beginning(root / MARKER)
    started = begun is not None and MARKER_TEXT.startswith(begun)
    meant = [n for n in sorted(os.listdir(root)) if n not in HARMLESS and not (started and n == MARKER)]
    return min(meant, key=lambda name: name in (*SINGLE, *SHARDED, *NOTED), default=None)


def _of_earlier_version(root: Path) -> bool:
    """Whether a folder without a marker holds a store and nothing else."""
    carried = False
    for entry, parts in walk(root):
        if entry.name in HARMLESS:
            continue
        if entry.is_dir():  # a kind's folder may be a link to where there is more room; it is not looked into
            kind = len(parts) == 1 and entry.name in (*SINGLE, *SHARDED, *NOTED)
            thing = len(parts) == 2 and parts[0] in SHARDED and NAME.fullmatch(entry.name)
            if not (kind or (thing and not entry.is_symlink())):
                return False
        elif not fits(parts):
            return False
        elif not carried and entry.name.endswith(".safetensors"):
            carried = _carries_metadata(Path(entry.path))
    return carried


def _carries_metadata(path: Path) -> bool:
    try:
        read_metadata(path)
    except (DamagedFile, OSError):
        return False
    return True


class Place:
    """A store's folder, marked when something is first written to it; without ``marked`` it is a folder for notes."""

    def __init__(self, root: Path, marked: bool = True) -> None:
        self.root, self._done = root, not marked

    def claim(self) -> None:
        """Mark the folder as ours, before anything is written to it.

        Raises:
            StoreError: it holds something else, or cannot be written.
        """
        if self._done:
            return
        if not is_marked(self.root):
            check_place(self.root)
            _put(self.root / MARKER, MARKER_TEXT)
        if not os.path.lexists(self.root / TAG):
            _put(self.root / TAG, TAG_TEXT)
        self._done = True


def _put(path: Path, text: bytes) -> None:
    """Write a short file in one go, which never shortens what another run has just written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.write(handle, text)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise StoreError(f"cannot write {path}: {error.strerror}", fix="pick a writable place") from error

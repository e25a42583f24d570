"""The folder of a store: one that we made, and say so in it; no other folder is written to or looked after.

A folder that is missing or empty becomes a store when something is first written.  One of an earlier version, which
has no marker yet, is taken for a store where everything in it is the store's by place and name, at least one file is
named by a fingerprint, and no file of tensors is another program's.
"""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import tempfile
from pathlib import Path

from influence_cli.errors import StoreError, UsageError, disk_full
from influence_cli.store import layout
from influence_cli.store.files import open_regular
from influence_cli.store.remote import is_remote

SIGNATURE = b"influence store\n"
MARKER_TEXT = (
    SIGNATURE + b"This folder was made by influence, which remembers results in it and looks after its own files.\n"
    b"It may be deleted: what is missing is computed again.\n"
)
TAG_TEXT = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# This folder is a cache of influence; backups may leave it out (https://bford.info/cachedir/).\n"
)
OF_RUNS = ("run.json", "arms")  # what says that a folder is a run's, which has notes of the same names
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
    if is_remote(named):
        from influence_cli.store.mirror import mirrored

        return mirrored(named)
    return Path(named)


def is_marked(root: Path) -> bool:
    """Whether we made this folder."""
    return _beginning(root / layout.MARKER, len(SIGNATURE)) == SIGNATURE


def _beginning(path: Path, size: int = len(MARKER_TEXT) + 1) -> bytes | None:
    """The first bytes of a regular file, or None where there is none."""
    try:
        with open_regular(path) as handle:
            return handle.read(size)
    except (FileNotFoundError, NotADirectoryError, StoreError):
        return None


def check_place(root: Path, looked_after: bool = False) -> None:
    """Refuse (StoreError) what cannot become a store: a file, other files.  What is ``looked_after`` must be one."""
    if is_marked(root) or not os.path.lexists(root):
        return
    if not root.is_dir():
        raise StoreError("the store is not a folder", where=str(root), fix=_FIX)
    strange = _first_other(root)
    if strange is None:
        if looked_after:
            raise StoreError("this folder is empty, and no store", where=str(root.absolute()), fix=_FIX)
        return
    things, odd = _of_earlier_version(root)
    if (things and odd is None) or is_marked(root):  # by another run, meanwhile
        return
    what, fix = f"this folder is no store: it holds other files, {strange!r} among them", _FIX
    if things and odd not in OF_RUNS:
        what = f"this folder is a store of an earlier version, but {odd!r} in it is not the store's"
        fix = f"move it away, or {_FIX}"
    raise StoreError(what, where=str(root.absolute()), fix=f"{fix}; nothing was touched here")


def _first_other(root: Path) -> str | None:
    """A name in a folder that is not empty but for what means nothing, or a marker that a run began to write."""
    names = sorted(os.listdir(root))
    begun = _beginning(root / layout.MARKER)  # after the names: another run may write it just now
    started = begun is not None and MARKER_TEXT.startswith(begun)
    meant = [n for n in names if n not in layout.HARMLESS and not (started and n == layout.MARKER)]
    return min(meant, key=lambda name: name in (*layout.SINGLE, *layout.SHARDED, *layout.NOTED), default=None)


def _of_earlier_version(root: Path) -> tuple[int, str | None]:
    """How many files of a folder are the store's and named by a fingerprint, and the first file or folder that is not.

    A kind's folder may be a link to where there is more room: it is not entered.
    """
    things, strange = 0, list[str]()
    for entry, parts in layout.walk(root):
        if entry.name in layout.HARMLESS:
            continue
        path = Path(entry.path)
        if path.is_dir():
            kind = len(parts) == 1 and entry.name in (*layout.SINGLE, *layout.SHARDED, *layout.NOTED)
            ours = kind or (layout.of_place((*parts, entry.name)) and not entry.is_symlink())
        else:
            ours = (
                path.is_file()
                and layout.fits(parts)
                and (path.suffix != ".safetensors" or layout.carries(path) is not False)
            )
            things += ours and layout.NAME.fullmatch(path.stem) is not None
        if not ours:
            strange.append("/".join(parts))
    return things, min(strange, key=lambda name: name.partition("/")[0] not in OF_RUNS, default=None)


class Place:
    """A store's folder, marked when something is first written to it; without ``marked`` it is a folder for notes."""

    def __init__(self, root: Path, marked: bool = True) -> None:
        self.root, self._done = root, not marked

    def claim(self) -> None:
        """Mark the folder as ours before anything is written to it; StoreError where it holds something else."""
        if self._done:
            return
        if not is_marked(self.root):
            check_place(self.root)
            _put(self.root / layout.MARKER, MARKER_TEXT)
        if _is_begun(self.root / layout.TAG, TAG_TEXT):
            _put(self.root / layout.TAG, TAG_TEXT)
        self._done = True


def _is_begun(path: Path, text: bytes) -> bool:
    """Whether a short file is not there, or holds less than ``text``: the disk was full when it was written."""
    found = b"" if not os.path.lexists(path) else _beginning(path)
    return found is not None and len(found) < len(text) and text.startswith(found)


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
        if disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise StoreError(f"cannot write {path}: {error.strerror}", fix="pick a writable place") from error

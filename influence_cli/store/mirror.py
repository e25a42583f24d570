"""A store or a run folder at an address: a copy on this machine that fetches what is there and puts what is written.

Names of a store's files say what is in them, and what is in them never changes, so a copy of one is as good as another
and runs on several machines do each other no harm: where two compute the same, both write the same.  A folder of shards
is fetched whole when it is first asked for, a single file when it is; notes, which are small, when the store is opened.
A file is put as soon as it is written here, so that a run that is killed has lost the rows in hand, as elsewhere.

A run folder is fetched whole when it is opened: finished trainings are not trained again.  Each of its files is put as
soon as it is written here, so ``run.json`` is the last, as it is here.  Of the processes of ``torchrun`` the first one
alone has it.

Each process of ``torchrun`` has a copy of its own, and looks again at what is there when the others have written.

Not promised at an address: claims (runs on two machines may train the same member or chain at once, and both end with
the same), and the last of several notes of seconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath

from influence_cli.errors import StoreError
from influence_cli.store import layout, putting, remote
from influence_cli.store.files import on_written

_mirrors: dict[str, Mirror] = {}  # by address
_runs: dict[str, RunMirror] = {}  # by address


class Mirror:
    """The copy of the store at an address, and which of its files are there."""

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/")
        self.root = Path(tempfile.mkdtemp(prefix="mirror-", dir=remote.folder_of_copies())) / "store"
        self.root.mkdir()
        self._there: dict[str, int] = {}  # by path below the root: bytes
        on_written(self.root, self._put)
        self.look()

    def look(self) -> None:
        """See what is at the address by now, and fetch the notes.

        Raises:
            UsageError: it cannot be read, or is nothing that is written to.
            StoreError: something else is there.
        """
        putting.check_folder(self.place)
        self._there = remote.names_below(self.place)
        if self._there and layout.MARKER not in self._there:
            what, fix = "what is at the address is no store", "give the address of a store, or of nothing"
            raise StoreError(what, where=self.place, fix=fix)
        for name in self._there:
            if name.endswith(".json") or "/" not in name:
                self._fetch(name)

    def whole(self) -> None:
        """Fetch every file that is not here."""
        for name in self._there:
            self._fetch(name)

    def drop_gone(self) -> None:
        """Take away at the address what was taken away here since all of it was fetched.

        Raises:
            UsageError: it cannot be.
        """
        for name in [name for name in self._there if layout.fits(PurePosixPath(name).parts)]:
            if not (self.root / name).exists():
                putting.delete(f"{self.place}/{name}")
                del self._there[name]

    def folder(self, *parts: str) -> None:
        """Fetch the files of a folder that are not here."""
        start = "/".join(parts) + "/"
        for name in self._there:
            if name.startswith(start):
                self._fetch(name)

    def file(self, path: Path) -> None:
        """Fetch a file that is not here, if it is there."""
        if path.is_relative_to(self.root):
            self._fetch(path.relative_to(self.root).as_posix())

    def _fetch(self, name: str) -> None:
        target, parts = self.root / name, PurePosixPath(name).parts
        if name in self._there and layout.fits(parts) and not parts[-1].startswith(".") and not target.exists():
            remote.copy_here(f"{self.place}/{name}", self._there[name], target)

    def _put(self, path: Path) -> None:
        """Put a file that was written here; the marker goes first, so that nothing is at the address without it."""
        name = path.relative_to(self.root).as_posix()
        if not layout.fits(PurePosixPath(name).parts) or name.startswith(f"{layout.CLAIMED}/"):
            return
        for first in (layout.MARKER, layout.TAG):
            if first not in self._there and (self.root / first).exists():
                self._send(first)
        self._send(name)

    def _send(self, name: str) -> None:
        putting.put_copy(self.root / name, f"{self.place}/{name}")
        self._there[name] = (self.root / name).stat().st_size


class RunMirror:
    """The copy of the run folder at an address, which may be empty."""

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/")
        putting.check_folder(self.place)
        self.root = Path(tempfile.mkdtemp(prefix="run-", dir=remote.folder_of_copies())) / "run"
        for name, size in remote.names_below(self.place).items():
            if not any(part.startswith(".") for part in PurePosixPath(name).parts):
                remote.copy_here(f"{self.place}/{name}", size, self.root / name)
        remote.call(self.root, self.place)
        on_written(self.root, self._put)

    def _put(self, path: Path) -> None:
        name = path.relative_to(self.root)
        if not any(part.startswith(".") for part in name.parts):
            putting.put_copy(path, f"{self.place}/{name.as_posix()}")


def run_mirrored(place: str) -> Path:
    """The root on this machine of the run folder at an address.

    Of several processes the first one alone has it: the others train with it, and neither read nor write a file there.

    Raises:
        UsageError: it cannot be read, or nothing is written there.
    """
    known = _runs.get(place)
    if known is None:
        known = _runs[place] = RunMirror(place)
    return known.root


def mirrored(place: str) -> Path:
    """The root on this machine of the store at an address, as it is by now.

    Raises:
        UsageError: it cannot be read, or nothing is written there.
        StoreError: something else is there.
    """
    known = _mirrors.get(place)
    if known is None:
        _mirrors[place] = known = Mirror(place)
    else:
        known.look()
    return known.root


def mirror_of(root: Path) -> Mirror | None:
    """The mirror whose copy a root is, if it is one."""
    return next((m for m in _mirrors.values() if m.root == root), None)


def called(root: Path) -> str:
    """What a store is called in plans: by its address, where it is the copy of one."""
    mirror = mirror_of(root)
    return str(root) if mirror is None else mirror.place

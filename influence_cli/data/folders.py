"""A folder as people have it: links are followed, and what is hidden or a system's own is passed over and counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from influence_cli.errors import ManifestError
from influence_cli.store.place import is_marked

SYSTEMS = {
    "__macosx", "__pycache__", "@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "recycler", "lost+found",
    "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "_temporary",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder, the folders in it and the files in it, both by name."""

    path: Path
    folders: list[Folder]
    files: list[Path]

    @property
    def name(self) -> str:
        """Its own name."""
        return self.path.name

    def everything(self) -> Iterator[Path]:
        """Its files and those of all folders below it."""
        yield from self.files
        for folder in self.folders:
            yield from folder.everything()


@dataclass
class Passed:
    """What a walk came by: hidden names, folders behind links, links that lead back to where they stand, our stores."""

    folders: Counter[str] = field(default_factory=Counter)  # hidden ones, by name
    files: Counter[str] = field(default_factory=Counter)
    links: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)
    stores: list[Path] = field(default_factory=list)


def is_hidden(name: str) -> bool:
    """Whether a name is a hidden one, or one that systems give to files of their own."""
    return name.startswith(".") or name.lower() in SYSTEMS


def walk(root: Path) -> tuple[Folder, Passed]:
    """The folder with all that can be seen in it, and what was passed over; links are followed, once around.

    Raises:
        ManifestError: a folder cannot be read.
    """
    passed = Passed()
    return _walk(root, passed, ()), passed


def _walk(path: Path, passed: Passed, above: tuple[tuple[int, int], ...]) -> Folder:
    try:
        here = os.stat(path)
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        fix = "allow it to be read, or move it away"
        raise ManifestError(f"the folder cannot be read ({error.strerror})", where=str(path), fix=fix) from error
    above = (*above, (here.st_dev, here.st_ino))
    folder = Folder(path, [], [])
    for entry in entries:
        if not _is_text(entry.name):
            what = f"a name in the folder is no text in UTF-8: {os.fsencode(entry.name)!r}"
            raise ManifestError(what, where=str(path).encode(errors="replace").decode(), fix="rename it")
        is_folder = os.path.isdir(path / entry.name) if entry.is_symlink() else entry.is_dir()
        if is_hidden(entry.name):
            (passed.folders if is_folder else passed.files)[entry.name] += 1
        elif not is_folder:
            folder.files.append(path / entry.name)
        elif _is_store(path / entry.name):
            passed.stores.append(path / entry.name)
        elif entry.is_symlink() and _stat(path / entry.name) in above:
            passed.loops.append(path / entry.name)
        else:
            if entry.is_symlink():
                passed.links.append(path / entry.name)
            folder.folders.append(_walk(path / entry.name, passed, above))
    return folder


def _is_store(path: Path) -> bool:
    try:
        return is_marked(path)
    except OSError:  # a folder that cannot be entered, which is said when it is
        return False


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stat(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino

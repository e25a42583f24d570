"""Which files under a store's root are the store's: by where they stand, by their name, and by what they carry.

Nothing else is ever renamed or deleted, whatever a user keeps in the same folder.  A safetensors file of the store
carries its metadata; where damage has made its header unreadable, its name alone says whose it is.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from influence_cli.errors import StoreError
from influence_cli.events import Listener
from influence_cli.store.files import DamagedFile, open_regular
from influence_cli.store.tensors import raw_header

MANIFESTS = "manifests"
SINGLE = (  # one file a thing
    *("directions", "factors", "interims", "decisions", "trainings", "weights", "chains", MANIFESTS),
)
OF_DIRECTIONS = ("tangents", "tokens", "positions")  # folders that have the name of a direction
OF_ROWS = ("outputs", "row_values", "traces", "top_rows", "attacks", "gradients", "features", "tuned_head")
SHARDED = [*OF_DIRECTIONS, *OF_ROWS]  # one folder a thing
NOTED = ("models", "engines", "tasks")  # one note a thing
CLAIMED, CLAIM = "claims", ".lock"  # one empty file a claim, which is there while it is held
MARKER, TAG = "influence-store", "CACHEDIR.TAG"
SPEC, VALUE_NOTE, UNDECODABLE, TIMINGS = "spec.json", "curvature.json", "undecodable.json", "timings.json"
FILE_KEYS = "payload-files.parquet"
HARMLESS = (".gitignore", ".gitkeep", ".DS_Store")  # what other tools leave in a folder without meaning anything by it
NAME = re.compile(r"[0-9a-f]{32}")  # a fingerprint, or the name of a set of keys
TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.[0-9a-f]+\.tmp")  # .NAME.PROCESS.RANDOM.tmp
_CUT = re.compile(r"[0-9a-f]{32}\.safeten")  # of NAME no more than 40 characters stand there, see ``files``
DAMAGED = ".damaged-"  # before the name of what was set aside, with a number where that name is taken
SET_ASIDE = re.compile(r"^\.damaged-(\d+-)?")
METADATA = (b'\\"checksum\\":', b'\\"meta\\":', b'\\"meta_checksum\\":')  # as they stand in a header: JSON in JSON

OF = "of"  # key of a file's metadata: the thing that it is of, so that an intact file in another's place is no number

Parts = Sequence[str]  # a path below the root


def add_sharded(kind: str) -> None:
    """Look after the folders of one more kind, whose shards are named by the keys of their rows."""
    if kind not in SHARDED:
        SHARDED.append(kind)


def thing_of(path: Path) -> str:
    """KIND/NAME of the thing that a file of tensors is of, by where it lies: of one file, or of shards."""
    if path.parent.name in SINGLE:
        return f"{path.parent.name}/{path.stem}"
    return f"{path.parent.parent.name}/{path.parent.name}"


def refuse_moved(path: Path, meta: dict[str, Any]) -> None:
    """Refuse (DamagedFile) the file of another thing, which its metadata name; one of an earlier version names none."""
    if meta.get(OF, thing_of(path)) != thing_of(path):
        raise DamagedFile(f"it is a file of {meta[OF]}")


def of_place(parts: Parts) -> bool:
    """Whether the store writes files in this folder at all: its root, a kind's folder, or that of one thing."""
    if len(parts) == 1:
        return True
    if len(parts) == 2:
        return parts[0] in (*SINGLE, *NOTED, CLAIMED)
    return len(parts) == 3 and parts[0] in SHARDED and NAME.fullmatch(parts[1]) is not None


def fits(parts: Parts) -> bool:
    """Whether the store would write a file of exactly this name there, or did before it was set aside."""
    name = _whole_name(parts[-1])
    stem, _, suffix = name.partition(".")
    hashed = NAME.fullmatch(stem) is not None
    if len(parts) == 1:
        return name in (MARKER, TAG, UNDECODABLE, TIMINGS, FILE_KEYS)
    if not of_place(parts):
        return False
    if parts[0] == CLAIMED:
        return name == f"{stem}{CLAIM}" and hashed
    if parts[0] in NOTED:
        return hashed and suffix == "json"
    return (hashed and suffix == "safetensors") or (parts[0] in SHARDED and name in (SPEC, VALUE_NOTE))


def _whole_name(name: str) -> str:
    """The name that a temporary file was to get, or that a damaged one had."""
    temporary = TEMPORARY.fullmatch(name)
    if temporary is None:
        return SET_ASIDE.sub("", name)
    return temporary["name"] + ("sors" if _CUT.fullmatch(temporary["name"]) else "")


def carries(path: Path) -> bool | None:
    """Whether a safetensors file carries the store's metadata; None where it has no header that can be read.

    A header that can be read and has none of it is another program's, or weights of ours: no damaged file of the store.
    Two of the metadata's three keys are enough: damage may have hit one.
    """
    try:
        with open_regular(path) as handle:
            header = raw_header(handle)[8:]
    except (OSError, StoreError):
        return None
    if sum(key in header for key in METADATA) >= 2:
        return True
    try:
        return False if isinstance(json.loads(header), dict) else None
    except (ValueError, RecursionError):
        return None


def is_ours(path: Path) -> bool:
    """Whether a file in a folder of the store, named as one of its tensors or notes may be, is the store's."""
    if path.suffix != ".safetensors":
        return True
    found = carries(path)
    return NAME.fullmatch(path.stem) is not None if found is None else found


def is_rubbish(path: Path, parts: Parts) -> bool:
    """Whether a file is one that was set aside, or a temporary one that a run has left."""
    if not of_place(parts) or path.is_symlink() or not path.is_file():
        return False
    if not path.name.startswith(DAMAGED) or TEMPORARY.fullmatch(path.name):
        return TEMPORARY.fullmatch(path.name) is not None and fits(parts)
    found = carries(path) if path.suffix == ".safetensors" and len(parts) > 1 else None
    return fits(parts) if found is None else found


def belongs(path: Path, parts: Parts) -> bool:
    """Whether a file below a store's root is the store's."""
    tensors = path.suffix == ".safetensors" and len(parts) > 1 and of_place(parts) and parts[0] not in NOTED
    if tensors and not path.name.startswith("."):
        return (parts[0] in SINGLE or fits(parts)) and is_ours(path)
    return is_rubbish(path, parts) or (fits(parts) and not path.name.startswith("."))


def walk(folder: Path, parts: Parts = ()) -> Iterator[tuple[os.DirEntry[str], Parts]]:
    """Everything below a folder with its place; links to folders are named and not followed."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda e: e.name)
    except (FileNotFoundError, PermissionError):  # another run has taken it away; or it is closed to us
        return
    for entry in entries:
        yield entry, (*parts, entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path), (*parts, entry.name))


def files_of(folder: Path) -> list[Path]:
    """The tensors' files in a folder, lowest name first; hidden ones are not whole, or were set aside."""
    try:
        with os.scandir(folder) as found:
            names = [e.name for e in found if e.name.endswith(".safetensors") and e.name[0] != "." and e.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(names)]


def shards_of(folder: Path) -> list[Path]:
    """The shards in a folder, lowest name first: files named by a set of keys."""
    return [path for path in files_of(folder) if NAME.fullmatch(path.stem)]


def set_aside(path: Path, error: Exception, listener: Listener, again: str) -> bool:
    """Rename a damaged file, so that nothing reads it again; what is not the store's stays where it is.

    Raises:
        StoreError: nothing may be renamed there.
    """
    if not is_ours(path):
        return False
    place, taken = path.with_name(DAMAGED + path.name), 0
    while os.path.lexists(place):
        taken += 1
        place = path.with_name(f"{DAMAGED}{taken}-{path.name}")
    try:
        os.replace(path, place)
    except FileNotFoundError:  # another run was faster
        pass
    except OSError as refused:
        if refused.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        what = f"{path.name} is damaged ({error}) and cannot be set aside: {refused.strerror}"
        raise StoreError(what, where=str(path), fix="make the store writable, or copy it to where it is") from refused
    listener.warn(f"{path} is damaged ({error}); set aside{again and f', {again}'}")
    return True


def folders_of(path: Path, links: bool = False) -> list[Path]:
    """The folders in a kind's folder; none where that is a link, or where they are, but to look at."""
    try:
        found = sorted(p for p in path.iterdir() if p.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return found if links else [p for p in found if not (p.is_symlink() or path.is_symlink())]


def singles_of(folder: Path) -> list[Path]:
    """The files in the folder of a kind, where that is no link."""
    return [] if folder.is_symlink() else files_of(folder)


def claims_of(folder: Path) -> list[Path]:
    """The files of claims in their folder, where that is no link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if fits((CLAIMED, p.name)) and p.is_file() and not p.is_symlink())


def bytes_of(file: Path) -> int:
    """The size of a file; 0 where another run has taken it away."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0

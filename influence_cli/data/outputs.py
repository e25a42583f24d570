"""Where a run writes: no output replaces what the run reads, or anything that is no earlier output of its kind.

``check_outputs`` is asked before anything is computed, and touches nothing of the user's; ``writing`` asks again where
a file gets its name.  Files are told apart by what they are, not by what they are called: links, hard links and
spellings of a path do not hide that two are one.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influence_cli.data.earlier import kind_of
from influence_cli.data.tables import parquet_in
from influence_cli.errors import UsageError, disk_full
from influence_cli.store.files import replacing
from influence_cli.store.place import is_marked
from influence_cli.store.putting import check_putting, put
from influence_cli.store.remote import fetched, is_remote

_DESCRIPTORS = re.compile(r"/dev/fd|/proc/[^/]+(/task/[^/]+)?/fd")
_ANOTHER = "give another name, or move that file away"


@dataclass(frozen=True)
class Output:
    """A file that a run was asked to write: by which option, where, and what it will be."""

    flag: str
    path: str
    kind: str  # one of ``earlier``'s

    @property
    def place(self) -> Path:
        """Where it will stand, links followed: a link stays, and what it points to is written."""
        return Path(os.path.realpath(self.path))


def check_outputs(outputs: Iterable[Output], reads: Iterable[Any] = (), store: Any = None, probe: bool = True) -> None:
    """Fail before any work is done where an output cannot be written, or must not be.

    ``reads`` are the files and folders that the run reads, ``store`` where it remembers; what is no path is left out.
    Without ``probe`` nothing at all is created, not even for a moment.

    Raises:
        UsageError: an output would replace what is read or what is no earlier output of its kind, two are one, one
            would be inside of the store, or it cannot be written.
    """
    given, sources = [o for o in outputs if o.path != "-"], [r for r in reads if isinstance(r, str | Path)]
    _check_addresses([o for o in given if is_remote(o.path)], [str(r) for r in sources if is_remote(r)])
    checked = [o for o in given if not is_remote(o.path)]
    read = [Path(r) for r in sources if str(r) not in ("", "-") and not is_remote(r)]
    for k, output in enumerate(checked):
        status_of(output.flag, output.path)
        for other in checked[:k]:
            if is_same(output.place, other.place) and not is_stream(output.path):
                both = f"{other.flag} {other.path!r} and {output.flag} {output.path!r}"
                what = f"two outputs have the same name, or are one file: {both}"
                raise UsageError(what, fix="give each a place of its own")
    for output in checked:
        _check_read(output, read)
        _check_place(output)
        check_no_store(output.flag, output.path, store)
    for output in checked:
        check_writable(output.flag, output.path, probe)


def _check_addresses(outputs: Sequence[Output], reads: Sequence[str]) -> None:
    """Refuse an address that is read, that is given twice, or at which no earlier output of the kind is."""
    seen = set[str]()
    for output in outputs:
        if output.path in seen:
            raise UsageError(f"two outputs have the same name: {output.path!r}", fix="give each a place of its own")
        seen.add(output.path)
        for read in reads:
            if output.path == read or output.path.startswith(read.rstrip("/") + "/"):
                what = f"{output.flag} {output.path!r} is read by this run, or would become a part of what it reads"
                raise UsageError(what, where=read, fix=_ANOTHER)
        _check_address(output)


def _check_address(output: Output) -> None:
    """Refuse what stands at an address already, unless it may be replaced."""
    if check_putting(output.path):
        found = kind_of(fetched(output.path))
        if found != output.kind:
            what = f"{output.flag} {output.path!r} is there and is no earlier {output.kind} of influence"
            raise UsageError(what + (f" (it is a {found})" if found else ""), where=output.path, fix=_ANOTHER)


def check_no_store(flag: str, path: str, store: Any = None) -> None:
    """Refuse a place inside of the run's store, or of any other folder that says it is one.

    Raises:
        UsageError: it is inside of a store.
    """
    place = Path(os.path.realpath(path))
    known = [Path(store)] if isinstance(store, str | Path) else []
    for folder in (place, *place.parents):
        inside = any(is_same(folder, k) for k in known)
        with contextlib.suppress(OSError):
            inside = inside or is_marked(folder)
        if inside and not is_stream(path):
            what = f"{flag} {path!r} is inside of the store"
            raise UsageError(what, where=str(folder), fix="give a place outside of it")


def _check_place(output: Output) -> None:
    """Refuse what stands there already, unless it may be replaced or is written through."""
    status = status_of(output.flag, output.path)
    why = None
    if status is None:
        why = "it names a folder" if output.path.endswith(("/", os.sep)) else None
    elif is_stream(output.path):
        return
    elif not stat.S_ISREG(status.st_mode):
        why = "it is a folder" if stat.S_ISDIR(status.st_mode) else "it is no file"
    if why is not None:
        raise UsageError(f"cannot write {output.path!r}: {why}", fix="give a file name")
    if status is None or status.st_size == 0:
        return
    found = kind_of(output.place)
    if found != output.kind:
        what = f"{output.flag} {output.path!r} is there and is no earlier {output.kind} of influence"
        what += f" (it is a {found})" if found else ""
        raise UsageError(what, where=str(output.place), fix=_ANOTHER)


def _check_read(output: Output, reads: Sequence[Path]) -> None:
    """Refuse a file that is read, and a new part of a folder of Parquet files that is read."""
    place = output.place
    for read in reads:
        folder = os.path.isdir(read)  # False too where no file can have such a name
        if is_same(place, read) or (folder and _joins(place, read)):
            what = "is read by this run" if place.exists() else "would become a part of what this run reads"
            fix = "give a place outside of that folder" if folder else _ANOTHER
            raise UsageError(f"{output.flag} {output.path!r} {what}", where=str(read), fix=fix)


def _joins(place: Path, folder: Path) -> bool:
    """Whether a file is, or would be, one of a folder's Parquet files.

    The first one counts too: a folder of images that holds one is read as a folder of Parquet the next time.
    """
    if place.suffix == ".parquet" and not place.name.startswith(".") and is_inside(place, folder):
        return True
    return place.exists() and any(is_same(place, file) for file in parquet_in(folder))


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths are one file or folder, which need not be there."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other)


def is_inside(place: Path, folder: Path) -> bool:
    """Whether a path is a folder, or below it."""
    return any(is_same(one, folder) for one in (place, *place.parents))


def status_of(flag: str, path: str, named: str | None = None) -> os.stat_result | None:
    """What stands at a place, links followed, or None; errors call it by ``named``.

    Raises:
        UsageError: nothing can ever stand there: a name that is too long, a path through a file, a loop of links.
    """
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _unwritable(flag, named or path, error) from error


def _unwritable(flag: str, path: str, why: Exception | str) -> UsageError:
    reason = getattr(why, "strerror", None) or str(why)
    return UsageError(f"cannot write {flag} {path!r}: {reason}", where=path, fix="pick a place that can be written")


def is_stream(path: str | Path) -> bool:
    """Whether a place takes bytes and keeps no file: a pipe, a terminal, /dev/null, or an open file's descriptor."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return True
    step = Path(path)
    for _ in range(40):  # the most links that a system follows
        if _DESCRIPTORS.fullmatch(str(step.parent)):
            return True
        if not step.is_symlink():
            return False
        step = Path(os.path.normpath(step.parent / os.readlink(step)))
    return False


def check_writable(flag: str, path: str, probe: bool = True) -> None:
    """Refuse a place in which no file can be created; what is tried has a new random name, and is gone at once.

    Raises:
        UsageError: no file can be created there.
    """
    if is_stream(path):
        return
    place = Path(os.path.realpath(path))
    folder = next((p for p in place.parents if os.path.lexists(p)), Path("/"))
    for name in place.parts[len(folder.parts) :]:  # of folders that are yet to be made, too
        status_of(flag, str(folder / name), path)
    if not folder.is_dir():
        raise _unwritable(flag, path, f"{folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK) or (place.exists() and not os.access(place, os.W_OK)):
        raise _unwritable(flag, path, "no permission, or a read-only disk")
    if not probe:
        return
    tried, renamed = (folder / f".influence.{os.getpid()}.{secrets.token_hex(8)}.tmp" for _ in range(2))
    try:
        tried.touch(0o600, exist_ok=False)
        os.replace(tried, renamed)  # a file gets its name so in the end, which not every place allows
    except OSError as error:
        tried.unlink(missing_ok=True)
        if disk_full(error):
            raise
        raise _unwritable(flag, path, error) from error
    renamed.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | Path, kind: str) -> Generator[Path]:
    """A temporary file whose content goes to ``path``, whole or not at all; what is no file is written through.

    Raises:
        UsageError: something stands there that is no earlier output of this kind.
    """
    output = Output("the output", str(path), kind)
    if is_remote(path):
        _check_address(output)
        with tempfile.TemporaryDirectory(prefix="influence-output-") as folder:
            temporary = Path(folder) / "output"
            yield temporary
            put(temporary, str(path))
        return
    _check_place(output)
    if not is_stream(path):
        with replacing(output.place) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="influence-output-") as folder:
        temporary = Path(folder) / "output"
        yield temporary
        _write_through(temporary, str(path))


def _write_through(source: Path, path: str) -> None:
    """Append a file's bytes to what takes them: nothing that is there already is cut off."""
    target = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        with open(source, "rb") as handle:
            while chunk := handle.read(1 << 20):
                while chunk:
                    chunk = chunk[os.write(target, chunk) :]
    except OSError as error:
        raise type(error)(error.errno, error.strerror, path) from error
    finally:
        os.close(target)


def write_output(path: str | Path, kind: str, data: bytes) -> None:
    """Write ``data`` whole or not at all, as ``writing`` does."""
    with writing(path, kind) as temporary:
        temporary.write_bytes(data)

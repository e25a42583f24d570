"""Parquet at an address, of which no more is fetched than is read: its footer, and columns that are asked for.

A file is cut into parts of some megabytes.  A part is fetched when a byte of it is first read, and kept, so that it is
fetched once a command however often rows are passed over; what is never asked for, such as pictures where labels alone
are read, is never fetched.  In the place of the file stands an empty one that only this module looks behind: whoever
opens it by itself finds no Parquet.  Files of one part are fetched whole.
"""

from __future__ import annotations

import functools
import io
import os
import tempfile
import threading
import weakref
from pathlib import Path

from influence_cli.errors import UsageError
from influence_cli.store import remote
from influence_cli.store.remote import Address, Object

_by_place: dict[str, Parts] = {}  # by the empty file that stands in the place of one


class Parts:
    """The parts of a file at an address, as far as they were asked for, in a file with holes."""

    def __init__(self, address: Address, item: Object, folder: Path) -> None:
        self.address, self.item = address, item
        self.part, self.here = remote.PART, set[int]()
        self.lock = threading.Lock()
        self._file, name = tempfile.mkstemp(dir=folder)
        os.unlink(name)  # it is gone when nobody reads it any more
        weakref.finalize(self, os.close, self._file)

    def read(self, start: int, size: int) -> bytes:
        """Some bytes, of which those that are not here are fetched.

        Raises:
            UsageError: they cannot be, or the file is another one by now.
        """
        end = min(start + size, self.item.size)
        with self.lock:
            for part in range(start // self.part, -(-end // self.part)):
                if part not in self.here:
                    self._fetch(part)
            return os.pread(self._file, max(0, end - start), start)

    def _fetch(self, part: int) -> None:
        start = part * self.part
        size = min(self.part, self.item.size - start)
        try:
            found = remote.tried(functools.partial(remote.part_of, self.address, self.item, start, size))
            now = remote.tried(lambda: Object.of(self.address.system.get_file_info(self.item.path)))
        except Exception as error:
            raise remote.refusal("cannot read all of it", self.address, error) from error
        if now != self.item:  # what was fetched may be of either
            raise UsageError("it has changed while it was read", where=self.address.place, fix="run the command again")
        os.pwrite(self._file, found, start)
        self.here.add(part)


class Opened(io.RawIOBase):
    """A file in parts, open for reading; ``failed`` is what kept it from being read."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.at = parts, 0
        self.failed: Exception | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.parts.item.size}[whence]
        self.at = start + offset
        return self.at

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most so many."""
        try:
            found = self.parts.read(self.at, self.parts.item.size - self.at if size < 0 else size)
        except Exception as error:  # Arrow tells what is left of it
            self.failed = error
            raise
        self.at += len(found)
        return found


def opened(file: Path) -> Opened | None:
    """A file whose parts are fetched when they are read; None of any other."""
    found = _by_place.get(str(file))
    return None if found is None else Opened(found)


def local_tables(place: str) -> Path:
    """What ``remote.local`` gives, with Parquet of several parts fetched as it is read.

    Raises:
        UsageError: there is nothing, or it cannot be read.
    """
    return remote.fetched(place, _stand_in) if remote.is_remote(place) else Path(place)


def _stand_in(address: Address, item: Object, target: Path) -> None:
    """Put an empty file in the place of Parquet of several parts; fetch any other."""
    _by_place.pop(str(target), None)
    if not item.path.endswith(".parquet") or item.size <= remote.PART:
        remote.fetch(address, item, target)
        return
    remote.refuse_outside(address, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"")
    _by_place[str(target)] = Parts(address, item, target.parent)

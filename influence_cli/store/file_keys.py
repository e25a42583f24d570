"""Keys of payload files by path, so that a manifest of a million paths need not be read again to be named.

A remembered key is used only where the file's size, time of change of content and of status (which no program sets at
will), inode and device are those of the moment when it was hashed; otherwise the content is read.  A file changed less
than two seconds before it was hashed is not remembered: a second change within the same tick of the clock would leave
all of these as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence_cli.errors import StoreError
from influence_cli.events import SILENT, Listener
from influence_cli.store.files import DamagedFile, open_regular, replacing
from influence_cli.store.keys import KEY_BYTES, parse_json
from influence_cli.store.layout import set_aside
from influence_cli.store.tensors import METADATA_KEY

RACY_NS = 2_000_000_000
_REVISION = 2  # keys of before may be those of images whose decoding has changed: the files are read again
Stamp = tuple[int, int, int, int, int]
Known = dict[str, tuple[Stamp, bytes]]
_STAMP = ("size", "mtime", "ctime", "inode", "device")
_SCHEMA = pa.schema([("path", pa.string()), *((n, pa.int64()) for n in _STAMP), ("key", pa.binary(KEY_BYTES))])


def stamp_of(path: Path | str) -> Stamp | None:
    """Size, times in nanoseconds, inode and device of a file; None where it cannot be asked."""
    try:
        s = os.stat(path)
    except (OSError, ValueError):  # a name that no file can have
        return None
    inode, device = (int(np.uint64(v).astype(np.int64)) for v in (s.st_ino, s.st_dev))
    return s.st_size, s.st_mtime_ns, s.st_ctime_ns, inode, device


def read_keys(path: Path) -> Known | None:
    """What a file of keys holds; None where an earlier version wrote it, whose keys are not all those of now.

    Raises:
        DamagedFile: it is not what was written.
        OSError: it is not there, or cannot be read.
    """
    with open_regular(path) as handle:
        raw = handle.read()
    try:
        table = pq.read_table(pa.BufferReader(raw), page_checksum_verification=True)
        said = (table.schema.metadata or {}).get(METADATA_KEY.encode())
        columns = table.to_pydict()
        stamps = zip(*(columns[n] for n in _STAMP), strict=True)
        known = {p: (stamp, key) for p, stamp, key in zip(columns["path"], stamps, columns["key"], strict=True)}
        about = None if said is None else parse_json(said)
        if about not in (None, *({"checksum": _checksum(known), **more} for more in ({}, {"revision": _REVISION}))):
            raise DamagedFile("checksum differs")
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DamagedFile("it is not the table that was written") from error
    return known if about is not None and "revision" in about else None


def _checksum(known: Known) -> str:
    digest = hashlib.blake2b("\0".join(known).encode(), digest_size=16, person=b"influence.files")
    digest.update(np.array([stamp for stamp, _ in known.values()], dtype="<i8").tobytes())
    digest.update(b"".join(key for _, key in known.values()))
    return digest.hexdigest()


class StoredFileKeys:
    """Payload keys by absolute path, kept in one Parquet file with a checksum; a damaged file is set aside.

    Beside them, where a store has them, is what is known of whole ``manifests``.
    """

    def __init__(
        self, path: Path, remember: bool = True, listener: Listener = SILENT, claim: Callable[[], None] = lambda: None,
        manifests: Any = None,
    ) -> None:  # fmt: skip
        self.manifests = manifests  # ``ManifestKeys``, whose module imports this one
        self.path, self.remember, self.listener, self._claim = path, remember, listener, claim
        self._known: Known | None = None
        self._before: dict[str, Stamp | None] = {}  # stamps of unknown files, taken before they are read
        self._changed = False

    def _load(self) -> Known:
        if self._known is None:
            self._known = {}
            try:
                self._known = read_keys(self.path) or {}
            except DamagedFile as error:
                set_aside(self.path, error, self.listener, "the files are read again")
            except OSError:
                pass  # nothing is remembered, or it cannot be read: the files are
        return self._known

    def find(self, path: Path) -> bytes | None:
        """The key of a file that has not changed since it was put, or None: then it is about to be read."""
        where, stamp = os.path.abspath(path), stamp_of(path)
        entry = self._load().get(where)
        if entry is not None and entry[0] == stamp:
            return entry[1]
        self._before[where] = stamp
        return None

    def put(self, path: Path, key: bytes) -> None:
        """Remember the key of a file that was read since ``find`` was asked for it."""
        where = os.path.abspath(path)
        stamp = self._before.pop(where, None)
        settled = stamp is not None and time.time_ns() - max(stamp[1], stamp[2]) >= RACY_NS
        if stamp is not None and settled and stamp == stamp_of(path):
            self._load()[where] = (stamp, key)
            self._changed = True

    def drop_stale(self) -> int:
        """Forget files that are gone or have changed; returns how many."""
        known = self._load()
        stale = [path for path, (stamp, _) in known.items() if stamp != stamp_of(path)]
        for path in stale:
            del known[path]
        self._changed |= bool(stale)
        return len(stale)

    def save(self) -> None:
        """Write what has changed; a store that cannot be written remembers nothing."""
        if not (self._changed and self.remember):
            return
        known = self._load()
        columns = [pa.array(list(known), pa.string())]
        columns += [pa.array([stamp[k] for stamp, _ in known.values()], pa.int64()) for k in range(5)]
        columns.append(pa.array([key for _, key in known.values()], pa.binary(KEY_BYTES)))
        about = {"checksum": _checksum(known), "revision": _REVISION}
        schema = _SCHEMA.with_metadata({METADATA_KEY: json.dumps(about)})
        try:
            self._claim()
            with replacing(self.path) as temporary:
                pq.write_table(pa.table(columns, schema=schema), temporary, write_page_checksum=True)
        except (StoreError, OSError):
            return
        self._changed = False

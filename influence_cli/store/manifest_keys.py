"""What reading a manifest has found, so that one that nobody has touched need not be hashed again.

Of every manifest, known by the paths of its files, the payload keys, the row keys and the fingerprint are kept.  They
are used only where each file's size, times, inode and device are those of the moment when it was read, as the keys of
payload files are (``file_keys``); otherwise the content is hashed.  Narrow columns are read and checked in any case:
row keys and fingerprint are used only where ids, labels and splits are those that they were made of.  Only the last few
manifests are kept, so that a store to which rows are added does not grow by all of them every time.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influence_cli.errors import StoreError
from influence_cli.events import SILENT, Listener
from influence_cli.store.file_keys import RACY_NS, Stamp, stamp_of
from influence_cli.store.keys import Keys, fingerprint
from influence_cli.store.layout import files_of
from influence_cli.store.single_files import FileFolder

LEAST_ROWS = 20_000  # smaller manifests are hashed in no time
KEPT = 8  # manifests
_REVISION = 1  # raise it when keys of the same content change


@dataclass(frozen=True, eq=False)
class ReadBefore:
    """What is known of a manifest whose files are as they were."""

    payload_keys: Keys
    row_keys: Keys
    ids: str  # digest of the ids, which are distinct
    rows: str  # digest of ids, payload keys, labels and splits
    fingerprint: str


class ManifestKeys:
    """The manifests read from one store's point of view; a damaged file is set aside, and the manifest hashed."""

    def __init__(
        self, path: Path, remember: bool = True, listener: Listener = SILENT, claim: Callable[[], None] = lambda: None
    ) -> None:
        self.path, self.remember = path, remember
        self._files = FileFolder(path, listener, claim, "the manifest is hashed again", "manifest")
        self._stamps: dict[str, list[Stamp | None]] = {}  # taken before a manifest is read

    def find(self, files: Sequence[Path], kind: str) -> ReadBefore | None:
        """What is known of these files, or None: then they are about to be read."""
        name, stamps = _name(files, kind), [stamp_of(file) for file in files]
        self._stamps[name] = stamps
        meta = self._files.meta(name) if self._files.has(name) else None
        if meta is None or meta.get("stamps") != [None if s is None else list(s) for s in stamps]:
            return None
        tensors = self._files.read(name)
        if tensors is None:
            return None
        about = (str(meta[key]) for key in ("ids", "rows", "fingerprint"))
        return ReadBefore(tensors["payload_keys"], tensors["row_keys"], *about)

    def put(self, files: Sequence[Path], kind: str, found: ReadBefore) -> None:
        """Remember what was read since ``find`` was asked; a store that cannot be written remembers nothing."""
        name = _name(files, kind)
        stamps = self._stamps.get(name)
        if not self.remember or stamps is None or len(found.payload_keys) < LEAST_ROWS:
            return
        now = time.time_ns()
        settled = all(s is not None and now - max(s[1], s[2]) >= RACY_NS for s in stamps)
        if not settled or stamps != [stamp_of(file) for file in files]:
            return
        about = {"stamps": [list(s) for s in stamps if s is not None], "files": [os.path.abspath(f) for f in files]}
        about |= {"rows_read": len(found.payload_keys)}
        about |= {"ids": found.ids, "rows": found.rows, "fingerprint": found.fingerprint}
        try:
            tensors = {"payload_keys": found.payload_keys, "row_keys": found.row_keys}
            self._files.write(name, tensors, about)
            self._drop_oldest()
        except (StoreError, OSError):
            return

    def _drop_oldest(self) -> None:
        """Forget all but the last few manifests."""
        dated = sorted((stamp[1], file) for file in files_of(self.path) if (stamp := stamp_of(file)) is not None)
        for _, file in dated[:-KEPT]:
            file.unlink(missing_ok=True)

    def drop_stale(self) -> int:
        """Forget manifests that are gone or have changed; returns how many."""
        stale = [name for name, meta in self._files.known().items() if not _current(meta)]
        for name in stale:
            self._files.drop(name)
        return len(stale)


def _name(files: Sequence[Path], kind: str) -> str:
    return fingerprint("manifest-keys", _REVISION, files=[os.path.abspath(f) for f in files], payload=kind)


def _current(meta: dict[str, Any]) -> bool:
    """Whether the files are as they were when they were read."""
    stamps = [stamp_of(file) for file in meta["files"]]
    return meta["stamps"] == [None if s is None else list(s) for s in stamps]


def digest_of_parts(*parts: Any) -> str:
    """Digest of several arrays or texts, one after another."""
    digest = hashlib.blake2b(digest_size=16, person=b"influence.read")
    for part in parts:
        raw = part.encode() if isinstance(part, str) else np.ascontiguousarray(part)
        size = len(raw) if isinstance(raw, bytes) else raw.nbytes
        digest.update(size.to_bytes(8, "little"))
        digest.update(raw if isinstance(raw, bytes) else raw.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()

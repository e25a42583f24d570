"""A folder of single files of tensors, each named by the fingerprint of what it holds: directions, factors, trainings.

A file that is damaged is set aside, and counts as not there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from influence_cli.events import Listener
from influence_cli.store.files import DamagedFile
from influence_cli.store.layout import OF, files_of, refuse_moved, set_aside, thing_of
from influence_cli.store.shards import Arrays, Claim
from influence_cli.store.tensors import read_metadata, read_tensor, read_tensors, write_tensors

Value = TypeVar("Value")


def at_hand(_: Path) -> None:
    """Nothing has to be fetched: the store is on this machine."""


class FileFolder:
    """The files of one kind by fingerprint.  Reading verifies checksums; writing needs no lock.

    Files say what they are of, and another's file, copied to that name, is damage; with ``what`` they said their name
    in every version.
    """

    def __init__(
        self, path: Path, listener: Listener, claim: Claim, again: str = "computed again", what: str | None = None,
        fetch: Callable[[Path], None] = at_hand,
    ) -> None:  # fmt: skip
        self.path, self.listener, self._claim, self._again, self._what = path, listener, claim, again, what
        self._fetch = fetch  # a file that is asked for, where the store is at an address

    def _file(self, name: str) -> Path:
        file = self.path / f"{name}.safetensors"
        self._fetch(file)
        return file

    def _intact(self, name: str, read: Callable[[Path], Value]) -> Value | None:
        path = self._file(name)
        try:
            meta = read_metadata(path)
            refuse_moved(path, meta)
            if self._what is not None and meta.get("name") != name:
                raise DamagedFile(f"it is another {self._what}'s file")
            return read(path)
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            set_aside(path, error, self.listener, self._again)
            return None

    def has(self, name: str) -> bool:
        """Whether the file is there (it may still turn out to be damaged)."""
        return self._file(name).exists()

    def known(self) -> dict[str, dict[str, Any]]:
        """The metadata of every intact file, by name."""
        names = [path.stem for path in files_of(self.path)]
        return {name: meta for name in names if (meta := self.meta(name)) is not None}

    def read(self, name: str) -> Arrays | None:
        """The tensors, or None where there is no intact file."""
        return self._intact(name, lambda path: read_tensors(path)[0])

    def meta(self, name: str) -> dict[str, Any] | None:
        """The metadata alone, or None where there is no intact file."""
        return self._intact(name, lambda path: {k: v for k, v in read_metadata(path).items() if k != OF})

    def read_one(self, name: str, tensor: str) -> NDArray[Any] | None:
        """One tensor, or None where it cannot be read; the file stays where it is."""
        try:
            return read_tensor(self._file(name), tensor)
        except (DamagedFile, OSError):
            return None

    def write(self, name: str, tensors: Arrays, meta: dict[str, Any]) -> dict[str, Any]:
        """Write a file whole; returns its metadata."""
        self._claim()
        meta = meta if self._what is None else {**meta, "name": name}
        write_tensors(self._file(name), tensors, {**meta, OF: thing_of(self._file(name))})
        return meta

    def drop(self, name: str) -> None:
        """Remove a file that is not needed any more."""
        self._file(name).unlink(missing_ok=True)

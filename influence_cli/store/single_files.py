"""A folder of single files of tensors, each named by the fingerprint of what it holds: directions, factors, trainings.

A file that is damaged is set aside, and counts as not there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from influence_cli.events import SILENT, Listener
from influence_cli.store.files import DamagedFile, read_metadata, read_tensor, read_tensors, write_tensors
from influence_cli.store.layout import files_of, set_aside
from influence_cli.store.shards import Arrays, Claim

Value = TypeVar("Value")


class FileFolder:
    """The files of one kind by fingerprint.  Reading verifies checksums; writing needs no lock."""

    def __init__(
        self,
        path: Path,
        listener: Listener = SILENT,
        claim: Claim = lambda: None,
        again: str = "computed again",
    ) -> None:
        self.path, self.listener, self._claim, self._again = path, listener, claim, again

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    def _intact(self, name: str, read: Callable[[Path], Value]) -> Value | None:
        path = self._file(name)
        try:
            return read(path)
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            set_aside(path, error, self.listener, self._again)
            return None

    def has(self, name: str) -> bool:
        """Whether the file is there (it may still turn out to be damaged)."""
        return self._file(name).exists()

    def names(self) -> list[str]:
        """The names of all files."""
        return [path.stem for path in files_of(self.path)]

    def read(self, name: str) -> Arrays | None:
        """The tensors, or None where there is no intact file."""
        return self._intact(name, lambda path: read_tensors(path)[0])

    def meta(self, name: str) -> dict[str, Any] | None:
        """The metadata alone, or None where there is no intact file."""
        return self._intact(name, read_metadata)

    def meta_of(self, name: str, what: str) -> dict[str, Any] | None:
        """The metadata of a file that says its own name; another's file is damage."""
        meta = self.meta(name)
        if meta is not None and meta.get("name") != name:
            set_aside(self._file(name), DamagedFile(f"it is another {what}'s file"), self.listener, self._again)
            return None
        return meta

    def read_one(self, name: str, tensor: str) -> NDArray[Any] | None:
        """One tensor, or None where it cannot be read; the file stays where it is."""
        try:
            return read_tensor(self._file(name), tensor)
        except (DamagedFile, OSError):
            return None

    def write(self, name: str, tensors: Arrays, meta: dict[str, Any]) -> None:
        """Write a file whole."""
        self._claim()
        write_tensors(self._file(name), tensors, meta)

    def drop(self, name: str) -> None:
        """Remove a file that is not needed any more."""
        self._file(name).unlink(missing_ok=True)

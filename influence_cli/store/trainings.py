"""What was measured after trainings: one small file each, named by everything that made the training what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from influence_cli.events import SILENT, Listener
from influence_cli.store.files import DamagedFile, read_tensors, write_tensors
from influence_cli.store.layout import set_aside
from influence_cli.store.shards import Claim

Arrays = dict[str, NDArray[Any]]


class TrainingFolder:
    """The outcomes of finished trainings by fingerprint.  Reading verifies checksums; writing needs no lock."""

    def __init__(self, path: Path, listener: Listener = SILENT, claim: Claim = lambda: None) -> None:
        self.path, self.listener, self._claim = path, listener, claim

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        """Whether the training is finished (its file may still turn out to be damaged)."""
        return self._file(name).exists()

    def read(self, name: str) -> Arrays | None:
        """What was measured, or None where the training is not finished or its file is damaged."""
        path = self._file(name)
        try:
            return read_tensors(path)[0]
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            set_aside(path, error, self.listener, "trained again")
            return None

    def write(self, name: str, measured: Arrays, about: dict[str, Any]) -> None:
        """Keep what was measured, whole."""
        self._claim()
        write_tensors(self._file(name), measured, about)

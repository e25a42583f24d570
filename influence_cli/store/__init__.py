"""The store: a memo on disk, never a state.  Deleting it changes no answer; only this package knows file names.

.influence/
  directions/<fp>.safetensors   a direction q (or u) at a member; its metadata holds Phi and its noise
  outputs/<member-fp>/<shard>   keys u8[n, 16] (payload), logits [n, C]
  tangents/<u-fp>/<shard>       keys u8[n, 16] (payload), tangent [n, C]
  trainings/<fp>.safetensors    each target and test row's loss and margin after training on a subset of the train rows
  models/<fp>.json              what an architecture's name meant (input size, mean, sd) under a timm version
  timings.json                  measured seconds per row, for the plan; never read to decide anything
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from influence_cli.events import SILENT, Listener
from influence_cli.store.files import DamagedFile, read_metadata, read_tensors, write_json, write_tensors
from influence_cli.store.keys import Keys, fingerprint
from influence_cli.store.shards import ShardFolder
from influence_cli.store.trainings import TrainingFolder

__all__ = ["Keys", "ShardFolder", "Store", "TrainingFolder", "fingerprint"]


class Store:
    """Everything remembered under one root folder."""

    def __init__(self, root: Path, listener: Listener = SILENT, remember: bool = True) -> None:
        self.root, self.listener, self.remember = root, listener, remember

    def outputs(self, member: str, spec: dict[str, Any] | None = None) -> ShardFolder:
        """Logits at a member, by payload key."""
        return ShardFolder(self.root / "outputs" / member, spec or {}, self.listener)

    def tangents(self, direction: str, spec: dict[str, Any] | None = None) -> ShardFolder:
        """Logit tangents along a direction, by payload key."""
        return ShardFolder(self.root / "tangents" / direction, spec or {}, self.listener)

    def trainings(self) -> TrainingFolder:
        """What was measured after trainings on subsets, by fingerprint."""
        return TrainingFolder(self.root / "trainings", self.listener)

    def _direction(self, name: str) -> Path:
        return self.root / "directions" / f"{name}.safetensors"

    def direction_meta(self, name: str) -> dict[str, Any] | None:
        """What is known of a direction (value of Phi, noise), or None where it is not stored intact."""
        path = self._direction(name)
        try:
            return read_metadata(path) if path.exists() else None
        except DamagedFile as error:
            self._set_aside(path, error)
            return None

    def read_direction(self, name: str) -> dict[str, NDArray[Any]] | None:
        """A direction's tensors by parameter name, or None where it is not stored intact."""
        path = self._direction(name)
        try:
            return read_tensors(path)[0] if path.exists() else None
        except DamagedFile as error:
            self._set_aside(path, error)
            return None

    def write_direction(self, name: str, tensors: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
        """Store a direction whole."""
        write_tensors(self._direction(name), tensors, meta)

    def _set_aside(self, path: Path, error: Exception) -> None:
        path.rename(path.with_name(f".damaged-{path.name}"))
        self.listener.warn(f"{path} is damaged ({error}); set aside and computed again")

    def read_model_note(self, name: str) -> dict[str, Any] | None:
        """What was resolved for an architecture's name, or None."""
        try:
            return json.loads((self.root / "models" / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None

    def write_model_note(self, name: str, note: dict[str, Any]) -> None:
        """Remember what an architecture's name resolved to."""
        if self.remember:
            write_json(self.root / "models" / f"{name}.json", note)

    def timing(self, what: str) -> float | None:
        """Seconds per row last measured for ``what``, or None."""
        try:
            return float(json.loads((self.root / "timings.json").read_text())[what])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_timing(self, what: str, seconds: float) -> None:
        """Remember a measured rate for the next plan."""
        path = self.root / "timings.json"
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {}
        write_json(path, {**known, what: seconds})

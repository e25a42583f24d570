"""The checkpoints that a training left behind: the final one, and those that its run folder recorded on the way."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from influence_cli.model.checkpoints import Checkpoint, find_checkpoint
from influence_cli.model.run_folder import RunFolder


@dataclass(frozen=True)
class Recorded:
    """One checkpoint on the way: after so many steps, with the learning rate of the last of them."""

    checkpoint: Checkpoint
    step: int
    learning_rate: float


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The way to a final checkpoint; the other checkpoints are read and verified only when a method asks for them."""

    final: Checkpoint

    @functools.cached_property
    def recorded(self) -> tuple[Recorded, ...]:
        """Checkpoints that ``retrain --keep-checkpoints`` wrote, in order of steps; none for weights without a run.

        Raises:
            DamagedModel: one of them, or what the run folder says of it, cannot be read.
            ModelError: one of them is gone.
        """
        folder = RunFolder.of(self.final.locator)
        record = folder.read()
        return tuple(
            Recorded(find_checkpoint(str(folder.path / kept.file))[0], kept.step, kept.lr)
            for kept in (() if record is None else record.checkpoints)
        )

"""What a training leaves beside its last weights: checkpoints, steps and rates, and values of its rows by epoch."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.model.run_folder import CHECKPOINTS, EPOCHS, MOMENTS, RunFolder
from influence_cli.model.run_record import EpochCheckpoint, RunRecord
from influence_cli.model.training_records import MOMENTS_OF, ROWS_FILE, ROWS_OF

if TYPE_CHECKING:
    import torch
    from torch import nn

    from influence_cli.events import Progress
    from influence_cli.model.losses import RowLoss
    from influence_cli.model.spec import ModelSpec
    from influence_cli.model.train.epoch_values import EpochValues, Values
    from influence_cli.store import Keys


class TrainingNotes:
    """Those of one training, written into its folder as it goes on."""

    def __init__(self, folder: RunFolder, model: nn.Module, spec: ModelSpec, progress: Progress) -> None:
        self.folder, self.model, self.spec, self.progress = folder, model, spec, progress
        self.wanted = set[int]()
        self.checkpoints: list[EpochCheckpoint] = []
        self.epochs: list[tuple[int, float]] = []
        self.files: dict[str, str] = {}
        self.optimizer: torch.optim.Optimizer | None = None  # whose state is kept too
        self.moments: dict[str, str] = {}
        self.ends: list[float] = []

    def keep_checkpoints(self, count: int, epochs: int) -> None:
        """Keep so many of the epochs' weights, evenly spaced, with the last."""
        self.wanted = {round((k + 1) * epochs / count) - 1 for k in range(count)}

    def keep_values(self, keys: Keys, labels: NDArray[np.int64], kept: NDArray[np.bool_], loss: RowLoss) -> EpochValues:
        """Where training is to tell of its rows: those that are ``kept`` [n], under their row keys [n, 16].

        The keys are of the labels that are trained on.
        """
        from influence_cli.model.train.epoch_values import EpochValues

        trained = {"row_keys": np.ascontiguousarray(keys[kept])}
        self.files[ROWS_FILE] = self.folder.write_arrays(ROWS_FILE, trained, {"of": ROWS_OF})
        return EpochValues(np.flatnonzero(kept), labels, loss, self._write_values)

    def _write_values(self, first: int, values: Values) -> None:
        last = first + len(next(iter(values.values()))) - 1
        name = f"{EPOCHS}/{first:05d}-{last:05d}.safetensors"
        self.files[name] = self.folder.write_arrays(name, dict(values), {"of": ROWS_OF, "first": first, "last": last})

    def keep_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the state of the optimizer beside every checkpoint."""
        self.optimizer = optimizer

    def _write_moments(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Each parameter's moments as KIND.PARAMETER: exp_avg and exp_avg_sq of adamw, momentum_buffer of sgd."""
        found: dict[str, NDArray[Any]] = {}
        for name, parameter in self.model.named_parameters():
            for kind, value in optimizer.state.get(parameter, {}).items():
                if kind != "step" and value is not None:
                    found[f"{kind}.{name}"] = value.detach().float().cpu().numpy()
        name = f"{MOMENTS}/step-{step:06d}.safetensors"
        self.moments[name] = self.folder.write_arrays(name, found, {"of": MOMENTS_OF, "step": step})

    def on_epoch(self, epoch: int, step: int, rate: float) -> None:
        """The end of an epoch, after so many steps, with the learning rate of the last."""
        if epoch in self.wanted:
            kept = EpochCheckpoint(f"{CHECKPOINTS}/step-{step:06d}.safetensors", epoch + 1, step, rate)
            about = {"model": self.spec.as_dict(), "epoch": kept.epoch, "step": step, "lr": rate}
            self.folder.write_weights(kept.file, self.model, about)
            self.checkpoints.append(kept)
            if self.optimizer is not None:
                self._write_moments(self.optimizer, step)
        self.epochs.append((step, rate))
        self.progress.advance(1)
        self.ends.append(time.perf_counter())

    def added_to(self, record: RunRecord) -> RunRecord:
        """The record of the training with all of it."""
        notes: dict[str, Any] = {"epochs": tuple(self.epochs), "values": self.files, "moments": self.moments}
        return replace(record, checkpoints=tuple(self.checkpoints), seconds=self._seconds(), **notes)

    def _seconds(self) -> float | None:
        """Seconds of the training, without what its first epoch sets up; None of one epoch alone."""
        ends = self.ends
        return round((ends[-1] - ends[0]) * len(ends) / (len(ends) - 1), 3) if len(ends) > 1 else None

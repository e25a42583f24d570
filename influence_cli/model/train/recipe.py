"""How a model is trained: what changes its numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from influence_cli.errors import UsageError

LBFGS = "lbfgs"


AUGMENTATIONS = ("none", "shift", "flip-shift")
SCHEDULES = ("cosine", "constant", "step")
OPTIMIZERS = ("sgd", "adamw", LBFGS)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; every field changes numbers and is part of an arm's fingerprint."""

    epochs: int = 20
    lr: float | None = None  # None: 0.05 for sgd, 1e-3 for adamw
    batch_size: int = 128
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup: float = 0.05  # share of the steps over which the rate rises from 0
    augment: str = "none"

    def __post_init__(self) -> None:
        for flag, value, known in (
            ("--optimizer", self.optimizer, OPTIMIZERS),
            ("--schedule", self.schedule, SCHEDULES),
            ("--augment", self.augment, AUGMENTATIONS),
        ):
            if value not in known:
                raise UsageError(f"{flag} {value!r} is unknown", fix="one of: " + ", ".join(known))
        if not 0 < self.peak_lr < math.inf:
            raise UsageError(f"--lr {self.lr} is not a positive number", fix="leave it out for the default")
        if self.epochs < 1 or self.batch_size < 2:
            raise UsageError("--epochs must be at least 1 and the training batch at least 2", fix="raise it")
        if self.optimizer == LBFGS and self.augment != "none":
            raise UsageError("--augment has no meaning with lbfgs, which sees every row as it is", fix="leave it out")

    @property
    def peak_lr(self) -> float:
        """The highest learning rate of the schedule."""
        if self.optimizer == LBFGS:
            return 1.0  # of a Newton step
        return self.lr if self.lr is not None else {"sgd": 0.05, "adamw": 1e-3}[self.optimizer]

    @property
    def rounds(self) -> int:
        """How often ``on_epoch`` is called: every epoch, or once for a fit to the optimum."""
        return 1 if self.optimizer == LBFGS else self.epochs

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at ``step`` of ``steps``, in [0, peak]."""
        warm = int(self.warmup * steps)
        if step < warm:
            return self.peak_lr * (step + 1) / (warm + 1)
        done = (step - warm) / max(1, steps - warm)
        if self.schedule == "cosine":
            return self.peak_lr * 0.5 * (1.0 + math.cos(math.pi * done))
        if self.schedule == "step":
            return self.peak_lr * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
        return self.peak_lr

    def describe(self) -> dict[str, Any]:
        """Plain values, for JSON and fingerprints; of ``lbfgs`` only what changes its result."""
        if self.optimizer == LBFGS:
            return {"optimizer": LBFGS, "weight_decay": self.weight_decay}
        return asdict(self)

"""How a model is trained: optimizer, schedule, augmentation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from influence_cli.errors import UsageError
from influence_cli.options import TRAINS, option

LBFGS = "lbfgs"
AUGMENTATIONS = ("none", "shift", "flip-shift")
SCHEDULES = ("cosine", "linear", "constant", "step")
OPTIMIZERS = ("sgd", "adamw", LBFGS)
PRECISIONS = ("fp32", "bf16")
# of a pretrained transformer (Devlin et al. 2019, section A.3), with the highest of its rates: small models need it
FINE_TUNING: dict[str, Any] = {
    "epochs": 3, "lr": 5e-5, "batch_size": 32, "optimizer": "adamw", "weight_decay": 0.01, "schedule": "linear",
    "warmup": 0.1,
}  # fmt: skip
# of a small language model that begins with nothing, on a text of a few hundred thousand tokens
FROM_NOTHING: dict[str, Any] = {
    "epochs": 8, "lr": 2e-3, "batch_size": 16, "optimizer": "adamw", "weight_decay": 0.1, "schedule": "linear",
    "warmup": 0.05,
}  # fmt: skip


def usual_recipe(model: str | None) -> dict[str, Any] | None:
    """What is usual for a model of this name; None: what ``Recipe`` says."""
    from influence_cli.model.spec import is_gpt  # here: the options of a command are known without numpy

    if is_gpt(model):
        return FROM_NOTHING
    return FINE_TUNING if (model or "").startswith("hf:") else None


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; every field changes numbers and is part of an arm's fingerprint."""

    epochs: int = option(20, "Passes over the train rows.", TRAINS, least=1)
    lr: float | None = option(None, "Peak learning rate [default: sgd 0.05, adamw 0.001].", TRAINS)
    batch_size: int = 128
    optimizer: str = option("sgd", "sgd (momentum 0.9), adamw, or lbfgs: linear to its optimum.", TRAINS)
    momentum: float = option(0.9, "Momentum of sgd.", TRAINS, least=0)
    weight_decay: float = option(5e-4, "Weight decay.", TRAINS, least=0)
    schedule: str = option("cosine", "cosine, linear, constant or step.", TRAINS)
    warmup: float = 0.05  # share of the steps over which the rate rises from 0
    augment: str = option("none", "none, shift or flip-shift.", TRAINS)
    amp: str = option("fp32", "Precision of training: fp32, or bf16 with weights kept in fp32.", TRAINS)
    asked: frozenset[str] | None = None  # fields that were chosen: the model decides on the others; None: all were

    def __post_init__(self) -> None:
        for flag, value, known in (
            ("--optimizer", self.optimizer, OPTIMIZERS),
            ("--schedule", self.schedule, SCHEDULES),
            ("--augment", self.augment, AUGMENTATIONS),
            ("--amp", self.amp, PRECISIONS),
        ):
            if value not in known:
                raise UsageError(f"{flag} {value!r} is unknown", fix="one of: " + ", ".join(known))
        if not 0 < self.peak_lr < math.inf:
            raise UsageError(f"--lr {self.lr} is not a positive number", fix="leave it out for the default")
        if self.epochs < 1 or self.batch_size < 2:
            raise UsageError("--epochs must be at least 1 and the training batch at least 2", fix="raise it")
        if self.optimizer == LBFGS and self.augment != "none":
            raise UsageError("--augment has no meaning with lbfgs, which sees every row as it is", fix="leave it out")
        if self.optimizer == LBFGS and self.amp != "fp32":
            raise UsageError("--amp has no meaning with lbfgs, which computes in fp64", fix="leave it out")

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

    @property
    def has_epochs(self) -> bool:
        """Whether rows are passed over again and again, not solved for at once."""
        return self.optimizer != LBFGS

    def leaves_one(self, rows: int) -> bool:
        """Whether the last batch of an epoch over so many rows has a single one."""
        return self.has_epochs and rows % self.batch_size == 1 < rows

    def describe_over(self, rows: int) -> dict[str, Any]:
        """What stands for training on so many rows in the name of what comes of it.

        A single last row was passed over once, so that trainings with one have other names than before.
        """
        return {**self.describe(), **({"single_last_row": 1} if self.leaves_one(rows) else {})}

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at ``step`` of ``steps``, in [0, peak]."""
        warm = int(self.warmup * steps)
        if step < warm:
            return self.peak_lr * (step + 1) / (warm + 1)
        done = (step - warm) / max(1, steps - warm)
        if self.schedule == "cosine":
            return self.peak_lr * 0.5 * (1.0 + math.cos(math.pi * done))
        if self.schedule == "linear":
            return self.peak_lr * (1.0 - done)
        if self.schedule == "step":
            return self.peak_lr * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
        return self.peak_lr

    def describe(self) -> dict[str, Any]:
        """Plain values, for JSON and fingerprints; of ``lbfgs`` only what changes its result.

        The precision is left out where it is fp32, so that trainings from before there was another keep their names.
        """
        if self.optimizer == LBFGS:
            return {"optimizer": LBFGS, "weight_decay": self.weight_decay}
        later = {"asked", *(("amp",) if self.amp == "fp32" else ())}
        return {name: value for name, value in asdict(self).items() if name not in later}

    def with_usual(self, usual: dict[str, Any]) -> Recipe:
        """The recipe with what is ``usual`` for a kind of model, where nothing else was asked for."""
        if self.asked is None:
            return self
        same = "optimizer" not in self.asked or self.optimizer == usual["optimizer"]
        names = usual.keys() if same else {"epochs", "batch_size"}  # rates are the optimizer's
        return replace(self, **{name: usual[name] for name in names - self.asked})

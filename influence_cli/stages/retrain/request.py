"""What ``retrain`` is asked to do: what to train, on what, with which wrong labels planted, compared with what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from influence_cli.errors import UsageError
from influence_cli.settings import GradSpec, Inputs, Options

NOISES = ("confusion", "uniform")


@dataclass(frozen=True)
class CanaryRequest:
    """How many canaries, and which labels they get."""

    share: float
    noise: str | None = None  # default: confusion where there is a model, else uniform
    source: str | None = None  # checkpoint or run folder whose confusion is used

    def __post_init__(self) -> None:
        if self.noise not in (None, *NOISES):
            raise UsageError(f"--canary-noise {self.noise!r} is unknown", fix="confusion or uniform")
        if self.noise == "confusion" and self.source is None:
            raise UsageError("--canary-noise confusion needs a model", fix="pass --canaries-from CHECKPOINT")

    @property
    def kind(self) -> str:
        """The noise that is meant."""
        return self.noise or ("uniform" if self.source is None else "confusion")


@dataclass(frozen=True)
class EditsRequest:
    """Which edits to compare: by stored scores, or (``rounds``) by scores made anew between trims."""

    scores: Any = None  # a score table of the train rows
    budgets: tuple[str, ...] = ("5%",)
    actions: tuple[str, ...] = ("trim",)
    by: tuple[str, ...] = ("score",)
    combine: str | None = None  # also the columns combined, by this rule
    options: Options = field(default_factory=dict)
    rounds: int = 1
    spec: GradSpec = field(default_factory=GradSpec)  # what is scored between trims


@dataclass(frozen=True)
class RetrainRequest:
    """What to train, on what, compared with what."""

    inputs: Inputs
    output: str
    seeds: int = 1
    seed: int = 0
    against: str | None = None
    arms: tuple[tuple[str, str], ...] = ()  # more curated manifests, as (name, path)
    test: str | None = None
    init: str | None = None
    pretrained: bool = False
    keep_checkpoints: int = 0
    calibration: float = 0.0
    canaries: CanaryRequest | None = None
    device: str = "auto"
    edits: EditsRequest | None = None  # arms made from scores
    attack: str | None = None  # how test rows are attacked: none, or by default linear models alone
    options: Options = field(default_factory=dict)

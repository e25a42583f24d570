"""What ``evaluate`` is asked to do: which tables to judge, by what truth, and what to train for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from influence_cli.settings import Runtime
from influence_cli.stages.curate.request import CurateRequest


@dataclass(frozen=True)
class EvaluateRequest:
    """Which tables to judge, by what truth, and what to ask."""

    scores: tuple[Any, ...]
    budget: str = "5%"
    manifest: Any = None  # default: where the first table's provenance says
    label: str | None = None
    clean_column: str | None = None  # default: clean_label, where there is one
    known_bad: str | None = None  # a list of ids that are wrong, in place of clean labels
    reference: str | None = None
    draws: int = 1000
    seed: int = 0
    stability: bool = False
    checkpoint: str | None = None  # where the run with canaries is by now; default: where the provenance says
    runtime: Runtime = field(default_factory=Runtime)
    skip_bad: bool = False


@dataclass(frozen=True)
class Training:
    """What flags and settings say of model and recipe: ``said`` overrides the run folder, ``otherwise`` fills in."""

    said: dict[str, Any]
    otherwise: dict[str, Any]
    input_size: int | None = None
    num_classes: int | None = None
    init: str | None = None
    pretrained: bool = False
    device: str = "auto"

    @property
    def model(self) -> str | None:
        """The model that flags and settings name."""
        return self.said.get("model") or self.otherwise.get("model")


@dataclass(frozen=True)
class CounterfactualRequest:
    """What to measure (``lds`` subsets, ``removal`` sizes, ``loo`` rows), and how to train."""

    scores: CurateRequest
    training: Training
    lds: int | None = None
    subset_share: float = 0.5
    removal: tuple[str, ...] = ()
    loo: int | None = None
    brittleness: int | None = None  # target rows
    fixed_divisor: bool | None = None  # None: where the training allows it
    seeds: int = 1
    seed: int = 0
    minutes: float | None = None
    checkpoint: str | None = None
    target: str | None = None
    test: str | None = None
    store: str | None = ".influence"  # None: a temporary store, thrown away

"""What ``evaluate`` is asked to do: which tables to judge, by what truth, and what to train for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from influence_cli.errors import UsageError, nearest
from influence_cli.options import EVALUATE, option
from influence_cli.settings import Runtime, parse_budget, parse_share
from influence_cli.stages.curate.request import CurateRequest

CONVENTIONS = ("loo", "renorm-loo")


def _sizes(text: str, _: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _is_fixed(convention: str, flag: str) -> bool:
    """Whether a convention divides by all rows, with those that are left out."""
    if convention not in CONVENTIONS:
        raise UsageError(f"{flag} {convention!r} is unknown", fix=nearest(convention, list(CONVENTIONS)))
    return convention == "loo"


@dataclass(frozen=True)
class EvaluateRequest:
    """Which tables to judge, by what truth, and what to ask."""

    scores: tuple[Any, ...]
    budget: str = "5%"
    manifest: Any = None  # default: where the first table's provenance says
    label: str | None = None
    clean_column: str | None = option(  # None: clean_label, where there is one
        None, "Column with the true labels.", (EVALUATE,), name="clean_label", text="clean_label", metavar="COLUMN"
    )
    known_bad: str | None = option(None, "Ids that are known to be wrong.", (EVALUATE,), path=True, metavar="FILE")
    reference: str | None = option(
        None, "Compare columns with this one [default: the best].", (EVALUATE,), metavar="COLUMN"
    )
    draws: int = option(1000, "Bootstrap draws.", (EVALUATE,), least=20)
    seed: int = 0
    stability: bool = option(
        False, "How far the tables, of several seeds, agree.", (EVALUATE,), stored=False, after="other_scores"
    )
    flips: str | None = None  # changed texts to look at; default: as the scores were made
    checkpoint: str | None = None  # where the run with canaries is by now; default: where the provenance says
    runtime: Runtime = field(default_factory=Runtime)
    skip_bad: bool = False

    def __post_init__(self) -> None:
        parse_budget(self.budget, None)  # before any table is read


@dataclass(frozen=True)
class Training:
    """Model and recipe by flags and settings: what overrides the run folder, and what stands where it says nothing."""

    overrides: dict[str, Any]
    defaults: dict[str, Any]
    input_size: int | None = None
    num_classes: int | None = None
    class_map: Any = None
    init: str | None = None
    pretrained: bool = False
    raw_features: bool = False
    device: str = "auto"

    @property
    def model(self) -> str | None:
        """The model that flags and settings name."""
        return self.overrides.get("model") or self.defaults.get("model")


@dataclass(frozen=True)
class CounterfactualRequest:
    """What to measure (``lds`` subsets, ``removal`` sizes, ``loo`` rows), and how to train."""

    scores: CurateRequest
    training: Training
    lds: int | None = option(None, "Retrain on this many random subsets: LDS.", (EVALUATE,), least=3, stored=False)
    subset_share: float = option(
        0.5, "Share of the train rows in a subset.", (EVALUATE,), metavar="50%", text="50%", read=parse_share
    )
    removal: tuple[str, ...] = option(
        (), "Retrain without the lowest rows.", (EVALUATE,), metavar="5%,10%", stored=False, read=_sizes
    )
    loo: int | None = option(None, "Retrain without each of this many rows.", (EVALUATE,), least=4, stored=False)
    brittleness: int | None = option(None, "Target rows to flip by retraining.", (EVALUATE,), least=1, stored=False)
    fixed_divisor: bool | None = option(
        None,
        "Divisor of --loo: loo (kept; lbfgs only) or renorm-loo (of the rows left) [default: loo where it can be].",
        (EVALUATE,),
        name="convention",
        read=_is_fixed,
    )
    seeds: int = 1
    seed: int = 0
    max_minutes: float | None = None
    checkpoint: str | None = None
    target: str | None = None
    test: str | None = None
    store: str | None = ".influence"  # None: a temporary store, thrown away

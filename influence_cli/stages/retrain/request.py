"""What ``retrain`` is asked to do: what to train, on what, with which wrong labels planted, compared with what."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any

from influence_cli.errors import UsageError
from influence_cli.options import EVALUATE, PATH, RETRAIN, TRAINS, comma_list, kept_values, option, same_option
from influence_cli.settings import GradSpec, Inputs, Options, parse_share

NOISES = ("confusion", "uniform")
RECORDS = ("epochs", "moments", "none")


def named_arm(text: str, flag: str = "--arm") -> tuple[str, str]:
    """The name and the path in "NAME=PATH".

    Raises:
        UsageError: there are none.
    """
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UsageError(f"{flag} {text!r} cannot be read", fix=f"write {flag} loss=loss-trimmed.parquet")
    return name, path


@dataclass(frozen=True)
class CanaryRequest:
    """How many canaries, and which labels they get."""

    share: float = option(
        MISSING,
        "Share of train rows trained on with a wrong label.",
        (RETRAIN,),
        name="canaries",
        metavar="5%",
        read=parse_share,
    )
    noise: str | None = option(None, "confusion (with --canaries-from) or uniform.", (RETRAIN,), name="canary_noise")
    source: str | None = option(
        None,
        "Draw them as this model errs.",
        (RETRAIN,),
        name="canaries_from",
        path=True,
        metavar="CHECKPOINT",
        after="canaries",
    )

    def __post_init__(self) -> None:
        if self.noise not in (None, *NOISES):
            raise UsageError(f"--canary-noise {self.noise!r} is unknown", fix="confusion or uniform")
        if self.noise == "confusion" and self.source is None:
            raise UsageError("--canary-noise confusion needs a model", fix="pass --canaries-from CHECKPOINT")

    @property
    def kind(self) -> str:
        """The noise that is meant."""
        return self.noise or ("uniform" if self.source is None else "confusion")


MOST_SEEDS = 10_000  # each is a training of every arm, and stands in every table


@dataclass(frozen=True)
class EditsRequest:
    """Which edits to compare: by stored scores, or (``rounds``) by scores made anew between trims."""

    scores: Any = option(
        None,
        "Score table: an arm for every column (--by), --action and --budget.",
        (RETRAIN,),
        path=True,
        metavar="TABLE",
        after="undo",
    )
    budgets: tuple[str, ...] = same_option(("5%",), "budget", comma_list)
    actions: tuple[str, ...] = same_option(("trim",), "action", comma_list)
    by: tuple[str, ...] = ("score",)
    combine: str | None = None  # also the columns combined, by this rule
    options: Options = field(default_factory=dict)
    rounds: int = option(1, "Trim in so many rounds, scoring by --method in between.", (RETRAIN,), least=1)
    spec: GradSpec = field(default_factory=GradSpec)  # what is scored between trims


@dataclass(frozen=True)
class RetrainRequest:
    """What to train, on what, compared with what."""

    inputs: Inputs
    output: str
    against: Any = option(  # a path, or rows in memory
        None, "Manifest before curation; adds arms: no edit and random controls.", (RETRAIN,), **PATH
    )
    arms: tuple[tuple[str, str], ...] = option(
        (),
        "One more curated manifest to compare.",
        (RETRAIN,),
        name="arm",
        kind=list,
        read=named_arm,
        metavar="NAME=PATH",
    )
    test: Any = option(None, "Rows to test on [default: rows with split test].", TRAINS, **PATH)
    init: str | None = option(None, "Checkpoint to start from.", TRAINS, **PATH)
    pretrained: bool = option(False, "Start from the pretrained weights of timm or the hub (downloads).", TRAINS)
    hub: str | None = None  # the model of the hub, at its commit, that was downloaded
    test_required: bool = True  # from Python a training that compares nothing needs no test rows
    raw_features: bool = option(False, "Train linear and mlp on features as they are, not standardised.", TRAINS)
    seeds: int = option(1, "Number of seeds for every arm.", TRAINS, least=1, after="augment")
    seed: int = 0
    keep_checkpoints: int = option(0, "Checkpoints to keep of the first arm and seed.", (RETRAIN,), least=0)
    record: tuple[str, ...] = option(
        (), "What the first arm and seed note: epochs (every row's margin and loss in each), moments (the optimizer's "
        "at kept checkpoints) or none [default: epochs, of what is trained now].", (RETRAIN,), read=comma_list,
    )  # fmt: skip
    folds: int = option(
        0, "Judge every train row by a model trained without it: so many models, of the first arm and seed.",
        (RETRAIN,), least=0,
    )  # fmt: skip
    keep_fold_models: bool = option(False, "Keep the models of --folds, as arms are kept.", (RETRAIN,))
    calibration: float = option(
        0.0, "Share of train rows left out of training, for the gate.", (RETRAIN,), metavar="5%", read=parse_share
    )
    canaries: CanaryRequest | None = None
    device: str = "auto"
    edits: EditsRequest | None = None  # arms made from scores
    attack: str | None = option(
        None,
        "Attack test rows: linear, pgd, fgsm, none [default: linear models, shown with -v].",
        (RETRAIN,),
        after="rounds",
    )
    flips: str | None = option(
        None, "Count predictions that flip with changed test texts: words, or a COLUMN of them.", (RETRAIN, EVALUATE),
        metavar="words|COLUMN",
    )  # fmt: skip
    options: Options = field(default_factory=dict)
    overlap_asked: bool = False  # for what is done with target rows that are train rows: their refusal is the default

    def __post_init__(self) -> None:
        unknown = [name for name in self.record if name not in RECORDS]
        if unknown or ("none" in self.record and len(self.record) > 1):
            named = ",".join(self.record)
            raise UsageError(f"--record {named} cannot be read", fix=f"one of: {', '.join(RECORDS)}")
        if self.folds == 1:
            raise UsageError("--folds 1: a row would be judged by a model of no rows", fix="--folds 5")
        if self.seeds > MOST_SEEDS:
            raise UsageError(f"--seeds {self.seeds} is above {MOST_SEEDS:,}", fix="each is a training of its own")

    @property
    def records_epochs(self) -> bool:
        """Whether what is trained now is to tell of its rows at every epoch."""
        return "none" not in self.record

    @property
    def wants_epochs(self) -> bool:
        """Whether what was trained without telling of its rows is to be trained again."""
        return "epochs" in self.record

    @property
    def wants_moments(self) -> bool:
        """Whether the state of the optimizer is to be kept beside checkpoints."""
        return "moments" in self.record


def asked_of(request: RetrainRequest) -> dict[str, Any]:
    """What ``run.json`` keeps of how rows were read and the model was made, where that is not the default."""
    inputs = request.inputs
    asked = {**kept_values(inputs), "group": inputs.group, "skip_bad": inputs.skip_bad}
    asked |= {"raw_features": request.raw_features, "test": request.test}
    asked |= {"hub": request.hub}
    usual = {"overlap": "refuse", "group": "group"}
    plain = {k: v for k, v in asked.items() if isinstance(v, str | int | float) and v is not False}
    return {k: v for k, v in plain.items() if k != "model" and v != usual.get(k)}

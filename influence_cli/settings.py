"""What a run is asked to do.  ``GradSpec`` changes numbers and is fingerprinted; ``Runtime`` changes only speed."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from dataclasses import MISSING, dataclass
from typing import Any, ClassVar, TypeVar

from influence_cli.errors import UsageError, nearest
from influence_cli.options import (
    CACHE,
    CURATE,
    EVALUATE,
    MANIFEST,
    MODEL,
    NOWHERE,
    PATH,
    RETRAIN,
    RUNS,
    RUNS_AND_EVALUATE,
    RUNS_AND_RETRAIN,
    SCORE,
    WRITING,
    check_choices,
    option,
)

T = TypeVar("T")

RESOLVED = "resolved"  # of a field's metadata: no option
Options = dict[str, dict[str, Any]]  # name of a method, objective or action -> its options

PRECISIONS = ("fp32", "fp64", "bf16")
ENGINES = ("auto", "forward", "layerwise", "double-reverse")
ROWS = ("full", "last", "sketch")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
OVERLAPS = ("refuse", "keep", "drop")


@dataclass(frozen=True)
class Inputs:
    """Where rows and weights come from.  Paths are locators, never part of a fingerprint.

    Through the Python API ``manifest`` and ``target`` may also be rows in memory (see ``rows_in_memory``), and
    ``task`` a model of the user's own.
    """

    kept_in: ClassVar[str] = "model_flags"

    manifest: Any = option(
        MISSING, "Manifest with the payload.", (SCORE, CURATE, EVALUATE), **PATH, kept="manifest.locator"
    )
    target: Any = option(
        None, "Rows the objective is measured on [default: rows with split val].", RUNS_AND_EVALUATE,
        kept="target.locator", **PATH,
    )  # fmt: skip
    fit_rows: Any = option(
        None, "Pin the rows that curvature is fitted on: train rows of this manifest [default: the manifest's own].",
        RUNS, kept="fit_rows.locator", **PATH,
    )  # fmt: skip
    checkpoint: str | None = option(
        None, "Run folder of retrain, .safetensors, or .pt.", RUNS_AND_EVALUATE, **PATH, kept="checkpoint.locator"
    )
    model: str | None = option(None, "timm name, linear, mlp:128,128, hf:FOLDER or python:PKG.MOD:FACTORY.", MODEL)
    features: str | None = option(
        None, "Frozen model whose features knn, outlier and probes compare rows by: a run folder or checkpoint, "
        "hf:FOLDER, or a timm name [default: the model that is scored].", RUNS, "--features",
        name="features_model", metavar="MODEL",
    )  # fmt: skip
    features_checkpoint: str | None = option(
        None, "Weights of --features, where that is a timm name; its last layer is not looked at.", RUNS,
        metavar="FILE", path=True,
    )  # fmt: skip
    features_size: Any = option(  # tuple[int, ...] | None, once made
        None, "Height and width to which images are stretched for --features [default: its own]; at several sizes, "
        "each half of the one before or so, features stand side by side.", RUNS, metavar="N[,N]",
    )  # fmt: skip
    label: str = option("label", "Label column.", WRITING, metavar="COLUMN", kept="manifest.label", joined=(MANIFEST,))
    group: str = option(
        "group", "Column with the groups of fairness.", (MANIFEST, *RUNS_AND_RETRAIN), metavar="COLUMN",
        kept="manifest.group",
    )  # fmt: skip
    skip_bad: bool = option(
        False, "List rows that cannot be used and go on.", (*WRITING, CACHE), stored=False, kept="skip_bad"
    )
    allow_outside: bool = option(
        False, "Rows may name files outside of their manifest's or source's folder.", (*WRITING, CACHE), kept=NOWHERE
    )
    input_size: int | None = option(None, "Height and width of the model's input.", MODEL, least=1)
    num_classes: int | None = option(None, "Number of classes.", MODEL, least=2, after="crop")
    loss: str | None = option(
        None, "Row loss: cross-entropy, squared, huber:DELTA or binary [default: by the labels' task].", MODEL,
        after="params",
    )  # fmt: skip
    max_length: int | None = option(
        None, "Cut texts to so many tokens [default: texts that are longer than the model takes are refused].", MODEL,
        least=4, after="input_size",
    )  # fmt: skip
    class_map: Any = option(  # a path, names in order, or numbers by name
        None, "The checkpoint's classes in its order: FILE, natural, text or checkpoint.", MODEL,
        metavar="FILE", path=True,
    )  # fmt: skip
    mean: Any = option(  # tuple[float, ...] | None, once made
        None, "Mean of the pixels, in [0, 1].", RUNS_AND_RETRAIN, metavar="X[,X,X]", after="input_size"
    )
    std: Any = option(None, "Standard deviation of the pixels.", RUNS_AND_RETRAIN, metavar="X[,X,X]")
    interpolation: str | None = option(
        None, "nearest, bilinear, bicubic or lanczos.", RUNS_AND_RETRAIN, choices=INTERPOLATIONS
    )
    crop: float | None = option(None, "Cut the middle of images of size/X (timm's crop_pct).", RUNS_AND_RETRAIN)
    overlap: str = option(
        "refuse",
        "Target rows that are also train or test rows: refuse (over 1%), keep or drop.",
        RUNS_AND_RETRAIN,
        choices=OVERLAPS,
        after="num_classes",
    )
    allow_overlap: bool = option(False, "", RUNS, kept=NOWHERE, hidden=True)  # what 'drop' was called before
    task: Any = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # text from a flag or a table's provenance, a list from JSON
            value = getattr(self, name)
            if isinstance(value, str | list):
                numbers = parse_numbers(value, f"--{name}") if isinstance(value, str) else tuple(value)
                object.__setattr__(self, name, numbers)
        check_choices(self)
        if self.features_size is not None:
            object.__setattr__(self, "features_size", parse_sizes(self.features_size, "--features-size"))
        if self.allow_overlap:
            if self.overlap == "keep":
                what = "--allow-overlap drops target rows that are train rows, and --overlap keep keeps them"
                raise UsageError(what, fix="leave --allow-overlap out")
            object.__setattr__(self, "overlap", "drop")
        if self.std is not None and not all(s > 0 for s in self.std):
            raise UsageError(f"--std {self.std} is not positive", fix="give standard deviations of pixels in [0, 1]")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise UsageError(f"--crop {self.crop} is not in (0, 1]", fix="give timm's crop_pct, such as 0.875")


@dataclass(frozen=True)
class GradSpec:
    """Everything that changes a score beyond rounding."""

    kept_in: ClassVar[str] = "spec"

    methods: tuple[str, ...] = option(
        ("auto",), "Scoring method; see influence methods.", RUNS_AND_RETRAIN, name="method", after="model"
    )
    objectives: tuple[str, ...] = option(("utility",), "What the scores are about.", RUNS_AND_RETRAIN, name="objective")
    options: Options = option(
        dict, "Option of a method, objective or action.", (*RUNS, CURATE, RETRAIN), name="set", kind=list,
        metavar="NAME.KEY=VALUE",
    )  # fmt: skip
    params: str = option("all", "Parameters to take gradients in: all, linear, last or a glob.", RUNS_AND_RETRAIN)
    precision: str = option("fp32", "fp32, fp64 or bf16.", RUNS_AND_RETRAIN, choices=PRECISIONS)
    seed: int = option(0, "Seed of every random draw.", WRITING, least=0, after="allow_overlap")
    relative: bool = option(False, "Scores over the root of self-influence (RelatIF).", RUNS)
    rows: str | None = option(
        None, "Also store rows' own gradients: full, last (the head's) or sketch.", RUNS, after="params", choices=ROWS
    )
    sketch_dim: int = option(4096, "Most values of a sketched row gradient.", RUNS, least=1)

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.methods or not self.objectives:
            raise UsageError("no method or no objective", fix="pass --method ip --objective utility")
        if self.sketch_dim < 1:
            raise UsageError(f"--sketch-dim {self.sketch_dim} is below 1", fix="pass --sketch-dim 4096")
        if self.rows == "last" and self.params not in ("all", "last"):
            what = f"--rows last takes the head's parameters, --params {self.params} others"
            raise UsageError(what, fix="pass --rows full with --params, or leave --params out")


@dataclass(frozen=True)
class Runtime:
    """How fast and where; never a number beyond rounding."""

    store: str | None = option(  # None: a temporary store, thrown away
        ".influence", "Where results are remembered.", (*RUNS_AND_EVALUATE, CURATE, CACHE), **PATH
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps (speed only).", (*MODEL, CURATE))
    batch_size: int | None = option(
        None, "Rows a batch (scoring: speed only; training: part of the recipe).", MODEL, least=1
    )
    workers: int = option(2, "Threads that decode (speed only).", RUNS_AND_EVALUATE, least=1)
    shard_rows: int = 1024
    engine: str = option(
        "auto", "auto, forward, layerwise or double-reverse (speed only).", RUNS, after="device", choices=ENGINES
    )
    rows_limit: float = option(
        16.0, "GiB of row gradients written without asking.", RUNS, least=0, metavar="GIB", after="sketch_dim"
    )
    code: str | None = None  # the model that this run names, where it is code: a table on the way in may not

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True)
class Limits:
    """How long a run may take and how much it may store, by its plan; ``stages.run.within_limits`` gives things up."""

    kept_in: ClassVar[str] = "limits"

    max_minutes: float | None = option(
        None, "grads, score: give up precision, parameters or rows until the plan takes no longer, and say so. "
        "evaluate: start no training after this; run again to go on.", RUNS_AND_EVALUATE, least=0, after="rows_limit",
        metavar="MINUTES",
    )  # fmt: skip
    max_disk: float | None = option(
        None, "The same for GiB that the run adds to the store.", RUNS, least=0, metavar="GIB"
    )

    @property
    def any(self) -> bool:
        """Whether there is a limit."""
        return self.max_minutes is not None or self.max_disk is not None


def parse_numbers(text: str, flag: str) -> tuple[float, ...]:
    """'0.5,0.5,0.5' as numbers; UsageError where it cannot be read."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{flag} {text!r} cannot be read", fix="write 0.5 or 0.485,0.456,0.406") from error


def parse_sizes(given: Any, flag: str) -> tuple[int, ...]:
    """Sizes as text, numbers or a number, largest first; UsageError where they are none, or one stands twice.

    >>> parse_sizes("128,224", "--features-size"), parse_sizes(96, "--features-size")
    ((224, 128), (96,))
    """
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, list | tuple) else [given]
    try:
        sizes = tuple(sorted((int(part) for part in parts), reverse=True))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{flag} {given!r} cannot be read", fix="write 224 or 224,128") from error
    if len(set(sizes)) < max(1, len(sizes)) or min(sizes) < 1:
        raise UsageError(f"{flag} {given!r} are not different sizes from 1 on", fix="write 224 or 224,128")
    return sizes


def setting(default: Any, help: str, unit: str | None = None, limit: bool = False, later: bool = False) -> Any:
    """A field of a method, an objective or an attack that is an option of it; a ``limit`` changes no number.

    One that came ``later`` is in no name while it has its default, so that names from before it are the same.
    """
    return dataclasses.field(default=default, metadata={"help": help, "unit": unit, "limit": limit, "later": later})


def resolved(default: Any) -> Any:
    """A field that is no option: what a run finds for the method, such as another method that it works with."""
    return dataclasses.field(default=default, metadata={RESOLVED: True})


def option_fields(kind: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a method, an objective or an attack that are options of it."""
    return [f for f in dataclasses.fields(kind) if f.init and not f.metadata.get(RESOLVED)]


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def build_options(kind: type[T], name: str, given: dict[str, Any]) -> T:
    """An instance of the dataclass ``kind`` from options given as text or values; UsageError where one does not fit."""
    hints = _hints(kind)
    known = {f.name: hints[f.name] for f in option_fields(kind)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        field_name = key.replace("-", "_")
        if field_name not in known:
            fix = nearest(key, list(known)) if known else "it has no options"
            raise UsageError(f"{name} has no option {key!r}", fix=fix)
        values[field_name] = _convert(value, known[field_name], f"{name}.{key}", _usual(kind, field_name))
    try:
        return kind(**values)
    except ValueError as error:
        raise UsageError(f"{name}: {error}", fix=f"see: influence methods {name}") from error


def _usual(kind: type, field_name: str) -> Any:
    """The default of an option; None where there is none to name."""
    (default,) = (f.default for f in option_fields(kind) if f.name == field_name)
    return None if default is MISSING else default


def _convert(value: Any, hint: Any, name: str, usual: Any) -> Any:
    arms = typing.get_args(hint)
    words = [word for arm in arms if typing.get_origin(arm) is typing.Literal for word in typing.get_args(arm)]
    if value in words:
        return value
    allowed = [t for t in arms if t is not type(None) and typing.get_origin(t) is not typing.Literal] or [hint]
    if value is None or (value == "none" and type(None) in arms):
        return None
    kind = allowed[0]
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        if kind in (int, float) and not math.isfinite(float(value)):
            raise ValueError("not finite")
        if kind is int and float(value) != int(float(value)):
            raise ValueError("not a whole number")
        return int(float(value)) if kind is int else kind(value)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        if str in allowed and isinstance(value, str):  # a number, or a name
            return value
        names = {int: "a whole number", float: "a number", bool: "true or false"}
        what = " or ".join([names.get(kind, getattr(kind, "__name__", "?")), *words])
        fix = "see: influence methods NAME, or influence guide objectives"
        if usual is not None:
            fix = f"pass --set {name}={str(usual).lower() if kind is bool else usual}, the default, or another"
        raise UsageError(f"{name}={value!r} is not {what}", fix=fix) from error


def parse_budget(text: str, n: int | None, flag: str = "--budget") -> int:
    """'5%' of n rows, rounded down, or a number; UsageError for neither, or outside 0 to n where n is known yet."""
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else None
        rows = int(text) if share is None else int(share * (n or 0) + 1e-9)
    except (ValueError, OverflowError) as error:
        fix = "write 5% or 200"
        if text.strip().lower() == "auto":
            fix += "; `influence curate --budget auto`, in small letters, takes the estimated number of wrong labels"
        raise UsageError(f"{flag} {text!r} is neither a share nor a count", fix=fix) from error
    if n is not None and (not 0 <= rows <= n or (share is not None and not 0 <= share <= 1)):
        raise UsageError(f"{flag} {text} is outside 0 to {n} rows", fix=f"write a share, such as 50%, or at most {n}")
    return rows


def parse_share(text: str, flag: str) -> float:
    """'5%' or 0.05 as a number between 0 and 1; UsageError where it is neither, or outside."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text!r} is no share", fix="write 5%") from error
    if not 0 < value < 1:
        meant = text if 1 < value < 100 and not text.endswith("%") else 5  # 90 for 90%
        raise UsageError(f"{flag} {text} is not between 0 and 100%", fix=f"write {meant}%")
    return value

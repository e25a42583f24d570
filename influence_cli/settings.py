"""What a run is asked to do.  ``GradSpec`` changes numbers and is fingerprinted; ``Runtime`` changes only speed."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from influence_cli.errors import UsageError, nearest

T = TypeVar("T")
Options = dict[str, dict[str, Any]]  # name of a method, objective or action -> its options

PRECISIONS = ("fp32", "fp64", "bf16")
LOSSES = ("cross-entropy",)
ENGINES = ("auto", "forward", "layerwise", "double-reverse")
ROWS = ("full", "last", "sketch")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Inputs:
    """Where rows and weights come from.  Paths are locators, never part of a fingerprint.

    Through the Python API ``manifest`` and ``target`` may also be rows in memory (see ``rows_in_memory``), and
    ``task`` a model of the user's own.
    """

    manifest: Any
    target: Any = None
    checkpoint: str | None = None
    model: str | None = None
    label: str = "label"
    input_size: int | None = None
    num_classes: int | None = None
    allow_overlap: bool = False
    mean: Any = None  # tuple[float, ...] | None, once made
    std: Any = None
    interpolation: str | None = None
    crop: float | None = None
    skip_bad: bool = False
    task: Any = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # text from a flag or a table's provenance, a list from JSON
            value = getattr(self, name)
            if isinstance(value, str | list):
                numbers = parse_numbers(value, f"--{name}") if isinstance(value, str) else tuple(value)
                object.__setattr__(self, name, numbers)
        if self.interpolation is not None and self.interpolation not in INTERPOLATIONS:
            fix = nearest(self.interpolation, list(INTERPOLATIONS))
            raise UsageError(f"--interpolation {self.interpolation!r} is unknown", fix=fix)
        if self.std is not None and not all(s > 0 for s in self.std):
            raise UsageError(f"--std {self.std} is not positive", fix="give standard deviations of pixels in [0, 1]")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise UsageError(f"--crop {self.crop} is not in (0, 1]", fix="give timm's crop_pct, such as 0.875")

    group: str = "group"  # column with the groups that fairness is about
    fit_rows: str | None = None  # manifest whose train rows curvature is fitted on; None: the run's own


@dataclass(frozen=True)
class GradSpec:
    """Everything that changes a score beyond rounding."""

    methods: tuple[str, ...] = ("ip",)
    objectives: tuple[str, ...] = ("utility",)
    options: Options = field(default_factory=dict)
    params: str = "all"
    loss: str = "cross-entropy"
    precision: str = "fp32"
    seed: int = 0
    relative: bool = False  # scores over the root of a row's self-influence
    rows: str | None = None  # rows' own gradients to store: whole, of the head alone, or sketched
    sketch_dim: int = 4096  # most values of a sketched gradient

    def __post_init__(self) -> None:
        for name, value, known in (
            ("--precision", self.precision, PRECISIONS),
            ("--loss", self.loss, LOSSES),
            ("--rows", ROWS[0] if self.rows is None else self.rows, ROWS),
        ):
            if value not in known:
                raise UsageError(f"{name} {value!r} is unknown", fix=nearest(value, list(known)))
        if not self.methods or not self.objectives:
            raise UsageError("no method or no objective", fix="pass --method ip --objective utility")
        if self.sketch_dim < 1:
            raise UsageError(f"--sketch-dim {self.sketch_dim} is below 1", fix="pass --sketch-dim 4096")
        if self.rows == "last" and self.params not in ("all", "last"):
            raise UsageError(
                f"--rows last takes the head's parameters, --params {self.params} others",
                fix="pass --rows full with --params, or leave --params out",
            )


@dataclass(frozen=True)
class Runtime:
    """How fast and where; never a number beyond rounding."""

    store: str | None = ".influence"  # None: a temporary store, thrown away
    device: str = "auto"
    batch_size: int | None = None
    workers: int = 2
    shard_rows: int = 1024
    engine: str = "auto"  # how derivatives are taken: every engine gives the same numbers
    rows_limit: float = 16.0  # GiB of rows' own gradients that are written without asking
    code: str | None = None  # the model that this run names, where it is code: a table on the way in may not

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(f"--engine {self.engine!r} is unknown", fix=nearest(self.engine, list(ENGINES)))


def parse_numbers(text: str, flag: str) -> tuple[float, ...]:
    """'0.5,0.5,0.5' as numbers.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{flag} {text!r} cannot be read", fix="write 0.5 or 0.485,0.456,0.406") from error


def build_options(kind: type[T], name: str, given: dict[str, Any]) -> T:
    """An instance of the dataclass ``kind`` from options given as text or as values.

    Raises:
        UsageError: an unknown option, or a value that does not fit its field.
    """
    hints = typing.get_type_hints(kind)
    known = {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for key, value in given.items():
        field_name = key.replace("-", "_")
        if field_name not in known:
            fix = nearest(key, list(known)) if known else "it has no options"
            raise UsageError(f"{name} has no option {key!r}", fix=fix)
        values[field_name] = _convert(value, known[field_name], f"{name}.{key}")
    try:
        return kind(**values)
    except ValueError as error:
        raise UsageError(f"{name}: {error}", fix=f"see: influence methods {name}") from error


def _convert(value: Any, hint: Any, name: str) -> Any:
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
        what = " or ".join([_kind_name(kind), *words])
        raise UsageError(f"{name}={value!r} is not {what}", fix="see: influence methods NAME") from error


def _kind_name(kind: Any) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, getattr(kind, "__name__", "?"))


def parse_budget(text: str, n: int, flag: str = "--budget") -> int:
    """'5%' of n rows, rounded down, or a number of rows.

    Raises:
        UsageError: neither, or outside 0 to n.
    """
    try:
        rows = int(float(text[:-1]) / 100 * n + 1e-9) if text.endswith("%") else int(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{flag} {text!r} is neither a share nor a count", fix="write 5% or 200") from error
    if not 0 <= rows <= n:
        raise UsageError(f"{flag} {text} is outside 0 to {n} rows", fix="write 5% or 200")
    return rows


def parse_share(text: str, flag: str) -> float:
    """'5%' or 0.05 as a number between 0 and 1.

    Raises:
        UsageError: it is neither, or outside.
    """
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text!r} is no share", fix="write 5%") from error
    if not 0 < value < 1:
        raise UsageError(f"{flag} {text} is not between 0 and 100%", fix="write 5%")
    return value

"""The table of requests: every option of every command is a field of one of these dataclasses.

Those of the stages stand beside the stages; what is about the command line alone is here.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass, replace

from influence_cli.data.request import Columns, IngestRequest
from influence_cli.errors import UsageError, nearest
from influence_cli.model.train.recipe import Recipe
from influence_cli.options import (
    CACHE,
    CURATE,
    EVALUATE,
    EVERY,
    GRADS,
    MANIFEST,
    METHODS,
    PATH,
    RETRAIN,
    RUNS_AND_EVALUATE,
    SCORE,
    SHOWING,
    STAGES,
    TRAINS,
    WRITING,
    Option,
    in_order,
    option,
)
from influence_cli.report.gate import FORMATS as FORMATS_OF_VERDICTS
from influence_cli.settings import GradSpec, Inputs, Limits, Runtime
from influence_cli.stages.curate.request import CurateRequest, ExportRequest, GateRequest
from influence_cli.stages.evaluate.request import CounterfactualRequest, EvaluateRequest
from influence_cli.stages.retrain.request import CanaryRequest, EditsRequest, RetrainRequest
from influence_cli.stages.score.explain_request import ExplainRequest
from influence_cli.stages.score.tokens.request import TokenRequest


@dataclass(frozen=True)
class ScoreOptions:
    """What the table of ``score`` holds."""

    per_member: bool = option(False, "Also each member's scores.", (SCORE,), after="relative")
    per_target: bool = option(False, "Most helpful and harmful rows of each target row.", (SCORE,), stored=False)
    top: int = option(10, "--per-target, --tokens and --explain: rows of each side.", (SCORE,), least=1)
    combine: str | None = None


@dataclass(frozen=True)
class StoreOptions:
    """Whether there is a store, and which manifests ``cache`` is about."""

    store: str = ".influence"
    keep: tuple[str, ...] = option(
        (), "gc: drop rows of no such manifest.", (CACHE,), metavar="MANIFEST", stored=False, after="store"
    )
    no_store: bool = option(False, "Use a temporary store and throw it away.", (*RUNS_AND_EVALUATE, CURATE))
    skip_bad: bool = False

    @property
    def place(self) -> str | None:
        """The folder of the store; None for a temporary one."""
        return None if self.no_store else self.store


@dataclass(frozen=True)
class CurateOutputs:
    """What ``curate`` writes beside the curated manifest, or in its place."""

    edits: str | None = option(None, "Write the decisions alone to this table.", (CURATE,), **PATH, after="subject_to")
    undo: bool = option(
        False, "Take edits back: SCORES is a table of edits, --manifest the curated manifest.", (CURATE,), stored=False
    )
    check: bool = option(
        False, "Be a gate: decide, write nothing, exit 0 or 1.", (CURATE,), stored=False, after="url_prefix"
    )
    write_baseline: str | None = option(
        None, "Accept the rows as they are: write their keys.", (CURATE,), **PATH, after="baseline"
    )
    threshold: float | None = None
    export: str | None = None

    @property
    def gate(self) -> bool:
        """Whether rows are judged or accepted, and none is edited."""
        return self.check or self.threshold is not None or bool(self.write_baseline)


@dataclass(frozen=True)
class RetrainOptions:
    """Whether ``retrain`` plants canaries, and what it makes of the comparison."""

    canaries: str | None = None
    require_improvement: bool = option(
        False, "Exit 1 unless curated beats no edit and every control.", (RETRAIN,), stored=False, after="canary_noise"
    )


@dataclass(frozen=True)
class EvaluateOptions:
    """Which question ``evaluate`` is asked; those of its own are asked alone."""

    other_scores: str | None = option(
        None, "Compare with this table alone.", (EVALUATE,), "--against", stored=False, after="draws"
    )
    sentinel: str | None = option(
        None,
        "Score this share at --checkpoint: is a recompute needed?",
        (EVALUATE,),
        stored=False,
        metavar="1%",
        after="stability",
    )
    duplicates: str | None = option(
        None,
        "Near-duplicates up to this share of the usual distance to the nearest row (or this distance), and leaks.",
        (EVALUATE,),
        stored=False,
        metavar="10%",
        after="sentinel",
    )
    budget: str = "5%"
    draws: int = 1000
    seed: int = 0
    stability: bool = False
    checkpoint: str | None = None
    model: str | None = None
    lds: int | None = None
    removal: str | None = None
    loo: int | None = None
    brittleness: int | None = None

    @property
    def by_retraining(self) -> bool:
        """Whether anything is asked for that needs trainings."""
        return any(part is not None for part in (self.lds, self.removal, self.loo, self.brittleness))


_TABLE, _FIGURES = ("auto", "table", "json", "jsonl", "csv"), ("auto", "table", "json")
GATE_FORMATS = tuple(FORMATS_OF_VERDICTS)  # of curate --check alone
FORMATS: dict[str, tuple[str, ...]] = {  # by command: a table of rows is printed in more of them than figures are
    **dict.fromkeys((GRADS, SCORE, CURATE), _TABLE),
    **dict.fromkeys((MANIFEST, RETRAIN, EVALUATE, METHODS, CACHE), _FIGURES),
}


@dataclass(frozen=True)
class ResultOptions:
    """Where a command's result goes, and in which form."""

    report: str | None = option(
        None, "Write a self-contained HTML page.", (EVALUATE, RETRAIN, SCORE, CURATE), stored=False, metavar="FILE"
    )
    reasons: int = option(
        100, "--report: rows whose reasons the page shows; 0: of none, so that no model runs.", (SCORE, CURATE)
    )
    plot: str | None = option(None, "Write the figures as one PNG.", (EVALUATE, RETRAIN), stored=False, metavar="FILE")
    log: tuple[str, ...] = option(
        (), "Log the result to mlflow, wandb or tensorboard[:FOLDER] too.", TRAINS, metavar="TRACKER"
    )
    output: str | None = option(
        None, "Write the result here (- for standard output).", WRITING, "-o", "--output", stored=False, **PATH
    )
    format: str = option("auto", "Form of what is printed.", SHOWING, stored=False)  # help: see ``options_of``
    json: bool = option(False, "Short for --format json.", SHOWING, stored=False)
    dry_run: bool = option(False, "Say what would be done, and do nothing.", STAGES, "-n", "--dry-run", stored=False)

    def __post_init__(self) -> None:
        if self.json:
            object.__setattr__(self, "format", "json")

    @property
    def wants_json(self) -> bool:
        """Whether the result is JSON: asked for, or because nobody reads it on a terminal."""
        return self.format == "json" or (self.format == "auto" and not sys.stdout.isatty())

    @property
    def for_people(self) -> bool:
        """Whether the result is a table on a terminal: asked for, or because somebody reads it there."""
        return self.format == "table" or (self.format == "auto" and sys.stdout.isatty())

    def check_format(self, command: str, gate: bool = False) -> None:
        """Refuse a format that the command has not, before any work (UsageError); ``gate`` has some of its own."""
        known = FORMATS[command]
        if self.format in GATE_FORMATS and command == CURATE and not gate:
            what = f"--format {self.format} is for the verdict of a gate"
            raise UsageError(what, fix=f"add --check, or take one of: {', '.join(known)}")
        known = (*known, *(GATE_FORMATS if gate else ()))
        if self.format not in known:
            raise UsageError(f"--format {self.format!r} is unknown here", fix=nearest(self.format, list(known)))


@dataclass(frozen=True)
class ProgramOptions:
    """Which settings are read, and how much is said."""

    config: str | None = option(
        None, "Settings file in place of the nearest influence.toml.", WRITING, stored=False, metavar="PATH"
    )
    isolated: bool = option(False, "Read no settings file.", WRITING, stored=False)
    show_settings: bool = option(False, "Print every setting and where it comes from.", WRITING, stored=False)
    quiet: bool = option(False, "Say nothing but errors.", EVERY, "-q", "--quiet", stored=False)
    verbose: bool = option(False, "Say more.", EVERY, "-v", "--verbose", stored=False)
    debug: bool = option(False, "Show tracebacks.", EVERY, stored=False)
    color: str = option("auto", "auto, always or never.", EVERY, stored=False)

    def __post_init__(self) -> None:
        if self.color not in ("auto", "always", "never"):
            raise UsageError(f"--color {self.color!r} is unknown", fix="auto, always or never")


REQUESTS: tuple[type, ...] = (
    Inputs, GradSpec, Runtime, Limits, StoreOptions, Columns, IngestRequest, ScoreOptions, ExplainRequest, TokenRequest,
    CurateRequest, CurateOutputs, ExportRequest, GateRequest,
    EditsRequest, RetrainRequest, Recipe, CanaryRequest, RetrainOptions,
    CounterfactualRequest, EvaluateRequest, EvaluateOptions, ResultOptions, ProgramOptions,
)  # fmt: skip


def all_options() -> dict[str, Option]:
    """Every option by name, in the order in which people are shown them."""
    return in_order(REQUESTS)


def options_of(command: str) -> list[Option]:
    """The options of a command, in order; --format with the formats that it has."""
    return [
        _format_of(command, o) if o.name == "format" else o for o in all_options().values() if command in o.commands
    ]


def number_form(flags: Collection[str]) -> str | None:
    """How to write the number that an option of one of these flags takes; None of an option that takes none."""
    option = next((o for o in all_options().values() if set(o.flags) & set(flags)), None)
    if option is None or option.kind not in (int, float):
        return None
    kind, example = ("a whole number", "20") if option.kind is int else ("a number", "1.5")
    of = f" of {option.metavar}" if option.metavar in ("MINUTES", "GIB") else ""
    return f"{option.flags[0]} takes {kind}{of} without a unit, as in {option.flags[0]} {example}"


def _format_of(command: str, format: Option) -> Option:
    formats, gate = FORMATS[command], GATE_FORMATS if command == CURATE else ()
    help = f"{', '.join(formats[:-1])} or {formats[-1]}" + (f"; with --check also {', '.join(gate)}" if gate else "")
    return replace(format, help=f"{help}.", choices=(*formats, *gate))

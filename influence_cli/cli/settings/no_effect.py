"""Options that change nothing beside the others given: refused, since whoever gives one expects it to count.

Only flags are refused.  A settings file or the environment may hold what another command, or another run, takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from influence_cli.errors import UsageError
from influence_cli.model.train.recipe import LBFGS, Recipe
from influence_cli.options import CURATE, EVALUATE, EVERY, GRADS, RETRAIN, SCORE, TRAINS, options_in

_RECIPE = tuple(o.name for o in options_in(Recipe))
_TRUTH = ("clean_label", "known_bad", "reference")  # of detection
_SCORING = ("method", "objective", "params", "precision")
_EXPORTS = ("export_as", "link", "url_prefix")
_CANARIES = ("target_recall", "max_false")
_EDITS = ("action", "budget", "maximise", "subject_to", *_CANARIES, "bins", "review_budget")
_GATE = ("check", "threshold", "write_baseline")  # any of them: nothing is edited
_JUDGING = ("max_flagged", "max_flagged_per", "baseline", "accepted_manifest")
_CHECK = "add --check, or leave it out"
OF_METHODS = ("per_member", "fit_rows", "features_model")  # which have an effect with some methods alone (set_options)
_RETRAINING = ("lds", "removal", "loo", "brittleness")


class Settings(Protocol):
    """What a rule looks at: the values of a command's options, and who gave them."""

    command: str
    values: dict[str, Any]
    origins: dict[str, str]


@dataclass(frozen=True)
class Rule:
    """The options that have no effect where ``where`` holds, and what to do about it."""

    commands: tuple[str, ...]
    names: tuple[str, ...]
    where: Callable[[Settings], bool]
    what: str
    fix: str = "leave it out"


def _has(*names: str) -> Callable[[Settings], bool]:
    """Whether any of these is given, or set."""
    return lambda settings: any(settings.values.get(name) not in (None, False, []) for name in names)


def _lacks(*names: str) -> Callable[[Settings], bool]:
    return lambda settings: not _has(*names)(settings)


def _optimizer(*names: str) -> Callable[[Settings], bool]:
    """Whether it is one of these for sure: ``evaluate`` takes that of the run folder where no flag says."""
    return lambda s: s.values["optimizer"] in names and (s.command == RETRAIN or s.origins["optimizer"] == "flag")


def _stored_nowhere(settings: Settings) -> bool:
    """Whether anybody but a flag says that nothing is to be kept; of two flags the later thought, not to, holds."""
    return _has("no_store")(settings) and settings.origins.get("no_store") != "flag"


def _writes_baseline_alone(settings: Settings) -> bool:
    return _has("write_baseline")(settings) and not settings.values["check"]


def _needs_no_model(settings: Settings) -> bool:
    """Whether ``curate`` reads a table alone."""
    return _lacks(*_CANARIES, "bins", "report")(settings) and settings.values["by"] != ["auto"]


def _other_than(name: str, *values: str) -> Callable[[Settings], bool]:
    """Whether a flag gives an option another value than these."""
    return lambda settings: settings.origins.get(name) == "flag" and settings.values[name] not in values


RULES = (
    Rule(EVERY, ("format",), lambda s: _has("json")(s) and s.values["format"] != "json", "and --json contradict"),
    Rule(EVERY, ("verbose",), _has("quiet"), "and --quiet contradict"),
    Rule(
        *((GRADS, SCORE, EVALUATE), ("store",), _stored_nowhere, "and --no-store contradict"),
        *("leave one of the two out; no_store may stand in a settings file, or be INFLUENCE_NO_STORE",),
    ),
    Rule(EVERY, ("config",), _has("isolated"), "names a settings file, and --isolated reads none"),
    Rule((GRADS, SCORE), ("allow_overlap",), _other_than("overlap", "drop"), "means --overlap drop, which contradicts"),
    Rule(
        *((GRADS, SCORE), ("features_checkpoint", "features_size"), _lacks("features_model")),
        *("is about another model than the one that is scored", "add --features MODEL, or leave it out"),
    ),
    Rule((GRADS, SCORE), ("sketch_dim",), lambda s: s.values["rows"] != "sketch", "is about --rows sketch"),
    Rule(
        *((SCORE,), ("top",), _lacks("per_target", "tokens", "explain"), "is about pairs of rows, or tokens"),
        "add --per-target, --tokens or --explain ID, or leave it out",
    ),
    Rule((SCORE,), ("top",), _has("row_id"), "is about the most helpful and harmful rows, and --row-id names others"),
    Rule(
        *((SCORE,), ("decomposition", "row_id"), _lacks("tokens"), "is about tokens"),
        "add --tokens, or leave it out",
    ),
    Rule(
        *((SCORE,), ("max_minutes", "max_disk"), _has("per_target", "explain", "tokens")),
        "is about one score a row, and these tables are about pairs of rows, or tokens",
    ),
    Rule((SCORE,), ("report",), _has("per_target"), "shows rows, and --per-target makes pairs of rows"),
    Rule((SCORE, CURATE), ("reasons",), _lacks("report"), "is about a page", "add --report FILE, or leave it out"),
    Rule((CURATE,), ("report", "decisions"), _has(*_GATE), "is about edits, and a gate makes none"),
    Rule((CURATE,), ("report", "decisions"), _has("undo"), "is about new edits, and --undo takes old ones back"),
    Rule((CURATE,), (*_EDITS, "combine"), _has("decisions"), "chooses rows by scores, and --decisions names them"),
    Rule(
        (CURATE,),
        ("edits", "export"),
        _has(*_GATE),
        "contradicts: a gate decides and writes nothing",
        "leave --edits and --export out, or --check",
    ),
    Rule((CURATE,), (*_EDITS, *_EXPORTS), _has(*_GATE), "is about edits, and a gate makes none"),
    Rule((CURATE,), _JUDGING, _lacks("check", "threshold"), "is about the gate", _CHECK),
    Rule((CURATE,), ("false_flag", "fdr"), _lacks("check"), "is about the gate", _CHECK),
    Rule(
        (CURATE,), ("threshold",), _writes_baseline_alone, "is about the gate, which only writes its baseline", _CHECK
    ),
    Rule(
        (CURATE,),
        ("false_flag", "fdr"),
        _has("threshold"),
        "is a rate among calibration rows, and --threshold needs none",
    ),
    Rule((CURATE,), ("false_flag",), _has("fdr"), "and --fdr are two rates", "give one of the two"),
    Rule((CURATE,), ("review_budget",), _lacks("bins"), "is about bins", "add --bins FILE, or leave it out"),
    Rule(
        *((CURATE,), ("device",), _needs_no_model, "is about a model, and none is run"),
        "add --report FILE, --target-recall 90%, --max-false 10% or --by auto, or leave it out",
    ),
    Rule((CURATE,), _EXPORTS, _lacks("export"), "is about an export", "add --export PATH, or leave it out"),
    Rule((CURATE,), ("link",), _other_than("export_as", "folder"), "is about images of an exported folder"),
    Rule((CURATE,), ("url_prefix",), _other_than("export_as", "label-studio"), "is about --export-as label-studio"),
    Rule((CURATE,), (*_EDITS, "by", "combine"), _has("undo"), "is about new edits, and --undo takes old ones back"),
    Rule((CURATE,), ("write_baseline",), _has("undo"), "accepts rows, and --undo takes edits back"),
    Rule(TRAINS, ("momentum", "schedule", "lr", "epochs"), _optimizer(LBFGS), "has no meaning with --optimizer lbfgs"),
    Rule((RETRAIN,), ("batch_size", "record"), _optimizer(LBFGS), "has no meaning with --optimizer lbfgs"),
    Rule((RETRAIN,), ("keep_fold_models",), _lacks("folds"), "is about --folds", "add --folds 5, or leave it out"),
    Rule(TRAINS, ("momentum",), _optimizer("adamw"), "is of sgd, and the optimizer is adamw"),
    Rule(TRAINS, ("pretrained",), _has("init"), "and --init are two starts", "give one of the two"),
    Rule((RETRAIN,), ("raw_features",), _has("init"), "has no effect with --init, which says how features are taken"),
    Rule(
        *((RETRAIN,), _SCORING, lambda s: s.values["rounds"] == 1),
        *("is about scores made between rounds", "add --rounds 4, or leave it out"),
    ),
    Rule(
        *((EVALUATE,), (*_RECIPE, "init", "pretrained", "raw_features", "test", "seeds", "target", "max_minutes")),
        *(_lacks(*_RETRAINING), "is about trainings", "add --lds, --removal, --loo or --brittleness, or leave it out"),
    ),
    Rule(
        *((EVALUATE,), ("flips",), _has(*_RETRAINING, "other_scores", "sentinel")),
        *("is about the model that was scored, and this question is about another", "ask one question at a time"),
    ),
    Rule(
        *((EVALUATE,), ("budget", "draws", "seed", "plot"), _has("duplicates")),
        *(
            "is about score columns, and --duplicates looks at rows alone",
            "leave it out, or ask one question at a time",
        ),
    ),
    Rule((EVALUATE,), ("convention",), _lacks("loo"), "is about --loo", "add --loo 50, or leave it out"),
    Rule((EVALUATE,), ("subset_share",), _lacks("lds"), "is about --lds", "add --lds 100, or leave it out"),
    Rule(
        *((EVALUATE,), _TRUTH, _has(*_RETRAINING, "other_scores", "sentinel", "duplicates")),
        *("is about rows known to be wrong, and this question is about none", "ask one question at a time"),
    ),
)


def refuse_no_effect(settings: Settings, flags: dict[str, str]) -> None:
    """Refuse a flag that changes nothing (UsageError); ``flags`` are the options' own by name."""
    for rule in RULES:
        for name in rule.names:
            if settings.command in rule.commands and settings.origins.get(name) == "flag" and rule.where(settings):
                raise UsageError(f"{flags[name]} {rule.what}", fix=rule.fix)

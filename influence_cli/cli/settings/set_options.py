"""Flags that methods, objectives and actions give a meaning: ``--set``, ``--per-member`` and others.

What ``--set`` gives is known to what it names, of its type, and asked for.  What a settings file holds for others is
for other runs; a flag is meant for this one.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any, Protocol, cast

from influence_cli.cli.settings.no_effect import OF_METHODS
from influence_cli.errors import UsageError
from influence_cli.options import CURATE, RETRAIN
from influence_cli.settings import build_options

if TYPE_CHECKING:
    from influence_cli.methods import Method
    from influence_cli.methods.shapes.preconditioned import Preconditioned


class Settings(Protocol):
    """What is looked at: the values of a command's options, who gave them, and options by whose they are."""

    command: str
    values: dict[str, Any]
    origins: dict[str, str]
    options: dict[str, dict[str, Any]]


OF_FEATURES = "features"  # the quantity that such methods need
_SCORED = {"method": "--method", "objective": "--objective", "action": "--action"}


def check_set(settings: Settings, given: dict[str, str]) -> None:
    """Refuse an option of ``given``, by whose it is and with its own words, that is unknown, wrong, or changes nothing.

    Raises:
        UsageError: there is one.
    """
    for name in given:
        build_options(_kind(name), name, settings.options[name])
    used = _in_use(settings)
    for name, text in given.items():
        if name not in used:
            flag = _flag(name, settings)
            what = f"--set {text} has no effect: {name} is not asked for"
            raise UsageError(what, fix=f"add {flag}, or leave it out" if flag else "leave it out")
        if name == "auto" and (about := _of_effects(settings)):
            what = f"--set {text} has no effect: options of auto are about wrong labels, and it is about {about} here"
            raise UsageError(what, fix="leave it out, or name the method: --method ip")


def _kind(name: str) -> type[Any]:
    """The class whose fields are the options of a method, objective, action or the combination of columns."""
    from influence_cli.actions import ACTIONS
    from influence_cli.methods import METHODS
    from influence_cli.objectives import OBJECTIVES, load_objective
    from influence_cli.stages.score.combine import Combine

    if name in METHODS:
        return METHODS[name].load()
    if name in OBJECTIVES:
        return load_objective(name)
    return pkgutil.resolve_name(ACTIONS[name]) if name in ACTIONS else Combine


def _in_use(settings: Settings) -> set[str]:
    """The methods, objectives, actions and combination that a command with these settings takes options of."""
    values = settings.values
    scores = settings.command != CURATE and (settings.command != RETRAIN or values["rounds"] > 1)
    used: set[str] = {*_listed(values.get("action"))}
    if scores:
        methods = _listed(values.get("method"))
        used |= {*methods, *_listed(values.get("objective")), *_solvers(settings, methods)}
    if settings.command == RETRAIN:
        used |= {"trim", "robustness"}  # of rounds, and of test rows under attack
    if settings.command in (CURATE, RETRAIN) or values.get("combine") is not None:
        used.add("combine")
    return used


def _of_effects(settings: Settings) -> str:
    """What ``auto`` estimates effects on, where what is asked says so and not what the rows are; else nothing."""
    from influence_cli.methods.auto import UTILITY

    objectives = _listed(settings.values.get("objective"))
    if objectives and objectives != [UTILITY]:
        return ", ".join(objectives)
    return next((f"{n.replace('_', ' ')} scores" for n in ("relative", "per_target") if settings.values.get(n)), "")


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _solvers(settings: Settings, methods: list[str]) -> set[str]:
    """The methods with curvature that values of rows are taken with, or whose factors these or others work with."""
    found: set[str] = set()
    made = _made(settings, methods)
    for method in made:
        try:
            value = method.row_value(bool(settings.values.get("relative")) and method.needs == "tangents")
        except UsageError:
            continue  # said where values are asked for
        if value is not None and value.solver is not None:
            found.add(value.solver)
    fitted = [m for m in (*made, *_made(settings, sorted(found))) if m.fitted_curvature]
    return found | {name for m in fitted if (name := cast("Preconditioned", m).helper()) is not None}


def _made(settings: Settings, methods: list[str]) -> list[Method]:
    """The methods of these names, with their options; unknown names are said where methods are made."""
    from influence_cli.methods import METHODS

    known = [name for name in methods if name in METHODS]
    return [build_options(METHODS[name].load(), name, settings.options.get(name, {})) for name in known]


def check_methods(settings: Settings) -> None:
    """Refuse flags about members, fit rows and another model's features where no method has any (UsageError)."""
    from influence_cli.methods import Method

    given = [n for n in OF_METHODS if settings.origins.get(n) == "flag" and settings.values[n]]
    if not given:
        return
    names = _listed(settings.values["method"])
    made, called = _made(settings, names), ", ".join(names)
    further = any(method.trains for method in made)  # which has members or chains, and is on the fit rows
    alone = not further and all(type(method).places is Method.places for method in made)
    if "per_member" in given and alone and not settings.values.get("per_target"):
        what = f"--per-member has no effect: {called} has no members beside the checkpoint"
        raise UsageError(what, fix="add --method ip-ensemble, or leave it out")
    fitted = further or any(m.fitted_curvature for m in made)
    if "fit_rows" in given and not fitted and not _solvers(settings, names):
        what = f"--fit-rows has no effect: {called} fits no curvature"
        raise UsageError(what, fix="add --method ekfac, or leave it out")
    if "features_model" in given and not _look_at_features(settings, made):
        what = f"--features has no effect: {called} looks at no features"
        raise UsageError(what, fix="add --method auto, or leave it out")


def _look_at_features(settings: Settings, made: list[Method]) -> bool:
    """Whether a method, or reasons for scores, compare rows by features; ``auto`` does so for utility alone."""
    from influence_cli.methods.auto import UTILITY, Auto

    wrong_labels = _listed(settings.values["objective"]) == [UTILITY]
    reasons = any(settings.values.get(name) for name in ("report", "explain"))
    return reasons or any(m.needs == OF_FEATURES and (wrong_labels or not isinstance(m, Auto)) for m in made)


def _flag(name: str, settings: Settings) -> str | None:
    """The flag that asks for it, where the command has one that does."""
    from influence_cli.actions import ACTIONS
    from influence_cli.methods import METHODS
    from influence_cli.objectives import OBJECTIVES

    if settings.command == RETRAIN and name not in ACTIONS:
        return "--rounds 4"
    for option, table in (("method", METHODS), ("objective", OBJECTIVES), ("action", ACTIONS)):
        if name in table and option in settings.values:
            return f"{_SCORED[option]} {name}"
    return "--combine ranksum" if name == "combine" else None

"""Settings: flags, then INFLUENCE_*, then a table's provenance, then the nearest settings file, then defaults.

The nearest ``influence.toml``, or ``pyproject.toml`` with ``[tool.influence]``, wins whole: parents are not merged.
A key at its top applies to every command that has it; ``[score]`` to that command alone; ``[method.NAME]``,
``[objective.NAME]`` and ``[action.NAME]`` hold options.  Relative paths count from the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from influence_cli.cli.settings.no_effect import OF_METHODS, refuse_no_effect
from influence_cli.cli.settings.requests import all_options, options_of
from influence_cli.cli.settings.settings_file import SettingsFile, check_option_names, read_file, value_in_file
from influence_cli.errors import UsageError, shell_line
from influence_cli.options import GRADS, RETRAIN, SCORE, Option, build_request, options_in

T = TypeVar("T")
Values = dict[str, Any]  # by the names of options
_OF_ONE_RUN = (
    "output",
    "dry_run",
    "format",
    "json",
    "quiet",
    "verbose",
    "debug",
    "color",
    "show_settings",
    "report",
    "plot",
    "log",
)
_TRUTH = {"1": True, "true": True, "0": False, "false": False, "": False}


@dataclass
class Settings:
    """Resolved values of one command, each with its origin; a command reads them as requests."""

    command: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)  # method, objective or action -> options
    source: str | None = None  # the positional argument
    more: tuple[str, ...] = ()  # what stands after it, where a command takes several
    file: Path | None = None  # the settings file that was read

    def put(self, name: str, value: Any, origin: str) -> None:
        """Set a value with its origin."""
        self.values[name], self.origins[name] = value, origin

    def make(self, kind: type[T], **more: Any) -> T:
        """A request from these settings; ``more`` are values of its fields that settings do not say."""
        return build_request(kind, {**self.values, "set": self.options, "options": self.options}, **more)

    def explicit(self, name: str) -> bool:
        """Whether a flag or the environment says so, not a file or a default."""
        return self.origins[name] in ("flag", "environment")

    def repeated(self, *leave_out: str) -> list[str]:
        """The words of the command line that gave these settings, but for options of one run and those left out."""
        every = [option.name for option in options_of(self.command)]
        return self.repeated_of(*(name for name in every if name not in (*leave_out, *_OF_ONE_RUN)))

    def repeated_of(self, *names: str) -> list[str]:
        """The words of the command line that gave these options; nothing for those that no flag gave."""
        words: list[str] = []
        for option in options_of(self.command):
            if option.name not in names or self.origins.get(option.name) != "flag":
                continue
            value = self.values[option.name]
            for one in value if isinstance(value, list) else [value]:
                words += [option.flags[0]] if one is True else [option.flags[0], str(one)]
        return words

    def every_word(self) -> list[str]:
        """All options of the command line, to run the same command again."""
        return self.repeated_of(*(option.name for option in options_of(self.command)))

    def decisive(self, *apart: type) -> Values:
        """The values of all options that are not at their default, but for those of the requests ``apart``."""
        left_out = {option.name for request in apart for option in options_in(request)}
        return {name: v for name, v in self.values.items() if name not in left_out and self.origins[name] != "default"}

    def command_line(self) -> str:
        """The command as it can be run again, by what stands on the command line."""
        words = ["influence", self.command, *filter(None, (self.source, *self.more)), *self.every_word()]
        return shell_line(words)

    def chosen(self, name: str) -> Any:
        """The value that anybody gives; None for the default."""
        return None if self.origins[name] == "default" else self.values[name]

    def insisted(self, name: str) -> Any:
        """The value that a flag or the environment gives; None where neither does."""
        return self.values[name] if self.explicit(name) else None


def resolve(command: str, given: Values, source: str | None, carried: Values | None = None) -> Settings:
    """Settings; ``carried`` is what a table's provenance says.  UsageError for unknown keys and wrong types."""
    options, carried = options_of(command), carried or {}
    file = SettingsFile()
    if not given.get("isolated") and any(o.stored for o in options):
        file = read_file(given.get("config"), command)
    settings = Settings(command, source=source, file=file.path)
    for option in options:
        _settle(settings, option, given, carried, file)
    _check_store(settings)
    refuse_no_effect(settings, {o.name: o.flags[-1] for o in options})
    if settings.source is None and command in (GRADS, SCORE, RETRAIN):
        _find_source(settings, file)
    for table in (file.options, carried.get("options", {})):
        for name, values in table.items():
            settings.options[name] = {**settings.options.get(name, {}), **values}
    _apply_set(settings)
    if any(settings.origins.get(name) == "flag" for name in OF_METHODS):
        from influence_cli.cli.settings.set_options import check_methods  # which looks at methods

        check_methods(settings)
    return settings


def _settle(settings: Settings, option: Option, given: Values, carried: Values, file: SettingsFile) -> None:
    """Set one value, from the weakest to the strongest of those who say it."""
    name, variable = option.name, f"INFLUENCE_{option.name.upper()}"
    settings.put(name, option.default, "default")
    if option.stored and name in file.keys:
        settings.put(name, value_in_file(option, file.keys[name], file.path), str(file.path))
    same_model = name == "model" and settings.values[name] == carried.get("model")
    if carried.get(name) is not None and not same_model:  # a file of settings may name code, data may not
        value = carried[name]
        settings.put(name, list(value) if isinstance(value, tuple) else value, "provenance")
    if option.stored and variable in os.environ:
        settings.put(name, _from_text(option, os.environ[variable], variable), "environment")
    if given.get(name) not in (None, []):
        settings.put(name, given[name], "flag")
    _check_range(option, settings.values[name])


def _find_source(settings: Settings, file: SettingsFile) -> None:
    """The manifest, where no argument names it."""
    if "INFLUENCE_MANIFEST" in os.environ:
        settings.source, settings.origins["MANIFEST"] = os.environ["INFLUENCE_MANIFEST"], "environment"
    elif "manifest" in file.keys:
        settings.source = value_in_file(all_options()["manifest"], file.keys["manifest"], file.path)
        settings.origins["MANIFEST"] = str(file.path)


def _check_store(settings: Settings) -> None:
    """Refuse a store without a name: it would be the folder one happens to be in."""
    if settings.values.get("no_store") or settings.values.get("store", ".").strip():
        return
    where = {"flag": "--store", "environment": "INFLUENCE_STORE"}.get(settings.origins["store"])
    fix = "pass --store PATH, or take the empty one out"
    raise UsageError("the store has an empty name", where=where or settings.origins["store"], fix=fix)


def _check_range(option: Option, value: Any) -> None:
    """Refuse numbers that no stage can mean: below the least, not finite, or beyond 63 bits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low = option.least is not None and value < option.least
    if low or not abs(value) < 2**63:  # also false for nan
        least = "" if option.least is None else f" of at least {option.least:g}"
        raise UsageError(f"{option.flags[-1]} {value} is out of range", fix=f"give a finite number{least}")


def _apply_set(settings: Settings) -> None:
    """Put what ``--set`` says over the options of settings file and provenance."""
    given: dict[str, str] = {}
    for text in settings.values.get("set", []):
        left, equals, value = text.partition("=")
        name, dot, key = left.rpartition(".")
        if not equals or not key:
            raise UsageError(f"--set {text!r} cannot be read", fix="write --set ip-ensemble.members=10")
        if not dot:
            named: list[str] = settings.values["method"] if "method" in settings.values else [settings.values["action"]]
            if len(named) != 1:
                fix = f"write --set {named[0]}.{text}"
                raise UsageError(f"--set {text!r} does not say whose option it is", fix=fix)
            name = named[0]
        check_option_names([name], f"--set {text}")
        settings.options.setdefault(name, {})[key.replace("-", "_")] = value
        given.setdefault(name, text)
    if settings.origins.get("set") == "flag":
        from influence_cli.cli.settings.set_options import check_set

        check_set(settings, given)


def _from_text(option: Option, text: str, variable: str) -> Any:
    """The value of an environment variable."""
    if option.kind is list:
        return [part for part in text.split(",") if part]
    try:
        return _TRUTH[text.lower()] if option.kind is bool else option.kind(text)
    except (ValueError, KeyError) as error:
        what = f"{variable}={text!r} is not of type {option.kind.__name__}"
        raise UsageError(what, fix=f"unset {variable}") from error

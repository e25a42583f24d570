"""Settings from flags, then INFLUENCE_*, then a table's provenance, then the nearest settings file, then defaults.

The nearest ``influence.toml``, or ``pyproject.toml`` with ``[tool.influence]``, wins whole: parents are not merged.
A key at its top applies to every command that has it; ``[score]`` to that command alone; ``[method.NAME]``,
``[objective.NAME]`` and ``[action.NAME]`` hold options.  Relative paths count from the file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from influence_cli.cli.settings.options import SETTINGS, STAGES, Setting, settings_of
from influence_cli.errors import UsageError, nearest

OPTION_TABLES = ("method", "objective", "action")


@dataclass
class Settings:
    """Resolved values of one command, each with its origin."""

    command: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)  # method, objective or action -> options
    source: str | None = None  # the positional argument
    more: tuple[str, ...] = ()  # what stands after it, where a command takes several
    file: Path | None = None  # the settings file that was read

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def explicit(self, name: str) -> bool:
        """Whether a flag or the environment says so, not a file or a default."""
        return self.origins[name] in ("flag", "environment")

    def put(self, name: str, value: Any, origin: str) -> None:
        """Set a value with its origin."""
        self.values[name], self.origins[name] = value, origin


def resolve(command: str, given: dict[str, Any], source: str | None, carried: dict[str, Any] | None = None) -> Settings:
    """The settings of a run.  ``carried`` is what the provenance of the table on the way in says.

    Raises:
        UsageError: an unknown key, or a value of the wrong type.
    """
    settings = Settings(command, source=source)
    file, table, option_tables = (None, {}, {})
    if not given.get("isolated") and any(s.stored for s in settings_of(command)):
        file, table, option_tables = _read_file(given.get("config"), command)
    settings.file = file
    for s in settings_of(command):
        settings.put(s.name, s.default, "default")
        if s.stored and s.name in table:
            settings.put(s.name, _from_file(s, table[s.name], file), str(file))
        said = s.name == "model" and carried is not None and settings.values[s.name] == carried.get("model")
        if carried and carried.get(s.name) is not None and not said:  # a file of settings may name code, data may not
            settings.put(s.name, carried[s.name], "provenance")
        variable = f"INFLUENCE_{s.name.upper()}"
        if s.stored and variable in os.environ:
            settings.put(s.name, _from_text(s, os.environ[variable], variable), "environment")
        if given.get(s.name) not in (None, []):
            settings.put(s.name, given[s.name], "flag")
        _check_range(s, settings.values[s.name])
    _check_store(settings)
    if settings.source is None and command in ("grads", "score", "retrain"):
        if "INFLUENCE_MANIFEST" in os.environ:
            settings.source, settings.origins["MANIFEST"] = os.environ["INFLUENCE_MANIFEST"], "environment"
        elif "manifest" in table:
            settings.source = _from_file(SETTINGS["manifest"], table["manifest"], file)
            settings.origins["MANIFEST"] = str(file)
    settings.options = {name: dict(values) for name, values in option_tables.items()}
    for name, values in (carried or {}).get("options", {}).items():
        settings.options[name] = {**settings.options.get(name, {}), **values}
    _apply_set(settings)
    return settings


def _check_store(settings: Settings) -> None:
    """Refuse a store without a name: it would be the folder one happens to be in."""
    if settings.values.get("no_store") or settings.values.get("store", ".").strip():
        return
    where = {"flag": "--store", "environment": "INFLUENCE_STORE"}.get(settings.origins["store"])
    fix = "pass --store PATH, or take the empty one out"
    raise UsageError("the store has an empty name", where=where or settings.origins["store"], fix=fix)


def _check_range(s: Setting, value: Any) -> None:
    """Refuse numbers that no stage can mean: below the least, not finite, or beyond 63 bits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low = s.least is not None and value < s.least
    if low or not abs(value) < 2**63:  # also false for nan
        least = "" if s.least is None else f" of at least {s.least:g}"
        raise UsageError(f"{s.flags[-1]} {value} is out of range", fix=f"give a finite number{least}")


def _known_options(names: Iterable[str], where: str) -> None:
    """Refuse options of what is no method, objective or action."""
    from influence_cli.actions import ACTIONS
    from influence_cli.methods import METHODS
    from influence_cli.objectives import OBJECTIVES

    known = [*METHODS, *OBJECTIVES, *ACTIONS, "combine"]
    for name in names:
        if name not in known:
            raise UsageError(f"{name!r} is no method, objective or action", where=where, fix=nearest(name, known))


def _apply_set(settings: Settings) -> None:
    for text in settings.values.get("set", []):
        left, equals, value = text.partition("=")
        name, dot, key = left.rpartition(".")
        if not equals or not key:
            raise UsageError(f"--set {text!r} cannot be read", fix="write --set ip-ensemble.members=10")
        if not dot:
            named: list[str] = settings.values["method"] if "method" in settings.values else [settings.values["action"]]
            if len(named) != 1:
                raise UsageError(
                    f"--set {text!r} does not say whose option it is", fix=f"write --set {named[0]}.{text}"
                )
            name = named[0]
        _known_options([name], f"--set {text}")
        settings.options.setdefault(name, {})[key.replace("-", "_")] = value


def find_file(start: Path) -> Path | None:
    """The nearest settings file from ``start`` upwards."""
    for folder in (start, *start.parents):
        if _is_there(folder / "influence.toml"):
            return folder / "influence.toml"
        project = folder / "pyproject.toml"
        if _is_there(project) and "influence" in _load(project).get("tool", {}):
            return project
    return None


def _is_there(path: Path) -> bool:
    """Whether there is such a file; only one that --config names may be a pipe, which would be waited for.

    Raises:
        UsageError: something else has its name.
    """
    if path.exists() and not path.is_file():
        fix = "move it away, or pass --config FILE or --isolated"
        raise UsageError("the settings file is no regular file", where=str(path), fix=fix)
    return path.exists()


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(
            f"the settings file cannot be read ({error.strerror})", where=str(path), fix="check --config"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the settings file is not TOML ({error})", where=str(path), fix="correct it") from error


def _read_file(config: str | None, command: str) -> tuple[Path | None, dict[str, Any], dict[str, dict[str, Any]]]:
    """(file, keys of this command, options by name)."""
    path = Path(config) if config else find_file(Path.cwd())
    if path is None:
        return None, {}, {}
    content = _load(path)
    if path.name == "pyproject.toml":
        content = content.get("tool", {}).get("influence", {})
    top: dict[str, Any] = {}
    own: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        if key in OPTION_TABLES and isinstance(value, dict):
            if not all(isinstance(table, dict) for table in value.values()):
                raise UsageError(
                    f"[{key}] holds a value", where=str(path), fix=f"write [{key}.NAME] and options below it"
                )
            _known_options(value, str(path))
            options.update({name: {k.replace("-", "_"): v for k, v in table.items()} for name, table in value.items()})
        elif key in STAGES and isinstance(value, dict):
            for inner in value:
                _known(inner, path, [s.name for s in settings_of(key) if s.stored] + ["manifest"], f"[{key}] ")
            if key == command:
                own = {k.replace("-", "_"): v for k, v in value.items()}
        else:
            _known(key, path, [s.name for s in SETTINGS.values() if s.stored], "")
            top[key.replace("-", "_")] = value
    return path, {**top, **own}, options


def _known(key: str, path: Path, known: list[str], table: str) -> None:
    if key.replace("-", "_") not in known:
        names = [k.replace("_", "-") for k in known]
        raise UsageError(f"unknown key {table}{key!r}", where=str(path), fix=nearest(key, names))


def _from_file(s: Setting, value: Any, file: Path | None) -> Any:
    if s.kind is list:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list):
            raise UsageError(f"{s.name} must be a list", where=str(file), fix=f'{s.name} = ["..."]')
        return [str(v) for v in value]
    number = s.kind is float and isinstance(value, int) and not isinstance(value, bool)
    if not number and (not isinstance(value, s.kind) or (s.kind is int and isinstance(value, bool))):
        raise UsageError(
            f"{s.name} = {value!r} is not of type {s.kind.__name__}",
            where=str(file),
            fix="correct the settings file",
        )
    if s.path and file is not None:
        return _from_folder(str(value), file.parent)
    return value


def _from_folder(path: str, folder: Path) -> str:
    """A path of the settings file as seen from here; unchanged where the file is here."""
    if "://" in path or Path(path).is_absolute() or not path.strip():
        return path
    base = os.path.relpath(folder)
    return path if base == "." else os.path.join(base, path)


def _from_text(s: Setting, text: str, variable: str) -> Any:
    try:
        if s.kind is list:
            return [part for part in text.split(",") if part]
        if s.kind is bool:
            return {"1": True, "true": True, "0": False, "false": False, "": False}[text.lower()]
        return s.kind(text)
    except (ValueError, KeyError) as error:
        raise UsageError(f"{variable}={text!r} is not of type {s.kind.__name__}", fix=f"unset {variable}") from error

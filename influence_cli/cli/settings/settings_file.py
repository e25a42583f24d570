"""The nearest settings file, its keys checked, and its values as settings: where they are wrong it is named."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from influence_cli.cli.settings.requests import all_options, options_of
from influence_cli.errors import UsageError, nearest
from influence_cli.options import STAGES, Option

OPTION_TABLES = ("method", "objective", "action")


@dataclass
class SettingsFile:
    """What a settings file says of one command; without a path, nothing."""

    path: Path | None = None
    keys: dict[str, Any] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)  # method, objective or action -> options


def find_file(start: Path) -> Path | None:
    """The nearest settings file from ``start`` upwards."""
    for folder in (start, *start.parents):
        if _is_there(folder / "influence.toml"):
            return folder / "influence.toml"
        project = folder / "pyproject.toml"
        if _is_there(project) and _tool_table(_load(project), project) is not None:
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
        what = f"the settings file cannot be read ({error.strerror})"
        raise UsageError(what, where=str(path), fix="check --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        from influence_cli.store.lfs import refuse_pointer

        refuse_pointer(path)
        fix = "correct it (TOML is text in UTF-8), or pass --isolated"
        raise UsageError(f"the settings file is not TOML ({error})", where=str(path), fix=fix) from error


def _tool_table(content: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The table [tool.influence] of a pyproject.toml; None where there is none.  UsageError: it is no table."""
    found: Any = content
    for key in ("tool", "influence"):
        if key not in found:
            return None
        found = found[key]
        if not isinstance(found, dict):
            fix = "write [tool.influence] and keys below it, or pass --isolated"
            raise UsageError(f"{key} is a value, not a table", where=str(path), fix=fix)
    return found


def read_file(config: str | None, command: str) -> SettingsFile:
    """What the file ``config``, or the nearest, says of a command; UsageError where it is unreadable or unknown."""
    path = Path(config) if config else find_file(Path.cwd())
    if path is None:
        return SettingsFile()
    content = _load(path)
    if path.name == "pyproject.toml":
        content = _tool_table(content, path) or {}
    file, own = SettingsFile(path), dict[str, Any]()
    for key, value in content.items():
        if key in OPTION_TABLES and isinstance(value, dict):
            if not all(isinstance(inner, dict) for inner in value.values()):
                fix = f"write [{key}.NAME] and options below it"
                raise UsageError(f"[{key}] holds a value", where=str(path), fix=fix)
            check_option_names(value, str(path))
            file.options.update({name: _with_underscores(inner) for name, inner in value.items()})
        elif key in STAGES and isinstance(value, dict):
            for inner in value:
                _check_key(inner, path, [o.name for o in options_of(key) if o.stored] + ["manifest"], f"[{key}] ")
            own = _with_underscores(value) if key == command else own
        else:
            _check_key(key, path, [o.name for o in all_options().values() if o.stored], "")
            file.keys[key.replace("-", "_")] = value
    file.keys.update(own)
    return file


def _with_underscores(table: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in table.items()}


def check_option_names(names: Iterable[str], where: str) -> None:
    """Refuse options of what is no method, objective or action (UsageError)."""
    from influence_cli.actions import ACTIONS
    from influence_cli.methods import METHODS
    from influence_cli.objectives import OBJECTIVES

    known = [*METHODS, *OBJECTIVES, *ACTIONS, "combine"]
    for name in names:
        if name not in known:
            raise UsageError(f"{name!r} is no method, objective or action", where=where, fix=nearest(name, known))


def _check_key(key: str, path: Path, known: list[str], table: str) -> None:
    if key.replace("-", "_") not in known:
        names = [k.replace("_", "-") for k in known]
        raise UsageError(f"unknown key {table}{key!r}", where=str(path), fix=nearest(key, names))


def value_in_file(option: Option, value: Any, path: Path | None) -> Any:
    """The value of a key; UsageError where it is of another type than the option."""
    kind = option.kind
    if kind is list:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list):
            raise UsageError(f"{option.name} must be a list", where=str(path), fix=f'{option.name} = ["..."]')
        return [str(v) for v in value]
    number = kind is float and isinstance(value, int) and not isinstance(value, bool)
    if not number and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        what = f"{option.name} = {value!r} is not of type {kind.__name__}"
        raise UsageError(what, where=str(path), fix="correct the settings file")
    folder, text = "." if path is None or not option.path else os.path.relpath(path.parent), str(value)
    if folder == "." or "://" in text or Path(text).is_absolute() or not text.strip():
        return value
    return os.path.join(folder, text)  # as seen from here

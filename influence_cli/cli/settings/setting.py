"""What a setting is, and the commands that have settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MANIFEST, METHODS, CACHE, GUIDE = "manifest", "methods", "cache", "guide"
GRADS, SCORE, CURATE, RETRAIN, EVALUATE = "grads", "score", "curate", "retrain", "evaluate"
RUNS = (GRADS, SCORE)
TRAINS = (RETRAIN, EVALUATE)
MODEL = (*RUNS, *TRAINS)
RUNS_AND_EVALUATE = (*RUNS, EVALUATE)
STAGES = (GRADS, SCORE, CURATE, RETRAIN, EVALUATE)
WRITING = (MANIFEST, *STAGES)
SHOWING = (*WRITING, METHODS, CACHE)
EVERY = (*SHOWING, GUIDE)


@dataclass(frozen=True)
class Setting:
    """One setting; ``kind`` is str, int, float, bool or list (of strings, repeatable)."""

    name: str
    kind: type
    default: Any
    help: str
    commands: tuple[str, ...]
    flags: tuple[str, ...] = ()
    path: bool = False  # relative paths in a TOML file count from that file
    metavar: str | None = None
    stored: bool = True  # False: a flag only, never read from TOML or the environment
    least: float | None = None  # the smallest value that makes sense


def setting(
    name: str, kind: type, default: Any, help: str, commands: tuple[str, ...], *flags: str, **more: Any
) -> Setting:
    """A setting whose flag is its name, unless others are given."""
    return Setting(name, kind, default, help, commands, flags or (f"--{name.replace('_', '-')}",), **more)

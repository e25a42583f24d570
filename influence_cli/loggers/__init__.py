"""Results told to experiment trackers: one lazy table, one file each; every one takes the same ``Logged``.

A tracker is looked at before any work, and told after the result is written and shown: one that fails loses nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

from influence_cli.errors import UsageError, nearest
from influence_cli.events import Listener
from influence_cli.loggers.protocol import Logged, Logger
from influence_cli.options import as_hinted


@dataclass(frozen=True)
class LoggerInfo:
    """A tracker: the class that tells it, the package that it needs, and whether it takes a folder."""

    target: str
    package: str
    folder: bool = False


LOGGERS: dict[str, LoggerInfo] = {
    "mlflow": LoggerInfo("influence_cli.loggers.mlflow:MLflowLogger", "mlflow"),
    "wandb": LoggerInfo("influence_cli.loggers.wandb:WandbLogger", "wandb"),
    "tensorboard": LoggerInfo("influence_cli.loggers.tensorboard:TensorBoardLogger", "tensorboard", folder=True),
}


def open_loggers(asked: str | Iterable[str], folder: str | None, connect: bool = True) -> dict[str, Logger]:
    """The loggers that ``--log NAME`` or ``--log NAME:FOLDER`` ask for, by name.

    ``folder`` is where one that writes files puts them if it is told no other place.  With ``connect`` each is asked
    whether it can be logged to at all.

    Raises:
        UsageError: a name is unknown or given twice, a package is missing, there is no folder, or it cannot be logged.
    """
    made: dict[str, Logger] = {}
    for text in as_hinted("log", asked, tuple[str, ...]):  # from Python it is whatever the caller gives
        name, colon, place = text.partition(":")
        if name not in LOGGERS:
            raise UsageError(f"--log {text!r} is unknown", fix=nearest(name, list(LOGGERS)))
        if name in made:
            raise UsageError(f"--log {name} is given twice", fix="give it once")
        made[name] = _made(name, place if colon else None, folder)
    for logger in made.values() if connect else ():
        logger.check()
    return made


def _made(name: str, place: str | None, folder: str | None) -> Logger:
    info = LOGGERS[name]
    if place is not None and not info.folder:
        fix = f"pass --log {name}; where it logs to is set by its own environment variables"
        raise UsageError(f"--log {name} takes no folder", fix=fix)
    if place == "" or (place is None and folder is None and info.folder):
        raise UsageError(f"--log {name} does not say which folder to write to", fix=f"pass --log {name}:FOLDER")
    found = importlib.util.find_spec(info.package)
    if found is None or found.origin is None:  # a folder of that name, such as W&B's own, is no package
        what = f"--log {name} needs {info.package}, which is not installed"
        raise UsageError(what, fix=f"pip install 'influence-cli[{name}]'")
    module, cls = info.target.split(":")
    return getattr(importlib.import_module(module), cls)(place or folder)


def log_to(loggers: dict[str, Logger], logged: Logged, listener: Listener) -> list[str]:
    """Tell every logger; what went wrong in words.

    A tracker's failure is whatever its library raises, and must not take the result, nor the other trackers, with it.
    """
    failures: list[str] = []
    for name, logger in loggers.items():
        try:
            listener.note(f"logged to {name}: {logger.log(logged)}")
        except Exception as error:
            failures.append(f"the result is not logged to {name}: {type(error).__name__}: {error}")
    return failures

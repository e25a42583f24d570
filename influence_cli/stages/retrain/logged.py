"""``retrain`` with its result told to experiment trackers: parameters, metrics by arm and seed, tables, files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_cli.events import SILENT, Listener
from influence_cli.loggers import log_to, open_loggers
from influence_cli.loggers.protocol import Logger
from influence_cli.loggers.results import logged_retrain, parameters_of, plain_parameters
from influence_cli.model.run_folder import RunFolder
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from influence_cli.stages.retrain.training_run import Training
from influence_cli.store.remote import called, is_remote

if TYPE_CHECKING:
    from influence_cli.model.train.recipe import Recipe

EVENTS = "tensorboard"  # the folder of a run in which events are written, where no other is named


def retrain_and_log(
    request: RetrainRequest, recipe: Recipe, listener: Listener = SILENT, log: str | Iterable[str] = ()
) -> dict[str, Any]:
    """``retrain``, and its result told to the trackers named in ``log``; one that fails is a warning.

    Raises:
        UsageError: a tracker cannot be logged to, which is seen before anything is trained.
    """
    trained, loggers = list[Training](), run_loggers(log, request.output)
    metrics = retrain(request, recipe, listener, trained)
    for failure in log_retrain(loggers, request, metrics, trained, listener):
        listener.warn(failure)
    return metrics


def run_loggers(log: str | Iterable[str], output: str, connect: bool = True) -> dict[str, Logger]:
    """The loggers of a run folder (UsageError: one cannot be logged to); events are not put at an address."""
    at_an_address = is_remote(called(output))
    return open_loggers(log, None if at_an_address else str(Path(output) / EVENTS), connect)


def log_retrain(
    loggers: dict[str, Logger],
    request: RetrainRequest,
    metrics: dict[str, Any],
    trained: list[Training],
    listener: Listener,
    pages: Iterable[str] = (),
) -> list[str]:
    """Tell every logger what came out, once it is written; what went wrong, in words."""
    if not loggers:
        return []
    record = RunFolder(request.output).read()
    asked = {} if record is None else {"model": record.model["name"], **record.recipe}
    parameters = {**parameters_of(request), **plain_parameters(asked)}
    return log_to(loggers, logged_retrain(request.output, parameters, metrics, trained, pages), listener)

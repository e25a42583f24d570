"""``evaluate`` with its result told to experiment trackers: parameters, metrics, tables, files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from influence_cli.data.tables import shown
from influence_cli.events import SILENT, Listener
from influence_cli.loggers import log_to, open_loggers
from influence_cli.loggers.results import logged_evaluation, parameters_of
from influence_cli.stages.evaluate.evaluate import evaluate
from influence_cli.stages.evaluate.request import EvaluateRequest


def evaluate_and_log(
    request: EvaluateRequest, listener: Listener = SILENT, log: str | Iterable[str] = ()
) -> dict[str, Any]:
    """``evaluate``, and its result told to the trackers named in ``log``; one that fails is a warning.

    Raises:
        UsageError: a tracker cannot be logged to, which is seen before anything is computed.
    """
    loggers = open_loggers(log, None)
    found = evaluate(request, listener)
    if loggers:
        logged = logged_evaluation(shown(request.scores[0]), parameters_of(request), found)
        for failure in log_to(loggers, logged, listener):
            listener.warn(failure)
    return found

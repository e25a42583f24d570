"""Scores of the train rows for one target row alone: the scored run again, with that row as its whole target."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.events import SILENT
from influence_cli.methods import METHODS
from influence_cli.settings import Runtime
from influence_cli.stages.curate.combining import floats
from influence_cli.stages.curate.score_table import ScoreTable
from influence_cli.stages.evaluate.counterfactuals.score_columns import MEASURED
from influence_cli.stages.run.reopen import reopen, spec_of
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.score import score

Floats = NDArray[np.float64]


def open_scored_run(
    scores: ScoreTable,
    target: str | None,
    checkpoint: str | None,
    runtime: Runtime,
    remember: bool = True,
    source: str = "the score table",
) -> tuple[Run, Session]:
    """The run that a score table came from, reopened with the methods that can score for one target row.

    A target or checkpoint that is given is meant; None is the table's.

    Raises:
        UsageError: there is none.
    """
    spec: dict[str, Any] = scores.provenance.get("spec", {})
    methods = [m for m in spec.get("methods", ()) if m in METHODS and METHODS[m].load().needs == "tangents"]
    if not methods:
        raise UsageError(
            "brittleness needs scores for single target rows, and no method of the table has them",
            fix="score with --method ip",
        )
    then = spec_of(scores.provenance)
    options = {name: values for name, values in then.options.items() if name in (*methods, MEASURED)}
    return reopen(
        scores.provenance,
        runtime,
        SILENT,
        source=source,
        manifest=scores.manifest,
        label=scores.label,
        target=target,
        checkpoint=checkpoint,
        spec=replace(then, methods=tuple(methods), objectives=(MEASURED,), options=options),
        another=checkpoint is not None,
        remember=remember,
    )


def scores_for(run: Run, session: Session, position: int) -> dict[str, Floats]:
    """Each method's scores [n] of all train rows for the target row at ``position``; kept in the store like any."""
    one = replace(run, target=run.target.take(np.array([position])))
    table, _ = score(one, session.silent())
    single = len(run.methods) == 1
    names = {name: f"score_{MEASURED}" if single else f"score_{name}_{MEASURED}" for name in run.methods}
    return {name: floats(table, column) for name, column in names.items()}

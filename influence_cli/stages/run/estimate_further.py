"""Seconds a row of further training and of losses at other weights, where they were never measured.

A step is run on the first fit rows, at weights that do not matter; nothing is remembered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from influence_cli.errors import InfluenceError
from influence_cli.stages.run.plan import Work
from influence_cli.stages.run.rates import LOSS, STEP, Rates
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session

if TYPE_CHECKING:
    from torch import nn

ROWS = 128  # of the step that is timed
TRIES = 3


def further_rates(run: Run, session: Session, model: nn.Module, work: list[Work]) -> Rates:
    """Seconds a row of each kind of work that the plan holds; none where it cannot be tried."""
    kinds = {kind for w in work for part in w.further for kind in part.kinds}
    if not kinds:
        return Rates()
    from influence_cli.curvature.curvature import Curvature
    from influence_cli.curvature.further import FitLoss
    from influence_cli.engines.point import differentiable_kernels

    assert run.fit is not None
    rows = run.fit.rows.take(np.arange(min(ROWS, len(run.fit.rows))))
    precision = "fp64" if run.spec.precision == "fp64" else "fp32"
    try:
        curvature = Curvature(
            model, require_model(run)[0], rows, run.spec.params, None, session.device,
            session.batch_size(run.model), session.runtime.workers, precision=precision, loss=run.row_loss,
        )  # fmt: skip
        fit = FitLoss(curvature)
        start, every = fit.start(), np.arange(fit.rows)
        ways = {STEP: lambda: fit.at(start), LOSS: lambda: fit.losses_at(start, every)}
        with differentiable_kernels(curvature.point.recurrent):
            found = {kind: _seconds(ways[kind]) for kind in kinds}
    except InfluenceError:
        return Rates()
    return {kind: seconds / fit.rows for kind, seconds in found.items()}


def _seconds(work: Callable[[], object]) -> float:
    """Of the shortest of a few tries, after one that sets things up."""
    took: list[float] = []
    for _ in range(1 + TRIES):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return min(took[1:])

"""The plan of a run as it is shown and as limits look at it: with estimates where nothing was measured."""

from __future__ import annotations

from typing import Any

from influence_cli.stages.run.backbone_run import with_features_plan, with_features_there
from influence_cli.stages.run.memory import peak_memory
from influence_cli.stages.run.plan import describe_plan, missing_work, needed_rates
from influence_cli.stages.run.rates import Rates, known_rates
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session

Tried = dict[str, Any]  # what batches that were run for an estimate have said, for plans of fewer of the same rows


def whole_plan(run: Run, session: Session, tried: Tried | None = None) -> tuple[Run, dict[str, Any]]:
    """The run as its model lets it be, and its plan (``describe_plan``)."""
    from influence_cli.stages.run.estimate import planned_gradients

    tried = {} if tried is None else tried
    run = with_features_there(run, session)
    work = missing_work(run, session)
    lacking = any(part.seconds is None for w in work for part in (*w.fits, *w.solves))
    estimated: Rates = tried.get("own", {})
    if "own" not in tried and (lacking or not needed_rates(work) <= set(known_rates(run, session))):
        from influence_cli.stages.run.estimate import estimated_rates

        estimated = tried["own"] = estimated_rates(run, session, work)
    described = describe_plan(run, session, work, estimated, planned_gradients(run, session))
    described = with_features_plan(described, run, session, estimate=True, tried=tried)
    return run, {**described, "memory": peak_memory(run, session, work, tried)}

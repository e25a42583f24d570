"""``influence evaluate``: which question is asked, the stage that answers it, and where the answer goes."""

from __future__ import annotations

from typing import Any

from influence_cli.cli.commands.counterfactuals import evaluate_by_retraining
from influence_cli.cli.console import terminal
from influence_cli.cli.settings.inputs import manifest_of_scores, require_source, runtime_of
from influence_cli.cli.settings.requests import EvaluateOptions, ResultOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.evaluate import show_evaluation
from influence_cli.cli.show.page import check_pages
from influence_cli.cli.show.plan import show_plan
from influence_cli.errors import UsageError
from influence_cli.stages.evaluate.request import EvaluateRequest


def evaluate(settings: Settings) -> None:
    """How far to trust scores: detection of wrong labels, canaries, agreement of methods, seeds and checkpoints."""
    from influence_cli.stages.evaluate.comparison import compare
    from influence_cli.stages.evaluate.evaluate import evaluate as evaluate_stage

    result, asked = settings.make(ResultOptions), settings.make(EvaluateOptions)
    result.check_format("auto", "table", "json")
    source = require_source(settings, "a score table")
    if asked.by_retraining:
        _check_alone(settings, asked)
        _check_outputs(result)
        return evaluate_by_retraining(settings, result, source)
    _check(settings, asked)
    _check_outputs(result)
    if asked.sentinel is not None:
        found = _sentinel(settings, result, asked, source)
    elif result.dry_run:
        tables = ", ".join((source, *settings.more))
        return terminal().note(f"every score column of {tables} would be measured; nothing is written")
    elif asked.other_scores is not None:
        found = compare(source, asked.other_scores, asked.budget, asked.draws, asked.seed)
    else:
        found = evaluate_stage(_request(settings, asked, source), terminal())
    if found is not None:
        show_evaluation(result, found)
    return None


def _check_alone(settings: Settings, asked: EvaluateOptions) -> None:
    """Refuse other questions beside one that needs trainings.

    Raises:
        UsageError: there is one.
    """
    flags = {"--against": asked.other_scores, "--sentinel": asked.sentinel, "--stability": asked.stability}
    also = ["several tables"] if settings.more else [flag for flag, given in flags.items() if given]
    if also:
        raise UsageError(f"{also[0]} and retraining are two questions", fix="ask one at a time, about one table")


def _check(settings: Settings, asked: EvaluateOptions) -> None:
    """Refuse questions that contradict each other, before any work.

    Raises:
        UsageError: they do.
    """
    alone = [flag for flag, given in (("--against", asked.other_scores), ("--sentinel", asked.sentinel)) if given]
    if len(alone) > 1 or (alone and (settings.more or asked.stability)):
        raise UsageError(f"{alone[0]} is a question of its own, about one table", fix="ask one at a time")
    if asked.stability and not settings.more:
        fix = "influence evaluate A.parquet B.parquet --stability"
        raise UsageError("--stability compares several tables", fix=fix)


def _check_outputs(result: ResultOptions) -> None:
    """Refuse outputs that cannot be written, before any work.

    Raises:
        UsageError: one cannot; or matplotlib is needed and not there.
    """
    places = [place for place in (result.output, result.report, result.plot) if place]
    if len(set(places)) < len(places):
        raise UsageError("two outputs have the same name", fix="give each a place of its own")
    check_pages(result)


def _request(settings: Settings, asked: EvaluateOptions, source: str) -> EvaluateRequest:
    """Everything that can be asked of the tables without training."""
    return settings.make(
        EvaluateRequest,
        scores=(source, *settings.more),
        clean_column=settings.chosen("clean_label"),
        checkpoint=settings.insisted("checkpoint"),
        runtime=runtime_of(settings, code=asked.model),
        **manifest_of_scores(settings),
    )


def _sentinel(settings: Settings, result: ResultOptions, asked: EvaluateOptions, source: str) -> dict[str, Any] | None:
    """Whether the table is still good at another checkpoint; None where the plan is shown instead."""
    from influence_cli.stages.evaluate.sentinel import sentinel, sentinel_run

    if asked.checkpoint is None:
        raise UsageError("--sentinel needs a new checkpoint", fix="pass --checkpoint PATH")
    run, session = sentinel_run(
        source,
        asked.sentinel or "",
        asked.checkpoint,
        runtime_of(settings, code=asked.model),
        asked.seed,
        terminal(),
        remember=not result.dry_run,
        manifest=manifest_of_scores(settings)["manifest"],
    )
    if result.dry_run:
        return show_plan(result, run, session)
    return sentinel(run, session, source, asked.budget, asked.draws, asked.seed)

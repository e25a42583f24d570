"""``influence evaluate``: which question is asked, the stage that answers it, and where the answer goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from influence_cli.cli.commands.counterfactuals import asked_to_retrain, evaluate_by_retraining
from influence_cli.cli.settings.inputs import require_source, said_of_scores
from influence_cli.cli.settings.resolve import Settings
from influence_cli.cli.show import evaluate as show_evaluate
from influence_cli.cli.show import tables as show
from influence_cli.errors import UsageError

if TYPE_CHECKING:
    from influence_cli.settings import Runtime


def evaluate(settings: Settings) -> int | None:
    """How far to trust scores: detection of wrong labels, canaries, agreement of methods, seeds and checkpoints."""
    show.check_format(settings, ("auto", "table", "json"))
    source = require_source(settings, "a score table")
    if asked_to_retrain(settings):
        return _by_retraining(settings, source)
    _check(settings)
    if settings["sentinel"] is not None:
        result = _sentinel(settings, source)
    elif settings["dry_run"]:
        tables = ", ".join((source, *settings.more))
        show.terminal().note(f"every score column of {tables} would be measured; nothing is written")
        return None
    elif settings["other_scores"] is not None:
        from influence_cli.stages.evaluate.comparison import compare

        how = settings["budget"] or "5%", settings["draws"], settings["seed"]
        result = compare(source, settings["other_scores"], *how)
    else:
        result = _all_parts(settings, source)
    if result is not None:
        show_evaluate.result(settings, result)
    return None


def _by_retraining(settings: Settings, source: str) -> None:
    """What trainings without some rows say of one table.

    Raises:
        UsageError: something else is asked for too.
    """
    from influence_cli.stages.curate.score_table import CurateRequest

    also = [flag for flag in ("other_scores", "sentinel", "stability") if settings[flag]]
    if settings.more or also:
        what = "several tables" if settings.more else "--" + {"other_scores": "against"}.get(also[0], also[0])
        raise UsageError(f"{what} and retraining are two questions", fix="ask one at a time, about one table")
    _check_outputs(settings)
    manifest, label = said_of_scores(settings)
    request = CurateRequest(source, manifest=manifest, label=label, skip_bad=settings["skip_bad"])
    evaluate_by_retraining(settings, request)


def _check(settings: Settings) -> None:
    """Refuse questions that contradict each other and outputs that cannot be written, before any work.

    Raises:
        UsageError: they do, or one cannot.
    """
    alone = [flag for flag, name in (("--against", "other_scores"), ("--sentinel", "sentinel")) if settings[name]]
    if len(alone) > 1 or (alone and (settings.more or settings["stability"])):
        raise UsageError(f"{alone[0]} is a question of its own, about one table", fix="ask one at a time")
    if settings["stability"] and not settings.more:
        raise UsageError(
            "--stability compares several tables", fix="influence evaluate A.parquet B.parquet --stability"
        )
    _check_outputs(settings)


def _check_outputs(settings: Settings) -> None:
    """Refuse outputs that cannot be written, before any work.

    Raises:
        UsageError: one cannot; or matplotlib is needed and not there.
    """
    places = [settings[name] for name in ("output", "report", "plot") if settings[name]]
    if len(set(places)) < len(places):
        raise UsageError("two outputs have the same name", fix="give each a place of its own")
    show.check_report(settings)


def _runtime(settings: Settings) -> Runtime:
    from influence_cli.settings import Runtime

    return Runtime(
        None if settings["no_store"] else settings["store"],
        settings["device"],
        settings["batch_size"],
        settings["workers"],
        code=settings["model"],
    )


def _all_parts(settings: Settings, source: str) -> dict[str, Any]:
    from influence_cli.stages.evaluate.evaluate import EvaluateRequest
    from influence_cli.stages.evaluate.evaluate import evaluate as evaluate_stage

    manifest, label = said_of_scores(settings)
    named = settings.origins["clean_label"] != "default"
    request = EvaluateRequest(
        (source, *settings.more),
        budget=settings["budget"] or "5%",
        manifest=manifest,
        label=label,
        clean_column=settings["clean_label"] if named else None,
        known_bad=settings["known_bad"],
        reference=settings["reference"],
        draws=settings["draws"],
        seed=settings["seed"],
        stability=settings["stability"],
        checkpoint=settings["checkpoint"] if settings.explicit("checkpoint") else None,
        runtime=_runtime(settings),
        skip_bad=settings["skip_bad"],
    )
    return evaluate_stage(request, show.terminal())


def _sentinel(settings: Settings, source: str) -> dict[str, Any] | None:
    from influence_cli.stages.evaluate.sentinel import sentinel, sentinel_job

    if settings["checkpoint"] is None:
        raise UsageError("--sentinel needs a new checkpoint", fix="pass --checkpoint PATH")
    manifest, _ = said_of_scores(settings)
    job = sentinel_job(
        source,
        settings["sentinel"],
        settings["checkpoint"],
        _runtime(settings),
        settings["seed"],
        show.terminal(),
        remember=not settings["dry_run"],
        manifest=manifest,
    )
    if settings["dry_run"]:
        show.plan(settings, job)
        return None
    return sentinel(job, source, settings["budget"] or "5%", settings["draws"], settings["seed"])

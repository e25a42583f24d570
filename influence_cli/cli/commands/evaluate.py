"""``influence evaluate``: which question is asked, the stage that answers it, and where the answer goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import print_json
from influence_cli.cli.settings.places import manifest_of_scores, require_source, runtime_of
from influence_cli.cli.settings.requests import EvaluateOptions, ProgramOptions, ResultOptions, StoreOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.answers import show_answer
from influence_cli.cli.show.plan import show_plan
from influence_cli.cli.show.results import (
    check_pages,
    origin_of_scores,
    pages_written,
    put_figures,
    say_failures,
    show_counterfactuals,
    show_evaluation,
    show_trainings,
)
from influence_cli.errors import UsageError
from influence_cli.model.train.recipe import Recipe
from influence_cli.options import options_in
from influence_cli.settings import parse_budget, parse_share
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.evaluate.request import CounterfactualRequest, EvaluateRequest, Training

if TYPE_CHECKING:
    from influence_cli.model.run_record import RunRecord

_TRAINED = (  # options beside the recipe that decide what a training on a part of the rows is
    "checkpoint", "model", "batch_size", "init", "pretrained", "raw_features", "input_size", "num_classes", "class_map",
    "target", "test", "seeds", "seed", "store", "no_store", "device",
)  # fmt: skip


def evaluate(settings: Settings) -> None:
    """How far to trust scores: detection of wrong labels, canaries, agreement of methods, seeds and checkpoints."""
    from influence_cli.loggers import log_to, open_loggers
    from influence_cli.loggers.results import logged_evaluation, plain_parameters

    result, asked = settings.make(ResultOptions), settings.make(EvaluateOptions)
    result.check_format("evaluate")
    source = require_source(settings, "a score table")
    _check(settings, asked, result)
    loggers = open_loggers(result.log, None, not result.dry_run)
    found = _answer(settings, result, asked, source)
    if found is not None and loggers:
        scores = {"scores": (source, *settings.more)}
        parameters = plain_parameters({**scores, **settings.decisive(ResultOptions, ProgramOptions)})
        logged = logged_evaluation(source, parameters, found, pages_written(result))
        say_failures(log_to(loggers, logged, terminal()), "trainings are kept")


def _answer(settings: Settings, result: ResultOptions, asked: EvaluateOptions, source: str) -> dict[str, Any] | None:
    """Answer the question that is asked and show the answer; None where a plan is shown instead."""
    from influence_cli.stages.evaluate.comparison import compare
    from influence_cli.stages.evaluate.evaluate import evaluate as evaluate_stage

    if asked.by_retraining:
        return _by_retraining(settings, result, source, asked.budget)
    if asked.duplicates is not None:
        return _duplicates(settings, result, asked.duplicates, source)
    if asked.sentinel is not None:
        found = _sentinel(settings, result, asked, source)
    elif result.dry_run:
        tables = ", ".join((source, *settings.more))
        terminal().note(f"every score column of {tables} would be measured; nothing is written")
        return None
    elif asked.other_scores is not None:
        found = compare(source, asked.other_scores, asked.budget, asked.draws, asked.seed)
    else:
        request = settings.make(
            EvaluateRequest,
            scores=(source, *settings.more),
            clean_column=settings.chosen("clean_label"),
            checkpoint=settings.insisted("checkpoint"),
            runtime=runtime_of(settings, code=asked.model),
            **manifest_of_scores(settings),
        )
        found = evaluate_stage(request, terminal())
    if found is not None:
        sources = (source, *settings.more)
        origin = origin_of_scores(result, settings.command_line(), sources)
        show_evaluation(result, found, sources, _asked(settings, source, asked.budget), origin)
    return found


def _check(settings: Settings, asked: EvaluateOptions, result: ResultOptions) -> None:
    """Refuse questions that contradict each other and outputs that cannot be written, before any work (UsageError)."""
    parse_budget(asked.budget, None)
    questions = {"--against": asked.other_scores, "--sentinel": asked.sentinel, "--duplicates": asked.duplicates}
    alone = [flag for flag, given in questions.items() if given]
    also = ["several tables"] if settings.more else [*alone, *(["--stability"] if asked.stability else [])]
    if asked.by_retraining and also:
        raise UsageError(f"{also[0]} and retraining are two questions", fix="ask one at a time, about one table")
    if len(alone) > 1 or (alone and (settings.more or asked.stability)):
        raise UsageError(f"{alone[0]} is a question of its own, about one table", fix="ask one at a time")
    if asked.stability and not settings.more:
        fix = "influence evaluate A.parquet B.parquet --stability"
        raise UsageError("--stability compares several tables", fix=fix)
    places = [place for place in (result.output, result.report, result.plot) if place]
    if len(set(places)) < len(places):
        raise UsageError("two outputs have the same name", fix="give each a place of its own")
    check_pages(result)


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
        class_map=settings.insisted("class_map"),
    )
    if result.dry_run:
        return show_plan(result, run, session)
    return sentinel(run, session, source, asked.budget, asked.draws, asked.seed)


def _duplicates(settings: Settings, result: ResultOptions, text: str, source: str) -> dict[str, Any] | None:
    """Groups of near-duplicates and leaks between splits; with --dry-run what it would take."""
    from influence_cli.report.duplicates import answer
    from influence_cli.stages.evaluate.duplicates import Limit, describe, duplicates, duplicates_run

    limit, checkpoint = Limit.of(text), settings.insisted("checkpoint")
    run, session = duplicates_run(
        source,
        runtime_of(settings, code=settings.values["model"]),
        terminal(),
        manifest=manifest_of_scores(settings)["manifest"],
        checkpoint=checkpoint,
        class_map=settings.insisted("class_map"),
        remember=not result.dry_run,
    )
    if result.dry_run:
        planned = describe(run, session)
        rows, lacking, pairs = (planned[name] for name in ("rows", "rows_to_compute", "pairs"))
        said = f"features of {lacking:,} of {rows:,} rows would be computed, and {pairs:,} pairs compared"
        print_json(planned) if result.wants_json else terminal().note(said)
        return None
    found = duplicates(run, session, limit)
    show_answer(answer(found["duplicates"]))
    put_figures(result, found, terminal().note, origin_of_scores(result, settings.command_line(), (source,)))
    return found


def _by_retraining(settings: Settings, result: ResultOptions, source: str, budget: str) -> dict[str, Any] | None:
    """Train, measure and show; with --dry-run say how many trainings there are."""
    from influence_cli.data.write_tables import check_suffix
    from influence_cli.stages.evaluate.counterfactuals.counterfactuals import counterfactuals, plan

    scores = settings.make(CurateRequest, scores=source, budget=None, **manifest_of_scores(settings))
    if result.output:
        check_suffix(result.output, (".json",))
    names = ["model", "batch_size", *(o.name for o in options_in(Recipe))]
    values = {name: settings.values[name] for name in names if settings.values[name] is not None}
    training = settings.make(
        Training,
        overrides={name: value for name, value in values.items() if settings.explicit(name)},
        defaults={name: value for name, value in values.items() if not settings.explicit(name)},
        init=settings.insisted("init"),
        pretrained=bool(settings.insisted("pretrained")),
        raw_features=bool(settings.insisted("raw_features")),
    )
    request = settings.make(
        CounterfactualRequest,
        scores=scores,
        training=training,
        checkpoint=settings.insisted("checkpoint"),
        target=settings.insisted("target"),
        store=settings.make(StoreOptions).place,
    )
    if result.dry_run:
        show_trainings(result, plan(request, terminal()))
        return None
    found = counterfactuals(request, terminal())
    origin = origin_of_scores(result, settings.command_line(), (source,))
    show_counterfactuals(result, found, source, _asked(settings, source, budget), origin)
    return found


def _asked(settings: Settings, source: str, budget: str) -> dict[str, Any]:
    """What the next command may repeat: see ``next_of_evaluate``."""
    trained = [*(o.name for o in options_in(Recipe)), *_TRAINED]
    record = _recipe_of(settings.insisted("checkpoint"), source)
    return {
        "budget": budget,
        "read": settings.repeated_of("manifest", "label", "skip_bad", "allow_outside"),
        "trained": settings.repeated_of(*trained),
        "trains": record is not None,
        "seconds": _seconds_a_subset(settings, record),
        "command": settings.every_word(),
    }


def _recipe_of(checkpoint: str | None, source: str) -> RunRecord | None:
    """What the scored checkpoint's folder says of its training; None too where nothing measures the objectives."""
    from influence_cli.data.locators import origin_of
    from influence_cli.data.tables import read_table
    from influence_cli.model.run_folder import RunFolder

    origin = {} if source == "-" else origin_of(read_table(source, ["id"]).schema, source)
    if "utility" not in origin.get("spec", {}).get("objectives", ["utility"]):
        return None
    locator = checkpoint or (origin.get("checkpoint") or {}).get("locator")
    return None if locator is None else RunFolder(locator).read()


def _seconds_a_subset(settings: Settings, record: RunRecord | None) -> float | None:
    """Seconds that trainings on one subset of the rows take, with every seed, by what the model's own took."""
    if record is None or record.seconds is None:
        return None
    share = parse_share(
        str(settings.values.get("subset_share") or CounterfactualRequest.subset_share), "--subset-share"
    )
    return record.seconds * share * int(settings.values.get("seeds") or CounterfactualRequest.seeds)

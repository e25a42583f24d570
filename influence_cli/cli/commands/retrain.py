"""``influence retrain``: arms trained and compared, tables and figures out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import print_json, print_text_table
from influence_cli.cli.settings.places import inputs_of, require_source
from influence_cli.cli.settings.requests import ResultOptions, RetrainOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.answers import next_of_retrain, show_answer, show_next
from influence_cli.cli.show.results import check_pages, pages_written, say_failures, write_pages
from influence_cli.cli.show.run import show_skipped
from influence_cli.errors import InfluenceError, UsageError
from influence_cli.model.train.recipe import Recipe
from influence_cli.settings import GradSpec
from influence_cli.stages.retrain.request import CanaryRequest, EditsRequest, RetrainRequest

if TYPE_CHECKING:
    from influence_cli.report.origin import Origin


def retrain(settings: Settings) -> int | None:
    """Train on a manifest; with --against also without the edits, and with random edits of the same size."""
    from influence_cli.stages.retrain.arm_comparison import improved
    from influence_cli.stages.retrain.logged import log_retrain, run_loggers
    from influence_cli.stages.retrain.opening import as_fine_tuning
    from influence_cli.stages.retrain.retrain import retrain as retrain_stage
    from influence_cli.stages.retrain.run_place import at_hand

    result = settings.make(ResultOptions)
    result.check_format("retrain")
    if result.output is None:
        raise UsageError("no run folder", fix="pass -o RUN")
    check_pages(result)
    inputs = inputs_of(settings, require_source(settings, "a manifest"))
    made = {"canaries": _canaries(settings), "edits": _edits(settings)}
    request = settings.make(RetrainRequest, inputs=inputs, overlap_asked=bool(settings.chosen("overlap")), **made)
    asked = {f.name for f in fields(Recipe) if f.name in settings.origins and settings.chosen(f.name) is not None}
    recipe = settings.make(Recipe, asked=frozenset(asked))
    compared = request.against is not None or request.edits is not None
    if settings.make(RetrainOptions).require_improvement and not compared:
        fix = "pass --against MANIFEST, the rows before curation, or --scores TABLE"
        raise UsageError("--require-improvement has nothing to compare with", fix=fix)
    request = at_hand(request)
    loggers, trained = run_loggers(result.log, request.output, not result.dry_run), list[Any]()
    if result.dry_run:
        request, recipe = as_fine_tuning(request, recipe)
        _check(request, recipe)
        return _show_arms(request, recipe)
    with terminal().answer_first():
        metrics = retrain_stage(request, recipe, terminal(), trained)
    _show_comparison(result, metrics, _origin(settings, result, request))
    code = None
    if settings.make(RetrainOptions).require_improvement and not improved(metrics):
        terminal().warn("curated does not beat no edit and every control by the paired interval")
        code = 1
    show_next(*next_of_retrain(metrics, _asked(settings, request)))
    failures = log_retrain(loggers, request, metrics, trained, terminal(), pages_written(result))
    say_failures(failures, "it trains nothing anew", code)
    return code


def _asked(settings: Settings, request: RetrainRequest) -> dict[str, Any]:
    """What of the request the next command may repeat."""
    from influence_cli.model.spec import is_own

    edits, manifest = request.edits, request.inputs.manifest
    compared = (
        "against",
        "arm",
        "scores",
        "rounds",
        "action",
        "budget",
        "by",
        "combine",
        "seeds",
        "require_improvement",
    )
    code = ["--model", settings.values["model"]] if is_own(settings.values["model"]) else []  # no folder may name it
    return {
        "output": settings.values["output"],
        "manifest": manifest,
        "scores": None if edits is None else edits.scores,
        "manifests": {"curated": manifest, **dict(request.arms)},
        "against": request.against,
        "read": [*settings.repeated_of("label", "skip_bad", "allow_outside", "overlap", "group"), *code],
        "edits": settings.repeated_of("combine", "set"),
        "training": settings.repeated(*compared),
        "command": ["retrain", manifest, *settings.repeated("seeds"), "-o", settings.values["output"]],
    }


def _check(request: RetrainRequest, recipe: Recipe) -> None:
    """Read the manifests and look at the run folder, as far as nothing is computed or written."""
    from influence_cli.data.open import open_manifest
    from influence_cli.stages.retrain.run_place import check_run_folder

    check_run_folder(request, recipe, probe=False)
    for path in (request.inputs.manifest, request.against, *(path for _, path in request.arms)):
        if path is not None:
            open_manifest(path, request.inputs.label, request.inputs.skip_bad)


def _edits(settings: Settings) -> EditsRequest | None:
    """Which edits are made from scores, if any; UsageError where a flag is about scores and there are none."""
    request = settings.make(EditsRequest, options=settings.options, spec=settings.make(GradSpec))
    if request.scores is None and request.rounds == 1:
        _refuse(settings, ("budget", "by", "combine", "action"), "is about edits made from scores",
                fix="pass --scores TABLE, or --rounds 4")  # fmt: skip
        return None
    if request.scores is not None and request.rounds > 1:
        raise UsageError("--scores are made once and --rounds makes them anew", fix="leave out one of the two")
    return request


def _canaries(settings: Settings) -> CanaryRequest | None:
    """Which wrong labels are planted, if any; UsageError where a flag is about canaries, and there are none."""
    if settings.make(RetrainOptions).canaries is None:
        _refuse(settings, ("canaries_from", "canary_noise"), "needs canaries", fix="pass --canaries 5%")
        return None
    return settings.make(CanaryRequest)


def _refuse(settings: Settings, names: tuple[str, ...], what: str, fix: str) -> None:
    """Refuse flags without what they are about; a settings file may hold them all the same."""
    for name in names:
        if settings.explicit(name):
            raise UsageError(f"--{name.replace('_', '-')} {what}", fix=fix)


def _show_arms(request: RetrainRequest, recipe: Recipe) -> None:
    """What would be trained, as JSON."""
    canaries, edits, made = request.canaries, request.edits, None
    if edits is not None:
        made = {"actions": edits.actions, "budgets": edits.budgets}
        if edits.scores is not None:
            made |= {"scores": edits.scores, "by": edits.by, "combine": edits.combine}
        else:
            made |= {"rounds": edits.rounds, "method": edits.spec.methods, "objective": edits.spec.objectives}
    described = {
        "schema_version": 1,
        "manifest": request.inputs.manifest,
        "against": request.against,
        "arms": [n for n, _ in request.arms],
        "edits": made,
        "seeds": [request.seed + s for s in range(request.seeds)],
        "canaries": canaries and {"share": canaries.share, "noise": canaries.kind, "from": canaries.source},
        "recipe": recipe.describe(),
        "records_epochs": request.records_epochs and recipe.has_epochs,
        "folds": request.folds,
    }
    print_json(described)


def _origin(settings: Settings, result: ResultOptions, request: RetrainRequest) -> Origin | None:
    """Where the page comes from; None where none is asked for."""
    if not result.report:
        return None
    from influence_cli.data.open import open_manifest
    from influence_cli.model.checkpoints import find_checkpoint
    from influence_cli.report.origin import Origin
    from influence_cli.store.remote import called

    def of(what: str, path: object, read: Callable[[], str]) -> tuple[str, str, str | None]:
        try:
            return what, str(path), read()
        except InfluenceError:  # read from standard input, or moved since: the page is made all the same
            return what, str(path), None

    label, skip_bad = request.inputs.label, request.inputs.skip_bad
    named = [("Manifest", request.inputs.manifest), ("Compared with", request.against)]
    inputs = [
        of(what, path, lambda path=path: open_manifest(path, label, skip_bad).fingerprint)
        for what, path in named
        if path is not None
    ]
    if request.edits is not None and request.edits.scores is not None:
        inputs.append(("Scores", str(request.edits.scores), None))
    inputs.append(of("Checkpoint", called(request.output), lambda: find_checkpoint(request.output)[0].digest))
    return Origin.now(settings.command_line(), inputs)


def _show_comparison(result: ResultOptions, metrics: dict[str, Any], origin: Origin | None) -> None:
    """The answer; accuracy of every arm, and differences from no edit and from its control; more with -v."""
    if result.format == "json":
        print_json(metrics)
    from influence_cli.data.row_checks import BadRow
    from influence_cli.report.answers import answer_of_retrain
    from influence_cli.report.arm_tables import arm_tables, comparison_table

    out = terminal()
    show_answer(answer_of_retrain(metrics))
    show_skipped({source: [BadRow(**b) for b in bad] for source, bad in metrics.get("left_out", {}).items()})
    if not out.quiet:
        _accuracies(metrics)
        tables = [comparison_table(metrics)] if metrics["comparison"] or out.verbose else []
        for table in (*tables, *arm_tables(metrics, brief=not out.verbose)):
            print_text_table(table, sys.stderr, out.note)
        for caution in metrics.get("cautions", []):
            out.warn(caution)
    nothing = f"nothing to draw (a single arm was trained): {result.plot} not written"
    write_pages(result, metrics, nothing, origin)


def _accuracies(metrics: dict[str, Any]) -> None:
    """Train, target and test accuracy of the first arm and seed, with a warning where one is at chance."""
    from influence_cli.stages.run.accuracy import at_chance

    out = terminal()
    arm = next(iter(metrics["arms"]))
    first = next(iter(metrics["arms"][arm]["seeds"].values()))
    if "accuracy" not in first and "train_accuracy" not in first:
        parts = [part for part in ("train", "target", "test") if _key(part, "loss") in first]
        out.note("; ".join(_said_of(first, part) for part in parts))
        if first.get("train_r2", 1.0) <= 0.0:
            what = f"train R2 is {first['train_r2']:.2f}, no better than the mean of the labels"
            out.warn(f"{what}: nothing below means anything; train longer, with another --lr, or scale the labels")
        return
    rates = {k: first[f"{k}_accuracy"] for k in ("train", "target") if f"{k}_accuracy" in first}
    if "accuracy" in first:
        rates["test"] = first["accuracy"]
    out.note(", ".join(f"{k} accuracy {v:.1%}" for k, v in rates.items()))
    folds = metrics.get("out_of_fold")
    if folds is not None and "accuracy" in folds:
        out.note(f"out of {folds['folds']} folds: accuracy {folds['accuracy']:.1%} on {folds['rows']:,} train rows")
    by_class = "train_balanced_accuracy" in first
    for name, rate in rates.items() if by_class else ():
        if at_chance(rate, metrics["test_rows"] or metrics["arms"][arm]["train_rows"], metrics["num_classes"]):
            out.warn(f"{name} accuracy is {rate:.1%}, no better than guessing: nothing below means anything")


def _key(part: str, name: str) -> str:
    """What a measure of some rows is called in a result: those of test rows have no word before them."""
    return name if part == "test" else f"{part}_{name}"


def _said_of(first: dict[str, Any], part: str) -> str:
    """The measures of some rows in words."""
    from influence_cli.data.measures import MEASURES
    from influence_cli.stages.run.number_quality import quality_said

    return f"{part} {quality_said({m: first[_key(part, m)] for m in MEASURES if _key(part, m) in first})}"

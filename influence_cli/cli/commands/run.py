"""``influence grads`` and ``influence score``: the store filled with what the rows lack, and scores made from it.

A score run is held against the table on the way in: where that was made from other content, it stops.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.settings.places import carried_settings, inputs_of, kind_of, review_commands, runtime_of
from influence_cli.cli.settings.requests import ResultOptions, ScoreOptions, all_options
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.answers import show_next
from influence_cli.cli.show.plan import show_pairs_plan, show_plan
from influence_cli.cli.show.run import show_run, show_skipped
from influence_cli.cli.show.table import put_table, show_pairs
from influence_cli.errors import UsageError
from influence_cli.options import SCORE, build_request
from influence_cli.settings import GradSpec, Limits
from influence_cli.stages.score.explain_request import ExplainRequest
from influence_cli.stages.score.tokens.request import TokenRequest

if TYPE_CHECKING:
    import pyarrow as pa

    from influence_cli.stages.run.run import Run
    from influence_cli.stages.run.session import Session

FEW = 20  # of the lowest rows, to look at
CALLED = {"fit_rows": "fit rows have", "features_model": "weights of --features have"}


def grads(settings: Settings) -> None:
    """Fill the store: directions, logits and tangents of the rows it has not seen."""
    from influence_cli.data.tables import provenance
    from influence_cli.stages.grads.fill import fill
    from influence_cli.stages.score.grads_table import grads_table

    result = settings.make(ResultOptions)
    run, session = _open(settings, result)
    if result.dry_run:
        return show_plan(result, run, session)
    if run.model is None and run.backbone is None:
        raise UsageError("these methods need no model, so there is nothing to compute", fix="ask for another --method")
    run, rows = fill(run, session)
    table = grads_table(run, session)
    filled = f"{rows:,} rows run through the model; the store is complete for {len(run.train):,} train rows"
    show_run(run, session, provenance(table.schema), filled)
    show_skipped(run.left_out)
    put_table(result, table, kind_of(settings, "output"), sort_by="loss", descending=True, classes=run.classes)
    if _goes_on(settings, result, run):
        return
    if carries_origin(result.output):
        show_next("score", result.output, *settings.repeated_of("allow_outside"), "-o", "scores.parquet")


def score(settings: Settings) -> None:
    """One score per train row, positive where the row helps; runs what is missing of grads."""
    from influence_cli.data.tables import provenance
    from influence_cli.report.page import require_jinja
    from influence_cli.stages.run.auto_method import called
    from influence_cli.stages.score.score import score as score_stage

    result, asked = settings.make(ResultOptions), settings.make(ScoreOptions)
    run, session = _open(settings, result, asked.per_target)
    tokens = settings.make(TokenRequest)
    explained = settings.make(ExplainRequest)
    if explained.explain:
        return _explain(settings, result, asked, explained, run, session)
    if tokens.tokens:
        return _tokens(settings, result, asked, tokens, run, session)
    if asked.per_target:
        return _per_target(settings, result, asked, run, session)
    if result.dry_run:
        return show_plan(result, run, session)
    if result.report:
        require_jinja()
    table, run = score_stage(run, session, asked.per_member, asked.combine)
    scored = f"{len(run.train):,} train rows scored by {called(run)}; positive: the row helps"
    show_run(run, session, provenance(table.schema), scored)
    show_skipped(run.left_out)
    put_table(result, table, kind_of(settings, "output"), sort_by="score", classes=run.classes)
    if result.report:
        _write_review(settings, result, table)
    if not _goes_on(settings, result, run):
        _show_next(settings, result, table)


def _goes_on(settings: Settings, result: ResultOptions, run: Run) -> bool:
    """Whether limits have left rows for later, of which the same command takes more each time: then that is said."""
    left = next((entry for entry in run.given_up if entry["what"] == "rows"), None)
    if left is None or settings.source in (None, "-"):
        return False
    what = f"{left['taken']:,} of {left['asked']:,} train rows are done, and the same command goes on with the others"
    terminal().note(f"{what}; edits by the scores so far leave those as they are")
    place = [] if result.output in (None, "-") else ["-o", result.output]
    show_next(settings.command, settings.source, *place, *settings.repeated())
    return True


def _write_review(settings: Settings, result: ResultOptions, table: pa.Table) -> None:
    """The page of the lowest rows, as they are, since nothing is edited yet."""
    from influence_cli.report.review.page import write_review
    from influence_cli.stages.curate.request import CurateRequest
    from influence_cli.stages.curate.review import lowest_rows, review_of_scores
    from influence_cli.stages.curate.score_table import read_scores
    from influence_cli.stages.curate.why import why_of

    by = () if "score" in table.column_names else (next(n for n in table.column_names if n.startswith("score_")),)
    request = build_request(CurateRequest, settings.values, scores=table, by=by or ("score",), manifest=None)
    scores = result.output if result.output is not None and carries_origin(result.output) else "scores.parquet"
    commands = review_commands(settings, scores)
    read = read_scores(request)
    why = why_of(read, lowest_rows(read)[: result.reasons], request, runtime_of(settings), terminal())
    write_review(review_of_scores(read, commands, why), str(result.report))
    terminal().note(f"page written to {result.report}")


def carries_origin(output: str | None) -> bool:
    """Whether a table that is written there says where its numbers come from: a file of Parquet."""
    return output is not None and output.endswith(".parquet")


def _show_next(settings: Settings, result: ResultOptions, table: pa.Table) -> None:
    """What to run on scores: edits by them, of as many rows as are estimated to be wrong, or first writing them."""
    from influence_cli.data.tables import provenance
    from influence_cli.methods import AUTO
    from influence_cli.report.wrong_labels import estimates_of, may_be_none, why_unknown
    from influence_cli.stages.grads.further_report import doubts_of
    from influence_cli.stages.score.noise import is_noise

    if settings.source is None or settings.source == "-" or result.output == "-":
        return
    if result.output is None:
        return show_next("score", settings.source, *settings.repeated(), "-o", "scores.parquet")
    columns, origin = table.column_names, provenance(table.schema)
    by = next((name for name in columns if name.startswith("score_")), None) if "score" not in columns else None
    judged = [e for e in estimates_of(origin) if e["column"] == f"score_{AUTO}" == origin.get("score_is")]
    some = [e for e in judged if not why_unknown(e) and not may_be_none(e)]
    estimated = bool(some) and carries_origin(result.output)
    words = [] if by is None else ["--by", by]
    if not carries_origin(result.output):  # no provenance, which names manifest and label
        words += ["--manifest", settings.values["manifest"] or settings.source]
        words += settings.repeated_of("label", "skip_bad")
    words += settings.repeated_of("allow_outside")  # which no table says
    noise = origin.get("noise", {})
    asked = by or str(origin.get("score_is", ""))
    noisy = any(asked.endswith(f"_{objective}") and is_noise(entry) for objective, entry in noise.items())
    noisy = noisy or bool(doubts_of(origin, by or "score"))
    few = table.num_rows < 20  # of which 5 % is no row
    if noisy or few or (judged and not some):  # noise, or there may be no wrong label: to look at, not to act on
        return show_next(
            "curate", result.output, *words, "--budget", min(FEW, table.num_rows), "--report", "review.html"
        )
    return show_next("curate", result.output, *words, "--budget", AUTO if estimated else "5%", "-o", "clean.parquet")


def _per_target(settings: Settings, result: ResultOptions, asked: ScoreOptions, run: Run, session: Session) -> None:
    """For each target row its most helpful and harmful train rows; UsageError for options of one score a row."""
    from influence_cli.stages.run.auto_method import called, effects_said
    from influence_cli.stages.score.per_target.table import describe_per_target, per_target

    for flag, given in (("--per-member", asked.per_member), ("--combine", asked.combine)):
        if given:
            what = f"{flag} is about one score a row, and --per-target has one a pair"
            raise UsageError(what, fix=f"leave {flag} out")
    for line in effects_said(run):
        terminal().note(line)
    if result.dry_run:
        return show_pairs_plan(result, describe_per_target(run, session, asked.top))
    table, run = per_target(run, session, asked.top)
    terminal().note(
        f"{len(run.target):,} target rows: up to {asked.top} most helpful and {asked.top} most harmful of "
        f"{len(run.train):,} train rows by {called(run)}; positive: the row helps that target row"
    )
    show_skipped(run.left_out)
    if result.for_people and not result.output:
        show_pairs(table, run.classes)
    else:
        put_table(result, table, kind_of(settings, "output"))


def _explain(
    settings: Settings, result: ResultOptions, asked: ScoreOptions, request: ExplainRequest, run: Run, session: Session
) -> None:
    """Reasons of some rows; UsageError for options of other tables, and for a form without room for lists."""
    from influence_cli.cli.show.explain import check_form, put_reasons
    from influence_cli.stages.score.explain import describe_explain, explain

    for flag, given in (
        ("--per-target", asked.per_target), ("--per-member", asked.per_member), ("--combine", asked.combine),
        ("--tokens", settings.values["tokens"]),
    ):  # fmt: skip
        if given:
            raise UsageError(f"--explain and {flag} make two different tables", fix=f"leave {flag} out, or --explain")
    check_form(result)
    after = describe_explain(run, request.explain)
    if result.dry_run:
        show_plan(result, run, session)
        return terminal().note(after)
    found = explain(run, session, request.explain, asked.top)
    show_skipped(found.run.left_out)
    put_reasons(result, found)


def _tokens(
    settings: Settings, result: ResultOptions, asked: ScoreOptions, tokens: TokenRequest, run: Run, session: Session
) -> None:
    """Scores of the tokens of some rows; UsageError for options of other tables."""
    from influence_cli.cli.show.tokens import show_tokens
    from influence_cli.data.tables import provenance
    from influence_cli.report.page import require_jinja
    from influence_cli.report.token_page import write_token_page
    from influence_cli.stages.run.auto_method import effects_said
    from influence_cli.stages.score.tokens.table import describe_tokens, token_scores

    for flag, given in (
        ("--per-target", asked.per_target), ("--per-member", asked.per_member), ("--combine", asked.combine)
    ):  # fmt: skip
        if given:
            raise UsageError(f"--tokens and {flag} make two different tables", fix=f"leave {flag} out, or --tokens")
    if result.report:
        require_jinja()
    after = describe_tokens(run, session, tokens, asked.top)
    if result.dry_run:
        show_plan(result, run, session)
        return terminal().note(after)
    found = token_scores(run, session, tokens, asked.top)
    shown = len(found.texts)
    for line in effects_said(found.run):
        terminal().note(line)
    show_run(found.run, session, provenance(found.table.schema), f"scores of {shown:,} rows split over their tokens")
    show_skipped(found.run.left_out)
    if result.report:
        write_token_page(found.table, found.texts, found.targets, result.report, settings.command_line())
    if result.output or not result.for_people:
        put_table(result, found.table, kind_of(settings, "output"))
    else:
        show_tokens(found)


def _open(settings: Settings, result: ResultOptions, pairs: bool = False) -> tuple[Run, Session]:
    """The run and its session, nothing computed yet; ``pairs``: scores are of pairs of a target and a train row.

    Raises:
        UsageError: the table on the way in is of other content.
    """
    from influence_cli.data.write_tables import check_suffix
    from influence_cli.stages.grads.same_run import open_ahead
    from influence_cli.stages.run.input_said import say_input
    from influence_cli.stages.run.open import open_run
    from influence_cli.stages.run.session import Session
    from influence_cli.stages.run.within_limits import within_limits
    from influence_cli.stages.score.per_target.table import PAIRS

    result.check_format(settings.command)
    if result.output:
        check_suffix(result.output)
    manifest, origin = _manifest(settings)
    session = Session.open(runtime_of(settings), terminal(), remember=not result.dry_run)
    effects = PAIRS if pairs else ""
    inputs, spec = inputs_of(settings, manifest), settings.make(GradSpec)
    if not effects:
        open_ahead(inputs, spec, session)
    run = open_run(inputs, spec, session, effects)
    _check_origin(settings, run, origin or {})
    say_input(run, session)
    insisted = frozenset(name for name in ("params", "precision") if settings.explicit(name))
    run = within_limits(run, session, settings.make(Limits), insisted, effects)
    before = [entry for entry in (origin or {}).get("given_up", ()) if entry["what"] != "rows"]  # which may go on
    return replace(run, given_up=(*before, *run.given_up)), session


def _manifest(settings: Settings) -> tuple[str, dict[str, Any] | None]:
    """The manifest with the payload, and the provenance of the table that stood in its place, if any."""
    from influence_cli.data.locators import require_found

    if settings.source is None:
        raise UsageError("no manifest", fix="name a Parquet manifest, or set manifest in influence.toml")
    carried = carried_settings(settings.source) if settings.command == SCORE else None
    if carried is None:
        return settings.source, None
    manifest = settings.values["manifest"]
    if manifest in (None, "-"):
        what, fix = "the table does not say where its manifest is", "pass --manifest PATH"
        raise UsageError(what, where=settings.source, fix=fix)
    for part in ("manifest", "target", "fit_rows", "checkpoint"):
        if settings.origins[part] == "provenance":
            require_found(carried["origin"], part, settings.source)
    return manifest, carried["origin"]


def _check_origin(settings: Settings, run: Run, origin: dict[str, Any]) -> None:
    """Stop where the table on the way in was made from other content than what is found now."""
    found = {
        "manifest": run.manifest.fingerprint,
        "target": run.target_fingerprint,
        "checkpoint": None if run.checkpoint is None else run.checkpoint.digest,
        "fit_rows": None if run.fit is None else run.fit.fingerprint,
        "features_model": None if run.backbone is None else run.backbone.checkpoint.digest,
    }
    for name, now in found.items():
        # a fit set that nothing pins is the manifest's: who means another manifest means its fit set
        flags = (name, "manifest") if name == "fit_rows" and run.inputs.fit_rows is None else (name,)
        then = (origin.get(name) or {}).get("fingerprint")
        if then is not None and now is not None and then != now and not any(map(settings.explicit, flags)):
            raise UsageError(
                f"the {CALLED.get(name, f'{name} has')} changed since the stage before",
                where=str(settings.values.get(name) or settings.values["manifest"] or settings.source),
                fix=f"run `influence grads` again, or pass {all_options()[name].flags[-1]} to say that you mean it",
            )

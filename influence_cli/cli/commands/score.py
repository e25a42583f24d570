"""``influence score``: one score per train row, or per pair of a target and a train row."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from influence_cli.cli.commands.run import open_session
from influence_cli.cli.console import terminal
from influence_cli.cli.settings.outputs import table_kind
from influence_cli.cli.settings.requests import ResultOptions, ScoreOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.per_target import show_pairs, show_pairs_plan
from influence_cli.cli.show.plan import show_plan
from influence_cli.cli.show.run import show_run, show_skipped
from influence_cli.cli.show.table import put_table
from influence_cli.errors import UsageError

if TYPE_CHECKING:
    from influence_cli.stages.run.run import Run
    from influence_cli.stages.run.session import Session


def score(settings: Settings) -> None:
    """One score per train row, positive where the row helps; runs what is missing of grads."""
    from influence_cli.data.tables import provenance
    from influence_cli.stages.score.score import score as score_stage

    result, asked = settings.make(ResultOptions), settings.make(ScoreOptions)
    run, session = open_session(settings, result)
    if asked.per_target:
        return _per_target(settings, result, asked, run, session)
    if result.dry_run:
        return show_plan(result, run, session)
    table, run = score_stage(run, session, asked.per_member, asked.combine)
    scored = f"{len(run.train):,} train rows scored by {', '.join(run.methods)}; positive: the row helps"
    show_run(run, session, provenance(table.schema), scored)
    show_skipped(run.left_out)
    put_table(result, table, table_kind(settings), sort_by="score")


def _per_target(settings: Settings, result: ResultOptions, asked: ScoreOptions, run: Run, session: Session) -> None:
    """For each target row its most helpful and harmful train rows.

    Raises:
        UsageError: an option that is about one score a row.
    """
    from influence_cli.stages.score.per_target.table import describe_per_target, per_target

    for flag, given in (("--per-member", asked.per_member), ("--combine", asked.combine)):
        if given:
            what = f"{flag} is about one score a row, and --per-target has one a pair"
            raise UsageError(what, fix=f"leave {flag} out")
    if result.dry_run:
        return show_pairs_plan(result, describe_per_target(run, session, asked.top))
    table, run = per_target(run, session, asked.top)
    terminal().note(
        f"{len(run.target):,} target rows: up to {asked.top} most helpful and {asked.top} most harmful of "
        f"{len(run.train):,} train rows by {next(iter(run.methods))}; positive: the row helps that target row"
    )
    show_skipped(run.left_out)
    for_people = result.format == "table" or (result.format == "auto" and sys.stdout.isatty())
    if for_people and not result.output:
        show_pairs(table)
    else:
        put_table(result, table, table_kind(settings))

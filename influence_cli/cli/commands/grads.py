"""``influence grads``: the store is filled with what the rows lack."""

from __future__ import annotations

from influence_cli.cli.commands.run import open_session
from influence_cli.cli.settings.outputs import table_kind
from influence_cli.cli.settings.requests import ResultOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.plan import show_plan
from influence_cli.cli.show.run import show_run, show_skipped
from influence_cli.cli.show.table import put_table
from influence_cli.errors import UsageError


def grads(settings: Settings) -> None:
    """Fill the store: directions, logits and tangents of the rows it has not seen."""
    from influence_cli.data.tables import provenance
    from influence_cli.stages.grads.fill import fill
    from influence_cli.stages.score.grads_table import grads_table

    result = settings.make(ResultOptions)
    run, session = open_session(settings, result)
    if result.dry_run:
        return show_plan(result, run, session)
    if run.model is None:
        raise UsageError("these methods need no model, so there is nothing to compute", fix="ask for another --method")
    run, rows = fill(run, session)
    table = grads_table(run, session)
    filled = f"{rows:,} rows run through the model; the store is complete for {len(run.train):,} train rows"
    show_run(run, session, provenance(table.schema), filled)
    show_skipped(run.left_out)
    put_table(result, table, table_kind(settings), sort_by="loss", descending=True)

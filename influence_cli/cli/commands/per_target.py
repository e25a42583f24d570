"""``influence score --per-target``: the rows that help and harm each target row most, as a table or for people."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from influence_cli.cli.console import cell, print_json, print_table
from influence_cli.cli.settings.resolve import Settings
from influence_cli.cli.show import tables as show
from influence_cli.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from influence_cli.stages.run.job import Job

SHOWN_TARGETS, SHOWN_ROWS = 5, 3  # on a terminal: target rows, and rows of each side
HIDDEN = ("target_row_key", "row_key")


def per_target(settings: Settings, job: Job) -> int | None:
    """For each target row its most helpful and harmful train rows.

    Raises:
        UsageError: an option that is about one score a row.
    """
    from influence_cli.stages.score.per_target.table import describe_per_target
    from influence_cli.stages.score.per_target.table import per_target as stage

    for name in ("per_member", "combine"):
        if settings[name]:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} is about one score a row, and --per-target has one a pair", fix=f"leave {flag} out"
            )
    if settings["dry_run"]:
        return _plan(settings, describe_per_target(job, settings["top"]))
    table = stage(job, settings["top"])
    show.terminal().note(
        f"{len(job.target):,} target rows: up to {settings['top']} most helpful and {settings['top']} most harmful of "
        f"{len(job.train):,} train rows by {next(iter(job.methods))}; positive: the row helps that target row"
    )
    show.skipped(job.left_out)
    auto = settings["format"] == "auto" and sys.stdout.isatty()
    if not settings["output"] and (auto or settings["format"] == "table"):
        _show(table)
        return None
    show.table(settings, table, sort_by=None)
    return None


def _show(table: pa.Table) -> None:
    """The first target rows with a few rows of each side, for people."""
    from influence_cli.data.write_tables import rows_of

    targets = list(dict.fromkeys(table.column("target_id").to_pylist()))
    first = set(targets[:SHOWN_TARGETS])
    names = [name for name in table.column_names if name not in HIDDEN]
    rows = [r for r in rows_of(table.select(names)) if r["target_id"] in first and r["rank"] <= SHOWN_ROWS]
    cells = [[cell(v) for v in row.values()] for row in rows]
    title = f"{len(first)} of {len(targets):,} target rows, the first {SHOWN_ROWS} of each side"
    print_table(title, names, cells, show.terminal(), sys.stdout)
    show.terminal().note("all of them with -o FILE, or --format csv")


def _plan(settings: Settings, plan: dict[str, object]) -> None:
    """What would run: as JSON in a pipe or when asked, as a table for people."""
    if settings["format"] == "json" or (settings["format"] == "auto" and not sys.stdout.isatty()):
        print_json(plan)
        return
    names = [n for n, value in plan.items() if n not in ("schema_version", "store") and not isinstance(value, list)]
    rows = [[n.replace("_", " "), f"{v:,}" if isinstance(v := plan[n], int) else cell(v)] for n in names]
    print_table(f"store: {plan['store']}", ["", "per target row"], rows, show.terminal(), sys.stdout)
    if plan.get("refused"):
        show.terminal().warn(f"the row gradients will be refused: {plan['refused']}")
    for kind in ("fits", "solves"):
        for entry in plan[kind]:  # type: ignore[attr-defined]
            text = ", ".join(f"{k} {cell(v)}" for k, v in entry.items())
            show.terminal().note(f"{kind.rstrip('s')}: {text}")

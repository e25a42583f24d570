"""The sentinel: is a full recompute needed at a new checkpoint?  Judged on a sample of the rows, scored there."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from influence_cli.data.locators import origin_of
from influence_cli.data.tables import keyed_rows, provenance, read_table
from influence_cli.errors import ManifestError, UsageError
from influence_cli.events import Listener
from influence_cli.methods.random import uniform_draws
from influence_cli.model.run_folder import RunFolder
from influence_cli.settings import Runtime, parse_budget, parse_share
from influence_cli.stages.curate.score_table import planted_labels
from influence_cli.stages.evaluate.comparison import compare_columns, match
from influence_cli.stages.run.reopen import reopen
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.score import score

LEAST_ROWS = 200  # a sentinel of fewer rows resolves nothing
RANK_BOUND, OVERLAP_BOUND = 0.9, 0.5  # below either the old scores no longer stand for the new


def sentinel_run(
    old: str, share: str, checkpoint: str, runtime: Runtime, seed: int, listener: Listener, remember: bool = True,
    manifest: str | None = None, class_map: Any = None,
) -> tuple[Run, Session]:  # fmt: skip
    """The run of an old table at a new checkpoint, on a seeded sample of the rows that the table still describes.

    The sample is ``share`` of those rows, at least 200, or all where there are fewer.

    Raises:
        UsageError: a method of the table scores a row by the other train rows, which a sample has not.
    """
    table = read_table(old)
    run, session = reopen(
        origin_of(table.schema, old), runtime, listener,
        source=old, manifest=manifest, checkpoint=checkpoint, class_map=class_map, another=True, remember=remember,
    )  # fmt: skip
    others = [name for name, method in run.methods.items() if method.depends_on_others()]
    if others:
        what = f"--sentinel scores a sample of the rows, and {others[0]} holds a row against all train rows"
        instead = f"--set {others[0]}.among=target" if hasattr(run.methods[others[0]], "among") else "--method ip"
        raise UsageError(what, where=old, fix=f"score without it, or with {instead}")
    then, planted = keyed_rows(table, old), planted_labels(table)
    usable = np.zeros(len(run.train), dtype=bool)  # as it was scored, and a canary of neither checkpoint
    for k, (name, key) in enumerate(zip(run.train.ids, run.train.row_keys, strict=True)):
        usable[k] = name in then and then[name][1] == key.tobytes() and planted[then[name][0]] < 0
    new = RunFolder.of(checkpoint).planted_labels(run.train)
    rows = np.flatnonzero(usable if new is None else usable & (new < 0))
    if not len(rows):
        raise ManifestError("no row in common", where=f"{old}, {run.manifest.source}", fix="run `influence score`")
    wanted = min(len(rows), max(LEAST_ROWS, math.ceil(parse_share(share, "--sentinel") * len(rows))))
    place = uniform_draws([run.train.ids[k] for k in rows.tolist()], seed)
    chosen = np.sort(rows[np.argsort(place, kind="stable")[:wanted]])
    return replace(run, train=run.train.take(chosen)), session


def sentinel(run: Run, session: Session, old: str, budget: str, draws: int, seed: int) -> dict[str, Any]:
    """Whether an old table still stands for the scores at the run's checkpoint, judged on the run's rows.

    A full recompute is needed where, for any method's column, the lower end of the interval of Spearman's correlation
    is below 0.9, or the rows under the budget overlap by a Jaccard below 0.5.
    """
    table = read_table(old)
    matched = match(table, score(run, session)[0], old, "the new scores")
    rows = max(1, round(parse_budget(budget, table.num_rows) / table.num_rows * len(matched.ids)))
    columns = compare_columns(matched, rows, draws, seed)
    free = {n for n, m in run.methods.items() if m.needs == "nothing"}
    judged: dict[str, Any] = {}
    for name, c in columns.items():
        if f"score_{name}" in table.column_names and name not in free:
            low = -1.0 if c["spearman_interval"] is None else c["spearman_interval"][0]
            judged[name] = low < RANK_BOUND or (c["jaccard"] or 0.0) < OVERLAP_BOUND
    then = provenance(table.schema)["checkpoint"]["fingerprint"]
    return {
        "schema_version": 1,
        "a": old,
        "b": None if run.checkpoint is None else run.checkpoint.locator,
        "same_checkpoint": run.checkpoint is not None and run.checkpoint.digest == then,
        "rows": matched.counts["rows"],
        "of_rows": table.num_rows,
        "budget_rows": rows,
        "comparison": columns,
        "recompute_by_column": judged,
        "recompute": any(judged.values()),
        "bounds": {"spearman_low": RANK_BOUND, "jaccard": OVERLAP_BOUND},
    }

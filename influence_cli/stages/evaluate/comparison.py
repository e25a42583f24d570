"""Two score tables compared row by row, and the sentinel: is a full recompute needed at a new checkpoint?

Rows are the same where id and row key are; rows in one table alone, and rows whose payload or label has changed, are
counted apart, and so are canaries of either checkpoint, whose scores are not of the label that it learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.tables import keyed_rows, provenance, read_table
from influence_cli.errors import ManifestError, UsageError
from influence_cli.events import Listener
from influence_cli.maths.bootstrap import correlation_interval, draws_of
from influence_cli.maths.noise import ranks, spearman
from influence_cli.maths.ranking import jaccard, kendall, lowest, weighted_spearman
from influence_cli.methods.random import Random
from influence_cli.model.run_folder import RunFolder
from influence_cli.settings import Runtime
from influence_cli.stages.budgets import parse_budget, parse_share
from influence_cli.stages.evaluate.columns import CANARY, score_columns
from influence_cli.stages.evaluate.order import sign_agreement
from influence_cli.stages.run.job import Job
from influence_cli.stages.run.reopen import reopen
from influence_cli.stages.score.score import score

Floats = NDArray[np.float64]
MOVERS = 10
LEAST_ROWS = 200  # a sentinel of fewer rows resolves nothing
RANK_BOUND, OVERLAP_BOUND = 0.9, 0.5  # below either the old scores no longer stand for the new


@dataclass(frozen=True, eq=False)
class Matched:
    """The rows that two tables have in common, and how many they have not."""

    a: pa.Table
    b: pa.Table
    ids: list[str]
    counts: dict[str, int]


def match(a: pa.Table, b: pa.Table, source_a: str, source_b: str) -> Matched:
    """Common rows of two score tables, by id and row key, in the order of the first.

    Raises:
        ManifestError: a table has no ids or row keys, or the two have no row in common.
    """
    keys_a, keys_b = _keys(a, source_a), _keys(b, source_b)
    place = {i: k for k, i in enumerate(keys_b)}
    shared = [i for i in keys_a if i in place]
    same = [i for i in shared if keys_a[i] == keys_b[i]]
    where_a = {i: k for k, i in enumerate(keys_a)}
    taken_a = a.take(pa.array([where_a[i] for i in same], pa.int64()))
    taken_b = b.take(pa.array([place[i] for i in same], pa.int64()))
    canary = np.zeros(len(same), dtype=bool)
    for table in (taken_a, taken_b):
        if CANARY in table.column_names:
            canary |= table.column(CANARY).is_valid().to_numpy()
    kept = pa.array(~canary)
    ids = [i for i, c in zip(same, canary.tolist(), strict=True) if not c]
    if not ids:
        raise ManifestError("no row in common", where=f"{source_a}, {source_b}", fix="compare tables of the same rows")
    counts = {
        "rows": len(ids),
        "only_in_a": len(keys_a) - len(shared),
        "only_in_b": len(keys_b) - len(shared),
        "changed": len(shared) - len(same),
        "canary_rows": int(canary.sum()),
    }
    return Matched(taken_a.filter(kept), taken_b.filter(kept), ids, counts)


def _keys(table: pa.Table, source: str) -> dict[str, bytes]:
    return {name: key for name, (_, key) in keyed_rows(table, source).items()}


def compare(a: str, b: str, budget: str, draws: int, seed: int) -> dict[str, Any]:
    """Two score tables, column by common column: rank correlations, lowest rows, signs, and the biggest movers.

    Raises:
        ManifestError: they have no row in common.
        UsageError: they have no column in common.
    """
    tables = read_table(a), read_table(b)
    matched = match(*tables, a, b)
    rows = parse_budget(budget, len(matched.ids))
    columns = _compared(matched, rows, draws, seed)
    if not columns:
        raise UsageError("no score column in common", where=f"{a}, {b}", fix="score both by the same methods")
    return {
        "schema_version": 1,
        "a": a,
        "b": b,
        **matched.counts,
        "budget_rows": rows,
        "comparison": columns,
    }


def _compared(matched: Matched, rows: int, draws: int, seed: int) -> dict[str, Any]:
    columns_a, columns_b = score_columns(matched.a), score_columns(matched.b)
    kinds = [provenance(t.schema).get("kinds", {}) for t in (matched.a, matched.b)]
    keys = [bytes.fromhex(k) if isinstance(k, str) else k for k in matched.a.column("row_key").to_pylist()]
    return {
        name: _column(
            matched.ids, keys, columns_a[name], columns_b[name], rows, draws, seed,
            all(k.get(f"score_{name}") == "signed" for k in kinds),
        )
        for name in columns_a
        if name in columns_b
    }  # fmt: skip


def _column(
    ids: list[str], keys: list[bytes], a: Floats, b: Floats, budget: int, draws: int, seed: int, signed: bool
) -> dict[str, Any]:
    both = np.flatnonzero(np.isfinite(a) & np.isfinite(b))
    x, y = a[both], b[both]
    names = [keys[k] for k in both.tolist()]
    k = min(budget, len(both))
    low_x, low_y = lowest(x, k, names), lowest(y, k, names)
    rho = spearman(x, y)
    interval = None
    if rho is not None:
        everything = np.ones(len(both), dtype=bool)
        drawn = [weighted_spearman(x, y, counts) for counts in draws_of(everything, draws, seed)]
        interval = correlation_interval(rho, np.concatenate(drawn))
    rank_x, rank_y = ranks(x), ranks(y)
    moved = np.lexsort((np.argsort(np.argsort(np.array(names))), -np.abs(rank_x - rank_y)))[:MOVERS]
    return {
        "rows": len(both),
        "spearman": rho,
        "spearman_interval": interval,
        "kendall": kendall(x, y),
        "jaccard": jaccard(low_x, low_y),
        "overlap": int((low_x & low_y).sum()),
        "budget_rows": k,
        "sign_agreement": sign_agreement(x, y) if signed else None,
        "movers": [
            {
                "id": ids[int(both[m])],
                "score_a": float(x[m]),
                "score_b": float(y[m]),
                "rank_a": float(rank_x[m]),
                "rank_b": float(rank_y[m]),
            }
            for m in moved.tolist()
            if rank_x[m] != rank_y[m]
        ],
    }


def sentinel_job(
    old: str, share: str, checkpoint: str, runtime: Runtime, seed: int, listener: Listener, remember: bool = True,
    manifest: str | None = None,
) -> Job:  # fmt: skip
    """The job of an old table at a new checkpoint, on a seeded sample of the rows that the table still describes.

    The sample is ``share`` of those rows, at least 200, or all where there are fewer.
    """
    table = read_table(old)
    job = reopen(
        provenance(table.schema), runtime, listener,
        source=old, manifest=manifest, checkpoint=checkpoint, another=True, remember=remember,
    )  # fmt: skip
    keys = _keys(table, old)
    same = [keys.get(i) == k.tobytes() for i, k in zip(job.train.ids, job.train.row_keys, strict=True)]
    planted = (
        set(table.filter(table.column(CANARY).is_valid())["id"].to_pylist()) if CANARY in table.schema.names else ()
    )
    new = RunFolder.of(checkpoint).planted_labels(job.train)
    canary = np.array([i in planted for i in job.train.ids]) | (False if new is None else new >= 0)
    rows = np.flatnonzero(np.array(same) & ~canary)
    if not len(rows):
        raise ManifestError("no row in common", where=f"{old}, {job.manifest.source}", fix="run `influence score`")
    wanted = min(len(rows), max(LEAST_ROWS, math.ceil(parse_share(share, "--sentinel") * len(rows))))
    place = Random().score([job.train.ids[k] for k in rows.tolist()], seed)
    chosen = np.sort(rows[np.argsort(place, kind="stable")[:wanted]])
    return replace(job, train=job.train.take(chosen))


def sentinel(job: Job, old: str, budget: str, draws: int, seed: int) -> dict[str, Any]:
    """Whether an old table still stands for the scores at the job's checkpoint, judged on the job's rows.

    A full recompute is needed where, for any method's column, the lower end of the interval of Spearman's correlation
    is below 0.9, or the rows under the budget overlap by a Jaccard below 0.5.
    """
    table = read_table(old)
    matched = match(table, score(job), old, "the new scores")
    rows = max(1, round(parse_budget(budget, table.num_rows) / table.num_rows * len(matched.ids)))
    columns = _compared(matched, rows, draws, seed)
    free = {n for n, m in job.methods.items() if m.needs == "nothing"}
    judged: dict[str, Any] = {}
    for name, c in columns.items():
        if f"score_{name}" in table.column_names and name not in free:
            low = -1.0 if c["spearman_interval"] is None else c["spearman_interval"][0]
            judged[name] = low < RANK_BOUND or (c["jaccard"] or 0.0) < OVERLAP_BOUND
    then = provenance(table.schema)["checkpoint"]["fingerprint"]
    return {
        "schema_version": 1,
        "a": old,
        "b": None if job.checkpoint is None else job.checkpoint.locator,
        "same_checkpoint": job.checkpoint is not None and job.checkpoint.digest == then,
        "rows": matched.counts["rows"],
        "of_rows": table.num_rows,
        "budget_rows": rows,
        "comparison": columns,
        "recompute_by_column": judged,
        "recompute": any(judged.values()),
        "bounds": {"spearman_low": RANK_BOUND, "jaccard": OVERLAP_BOUND},
    }

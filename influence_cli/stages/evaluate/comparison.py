"""Two score tables compared row by row.

Rows are the same where id and row key are; rows in one table alone, and rows whose payload or label has changed, are
counted apart, and so are canaries of either checkpoint, whose scores are not of the label that it learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.tables import keyed_rows, provenance, read_table
from influence_cli.errors import ManifestError, UsageError
from influence_cli.maths.bootstrap import correlation_interval, draws_of
from influence_cli.maths.noise import ranks, spearman
from influence_cli.maths.ranking import jaccard, kendall, lowest, weighted_spearman
from influence_cli.settings import parse_budget
from influence_cli.stages.evaluate.order import sign_agreement
from influence_cli.stages.evaluate.score_tables import CANARY, score_columns

Floats = NDArray[np.float64]
MOVERS = 10


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
    keys_a, keys_b = keys_by_id(a, source_a), keys_by_id(b, source_b)
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


def keys_by_id(table: pa.Table, source: str) -> dict[str, bytes]:
    """The row key of every row of a score table, by id."""
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
    columns = compare_columns(matched, rows, draws, seed)
    if not columns:
        raise UsageError("no score column in common", where=f"{a}, {b}", fix="score both by the same methods")
    return {"schema_version": 1, "a": a, "b": b, **matched.counts, "budget_rows": rows, "comparison": columns}


def compare_columns(matched: Matched, rows: int, draws: int, seed: int) -> dict[str, Any]:
    """What is compared of every column that both tables have, by its name, with ``rows`` as the budget."""
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

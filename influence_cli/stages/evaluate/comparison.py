"""Two score tables compared row by row.

Rows are the same where id and row key are; rows in one table alone, and rows whose payload or label has changed, are
counted apart, and so are canaries of either checkpoint, whose scores are not of the label that it learned.
"""

from __future__ import annotations

import itertools
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
from influence_cli.stages.curate.score_table import planted_labels
from influence_cli.stages.evaluate.order import sign_agreement
from influence_cli.stages.evaluate.score_tables import score_columns

Floats = NDArray[np.float64]
MOVERS = 10


@dataclass(frozen=True, eq=False)
class Matched:
    """The rows that two tables have in common, and how many they have not."""

    a: pa.Table
    b: pa.Table
    ids: list[str]
    keys: list[bytes]  # row keys
    counts: dict[str, int]


def match(a: pa.Table, b: pa.Table, source_a: str, source_b: str) -> Matched:
    """Common rows of two score tables, by id and row key, in the order of the first.

    Raises:
        ManifestError: a table has no ids or row keys, or the two have no row in common.
    """
    rows_a, rows_b = keyed_rows(a, source_a), keyed_rows(b, source_b)
    shared = [i for i in rows_a if i in rows_b]
    same = [i for i in shared if rows_a[i][1] == rows_b[i][1]]
    a, b = (t.take(pa.array([rows[i][0] for i in same], pa.int64())) for t, rows in ((a, rows_a), (b, rows_b)))
    canary = (planted_labels(a) >= 0) | (planted_labels(b) >= 0)
    ids = list(itertools.compress(same, ~canary))
    if not ids:
        raise ManifestError("no row in common", where=f"{source_a}, {source_b}", fix="compare tables of the same rows")
    counts = {
        "rows": len(ids),
        "only_in_a": len(rows_a) - len(shared),
        "only_in_b": len(rows_b) - len(shared),
        "changed": len(shared) - len(same),
        "canary_rows": int(canary.sum()),
    }
    kept = pa.array(~canary)
    return Matched(a.filter(kept), b.filter(kept), ids, [rows_a[i][1] for i in ids], counts)


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
    found: dict[str, Any] = {}
    for name in (n for n in columns_a if n in columns_b):
        signed = all(k.get(f"score_{name}") == "signed" for k in kinds)
        found[name] = _column(matched, columns_a[name], columns_b[name], rows, draws, seed, signed)
    return found


def _column(matched: Matched, a: Floats, b: Floats, budget: int, draws: int, seed: int, signed: bool) -> dict[str, Any]:
    both = np.flatnonzero(np.isfinite(a) & np.isfinite(b))
    x, y = a[both], b[both]
    names = [matched.keys[k] for k in both.tolist()]
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
                "id": matched.ids[int(both[m])],
                "score_a": float(x[m]),
                "score_b": float(y[m]),
                "rank_a": float(rank_x[m]),
                "rank_b": float(rank_y[m]),
            }
            for m in moved.tolist()
            if rank_x[m] != rank_y[m]
        ],
    }

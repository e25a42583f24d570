"""Order consistency: do methods, members, halves of the target and seeds agree on which rows are bad?

Spearman's correlation of every two columns, the Jaccard overlap of their lowest rows under the budget, and sign
agreement where both columns are signed; over members the mean share that agrees on a row's sign; over halves of the
target the reliability that the table carries; and the angle between a direction q and what a method made of it, u.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.events import SILENT, Listener
from influence_cli.maths.noise import spearman
from influence_cli.maths.ranking import jaccard, lowest
from influence_cli.settings import Runtime
from influence_cli.stages.evaluate.score_tables import NamedTable, ScoreTables
from influence_cli.store import Store, open_store

Floats = NDArray[np.float64]


def pair(a: Floats, b: Floats, budget: int, keys: list[bytes], signed: bool) -> dict[str, Any]:
    """Agreement of two columns [n] on the rows that both score: Spearman, lowest rows, and signs where they mean it."""
    both = np.isfinite(a) & np.isfinite(b)
    x, y = (np.where(both, v, np.nan) for v in (a, b))
    return {
        "rows": int(both.sum()),
        "spearman": spearman(a[both], b[both]),
        "jaccard": jaccard(lowest(x, budget, keys), lowest(y, budget, keys)),
        "sign_agreement": sign_agreement(a[both], b[both]) if signed else None,
    }


def sign_agreement(a: Floats, b: Floats) -> float | None:
    """Share of rows whose two scores have the same sign; None without rows.

    >>> sign_agreement(np.array([1.0, -1.0, 0.0]), np.array([2.0, 3.0, 0.0]))
    0.6666666666666666
    """
    return float((np.sign(a) == np.sign(b)).mean()) if len(a) else None


def order_consistency(
    scores: ScoreTables, budget: int, runtime: Runtime, listener: Listener = SILENT
) -> dict[str, Any]:
    """Agreement between every two columns, over members, between halves of the target, and of q with u."""
    keys = [k.tobytes() for k in scores.train.row_keys]
    pairs = [
        {"a": a, "b": b, **pair(x, y, budget, keys, scores.kinds[a] == scores.kinds[b] == "signed")}
        for (a, x), (b, y) in itertools.combinations(scores.columns.items(), 2)
    ]
    out: dict[str, Any] = {"columns": list(scores.columns), "budget_rows": budget, "pairs": pairs}
    many = len(scores.tables) > 1
    for table in scores.tables:
        entry = {**_members(table), **_halves(table), **_angles(table, runtime, listener)}
        for name, value in entry.items():
            out.setdefault(name, {})[table.stem if many else "table"] = value
    return out


def _members(table: NamedTable) -> dict[str, Any]:
    """Over the members of the table's first method: how far they agree on a row's sign."""
    known = "agreement" in table.table.column_names
    agreement = table.table.column("agreement").drop_null().to_numpy() if known else np.array([])
    if not len(agreement):
        return {}
    return {"members": {"sign_agreement": float(agreement.mean()), "unanimous": float((agreement == 1.0).mean())}}


def _halves(table: NamedTable) -> dict[str, Any]:
    """Spearman's correlation of the scores from two halves of the target rows, by objective."""
    noise = table.provenance.get("noise", {})
    known = {name: entry.get("reliability") for name, entry in noise.items()}
    return {"halves": known} if known else {}


def _angles(table: NamedTable, runtime: Runtime, listener: Listener) -> dict[str, Any]:
    """Cosine of q and u by column, from the directions that the table's provenance names and the store holds.

    Provenance key ``preconditioned``: column -> list of {"q": name, "u": name}, one a member.
    """
    named = table.provenance.get("preconditioned") or {}
    if not named or runtime.store is None or not Path(runtime.store).is_dir():
        return {}
    store = open_store(runtime.store, listener)
    found: dict[str, Any] = {}
    for column, members in named.items():
        cosines = [c for m in members if (c := _cosine(store, m["q"], m["u"])) is not None]
        if cosines:
            found[column] = {"cosine": float(np.mean(cosines)), "members": cosines}
    return {"angles": found} if found else {}


def _cosine(store: Store, q: str, u: str) -> float | None:
    a, b = store.directions.read(q), store.directions.read(u)
    if a is None or b is None or set(a) != set(b):
        return None
    x, y = (np.concatenate([d[n].ravel().astype(np.float64) for n in sorted(d)]) for d in (a, b))
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    return None if scale == 0.0 else float(np.clip(float(x @ y) / scale, -1.0, 1.0))


def stability(scores: ScoreTables, budget: int) -> dict[str, Any]:
    """For every column that several tables have: how far its scores agree between the tables, pair by pair."""
    keys = [k.tobytes() for k in scores.train.row_keys]
    columns = [(t, t.columns()) for t in scores.tables]
    out: dict[str, Any] = {}
    for name in dict.fromkeys(name for _, known in columns for name in known):
        having = [(t, known[name]) for t, known in columns if name in known]
        pairs = [
            {"a": s.stem, "b": t.stem, **pair(x, y, budget, keys, s.kind(name) == "signed")}
            for (s, x), (t, y) in itertools.combinations(having, 2)
        ]
        if pairs:
            out[name] = {
                "tables": len(having),
                "spearman": _mean([p["spearman"] for p in pairs]),
                "least_spearman": min((p["spearman"] for p in pairs if p["spearman"] is not None), default=None),
                "jaccard": _mean([p["jaccard"] for p in pairs]),
                "pairs": pairs,
            }
    return {"budget_rows": budget, "columns": out}


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None

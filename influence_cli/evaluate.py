"""How far to trust the scores: detection of rows whose label is known to be wrong.

Suspiciousness is minus the score.  Figures are scikit-learn's ROC AUC and average precision, and precision and
recall at a budget; intervals are 95 % percentile intervals of a seeded bootstrap over rows, stratified by truth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.curate import CurateRequest, parse_budget, read_scores
from influence_cli.errors import ManifestError
from influence_cli.methods.random import Random

DRAWS = 200


def evaluate(request: CurateRequest, clean_column: str = "clean_label", seed: int = 0) -> dict[str, Any]:
    """Detection figures of every score column in a table, of loss and margin where there, and of a random draw.

    Raises:
        ManifestError: the manifest has no column of clean labels, or it says that no row (or every row) is wrong.
    """
    scores = read_scores(request)
    clean = scores.train.clean_labels(clean_column)
    if clean is None:
        raise ManifestError(
            f"no column {clean_column!r}: detection needs to know the truth",
            where=scores.manifest.source,
            fix="name it with --clean-label COLUMN",
        )
    wrong = (clean >= 0) & (clean != scores.train.labels)
    if wrong.all() or not wrong.any():
        raise ManifestError(
            f"{int(wrong.sum())} of {len(wrong)} train labels are wrong: there is nothing to tell apart",
            where=f"{scores.manifest.source}, column {clean_column}",
            fix="check the column",
        )
    budget = parse_budget(request.budget or "5%", len(wrong))
    columns = _columns(scores.table)
    columns["random"] = Random().score(scores.train.ids, seed)
    return {
        "schema_version": 1,
        "train_rows": len(wrong),
        "wrong_rows": int(wrong.sum()),
        "budget_rows": budget,
        "detection": {name: detection(wrong, -values, budget, seed) for name, values in columns.items()},
    }


def _columns(table: pa.Table) -> dict[str, NDArray[np.float64]]:
    """Scores by column; loss is negated, so that suspicious rows come last everywhere."""
    names = [n for n in table.column_names if n.startswith("score_") and n != "score_std"]
    signs = {**dict.fromkeys(names, 1.0), "loss": -1.0, "margin": 1.0}
    found: dict[str, NDArray[np.float64]] = {}
    for name, sign in signs.items():
        shown = name.removeprefix("score_")
        if name in table.column_names and shown not in found:
            found[shown] = sign * table.column(name).cast(pa.float64()).fill_null(np.nan).to_numpy()
    return found


def detection(wrong: NDArray[np.bool_], suspicion: NDArray[np.float64], budget: int, seed: int) -> dict[str, Any]:
    """ROC AUC and average precision with intervals, precision and recall at ``budget``; null scores are left out."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    usable = np.isfinite(suspicion)
    wrong, suspicion = wrong[usable], suspicion[usable]
    top = np.argsort(-suspicion, kind="stable")[:budget]
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(wrong), np.flatnonzero(~wrong)]
    draws = np.array(
        [
            [roc_auc_score(wrong[d], suspicion[d]), average_precision_score(wrong[d], suspicion[d])]
            for d in (np.concatenate([rng.choice(g, len(g)) for g in groups]) for _ in range(DRAWS))
        ]
    )
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return {
        "auc": float(roc_auc_score(wrong, suspicion)),
        "auc_interval": [float(low[0]), float(high[0])],
        "average_precision": float(average_precision_score(wrong, suspicion)),
        "average_precision_interval": [float(low[1]), float(high[1])],
        "precision_at_budget": float(wrong[top].mean()) if budget else None,
        "recall_at_budget": float(wrong[top].sum() / wrong.sum()),
        "rows": int(usable.sum()),
    }

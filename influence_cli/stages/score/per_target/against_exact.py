"""How far scores from sketches, or in bf16, agree with exact ones: both are taken for a few target and train rows.

Rows are chosen by their keys, so that they stay the same as others come and go; what was found is remembered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.maths.noise import spearman
from influence_cli.maths.top_k import inner_products
from influence_cli.stages.grads.row_gradients import StoredGradients
from influence_cli.stages.run.gradient_plan import row_request
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.per_target.tangents import TangentRun
from influence_cli.store import fingerprint
from influence_cli.store.shards import key_order, unique

TARGETS, ROWS = 4, 256  # rows that are scored both ways


def is_exact(run: Run) -> bool:
    """Whether scores are those of the model to rounding in float32."""
    return run.spec.rows != "sketch" and (run.spec.precision != "bf16" or run.spec.rows is not None)


def agreement_of_pairs(
    run: Run, session: Session, name: str, measure: bool, gradients: StoredGradients | None = None
) -> dict[str, Any] | None:
    """Rank correlation with exact scores (the mean over target rows) and the root mean square error beside theirs.

    ``gradients`` are what scores are made of, where they are not of tangents.  None where it was not measured before,
    and is not to be.
    """
    target, train = _chosen(run.target, TARGETS), _chosen(run.train, ROWS)
    members = [member.name for member in run.members_of[name]]
    made_of = members if run.spec.rows is None else row_request(run, session).name(run)
    about = {"of": made_of, "target": target.fingerprint(), "train": train.fingerprint(), "params": run.spec.params}
    note = fingerprint("agreement-of-pairs", 1, method=name, **about)
    found = session.store.read_model_note(note)
    if found is None and measure:
        found = _measured(run, session, name, gradients, target, train)
        session.store.write_model_note(note, found)
    return found


def _chosen(rows: Rows, count: int) -> Rows:
    """Some distinct rows, in order."""
    distinct = rows.take(unique(rows.row_keys))
    return distinct.take(np.sort(key_order(distinct.row_keys)[:count]))


def _measured(
    run: Run, session: Session, name: str, gradients: StoredGradients | None, target: Rows, train: Rows
) -> dict[str, Any]:
    half = run.spec.precision == "bf16"
    precise = replace(run, spec=replace(run.spec, precision="fp32")) if half else run
    exact = _by_tangents(precise, session, name, target, train)
    if gradients is None:
        estimated = _by_tangents(run, session, name, target, train)
    else:
        values = [gradients.read(rows.row_keys, ("value",))["value"] for rows in (target, train)]
        with np.errstate(invalid="ignore", over="ignore"):
            estimated = inner_products(*values)
    usable = np.isfinite(exact).all(axis=0) & np.isfinite(estimated).all(axis=0)
    a, b = estimated[:, usable], exact[:, usable]
    ranks = [r for r in (spearman(x, y) for x, y in zip(a, b, strict=True)) if r is not None]
    size = float(np.sqrt(np.mean(b**2))) if b.size else 0.0
    return {
        "target_rows": len(target),
        "train_rows": int(usable.sum()),
        "rank_correlation": float(np.mean(ranks)) if ranks else None,
        "relative_error": float(np.sqrt(np.mean((a - b) ** 2))) / size if size > 0 else None,
    }


def _by_tangents(run: Run, session: Session, name: str, target: Rows, train: Rows) -> NDArray[np.float64]:
    """Scores [t, r]."""
    tangents, scores = TangentRun(run, session, name, train), np.full((len(target), len(train)), np.nan)
    for batch in session.rows(tangents.model, target, len(target), keep=False):
        for places, found in tangents.scores(tangents.directions(target, batch)):
            scores[:, places] = found
    return scores

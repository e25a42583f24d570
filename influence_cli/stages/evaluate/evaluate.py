"""How far to trust the scores, without training anything: detection, canaries, order consistency, comparisons.

``evaluate`` asks every part in ``PARTS`` what it can say of the tables; a part with nothing to say returns nothing.
A new question is one function and one row there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from influence_cli.errors import ManifestError
from influence_cli.events import SILENT, Listener
from influence_cli.methods.random import uniform_draws
from influence_cli.settings import parse_budget
from influence_cli.stages.evaluate.canary_detection import CanarySettings, canaries_of
from influence_cli.stages.evaluate.checkpoint_quality import quality_of
from influence_cli.stages.evaluate.detection import RANDOM, detect
from influence_cli.stages.evaluate.order import order_consistency, stability
from influence_cli.stages.evaluate.request import EvaluateRequest
from influence_cli.stages.evaluate.score_tables import ScoreTables, read_score_tables
from influence_cli.stages.evaluate.truth import Truth, truth_of_column, truth_of_list
from influence_cli.store.place import check_place, store_root


@dataclass(eq=False)
class Evaluation:
    """What a part works on."""

    request: EvaluateRequest
    scores: ScoreTables
    truth: Truth | None
    listener: Listener

    def budget(self, rows: int) -> int:
        """The budget in rows, of so many."""
        return parse_budget(self.request.budget, rows)


def evaluate(request: EvaluateRequest, listener: Listener = SILENT) -> dict[str, Any]:
    """Everything that the parts can say of one or more score tables of the same rows.

    Raises:
        InfluenceError: a table, the manifest or the truth cannot be used, or nothing at all can be said.
    """
    if request.runtime.store is not None:  # before anything is computed
        check_place(store_root(request.runtime.store))
    scores = read_score_tables(request.scores, request.manifest, request.label, request.skip_bad)
    for source, bad in scores.manifest.left_out.items():
        listener.note(f"{len(bad):,} rows of {source} cannot be used and were left out")
    evaluation = Evaluation(request, scores, _truth(request, scores), listener)
    result: dict[str, Any] = {
        "schema_version": 1,
        "train_rows": len(scores.train),
        "wrong_rows": None,
        "budget_rows": evaluation.budget(len(scores.train)),
        "detection": {},
    }
    for part in PARTS:
        result.update(part(evaluation))
    if not (result["detection"] or result.get("canaries") or result.get("at_checkpoint") or len(scores.columns) > 1):
        raise ManifestError(
            "no column 'clean_label': detection needs to know the truth",
            where=scores.manifest.source,
            fix="name it with --clean-label COLUMN, pass --known-bad FILE, or train with `retrain --canaries 5%`",
        )
    return result


def _truth(request: EvaluateRequest, scores: ScoreTables) -> Truth | None:
    if request.known_bad is not None:
        return truth_of_list(scores.train, request.known_bad)
    truth = truth_of_column(scores.train, request.clean_column or "clean_label")
    if truth is None and request.clean_column is not None:
        raise ManifestError(
            f"no column {request.clean_column!r}: detection needs to know the truth",
            where=scores.manifest.source,
            fix="name it with --clean-label COLUMN, or pass --known-bad FILE",
        )
    return truth


def _detection(e: Evaluation) -> dict[str, Any]:
    """How well each column finds the rows that are known to be wrong; canaries, which learned otherwise, aside."""
    if e.truth is None:
        return {}
    canary = np.any([t.canaries() >= 0 for t in e.scores.tables], axis=0)
    truth = e.truth.without(canary)
    rows = int(truth.known.sum())
    columns = {**e.scores.columns, RANDOM: uniform_draws(e.scores.train.ids, e.request.seed)}
    budget = e.budget(rows)
    found = detect(columns, truth, budget, e.request.draws, e.request.seed, e.request.reference)
    return {
        "wrong_rows": int(truth.wrong.sum()),
        "known_rows": rows,
        "canary_rows": int(canary.sum()),
        "budget_rows": budget,
        "truth": truth.source,
        "detection": found.pop("columns"),
        **found,
    }


def _canaries(e: Evaluation) -> dict[str, Any]:
    """How well each column finds the wrong labels that were planted in training."""
    r = e.request
    found = canaries_of(
        e.scores, e.truth, CanarySettings(r.runtime, e.listener, r.budget, r.draws, r.seed, r.manifest, r.checkpoint)
    )
    return {"canaries": found} if found else {}


def _order(e: Evaluation) -> dict[str, Any]:
    """How far columns, members and halves of the target agree."""
    return {"order": order_consistency(e.scores, e.budget(len(e.scores.train)), e.request.runtime, e.listener)}


def _stability(e: Evaluation) -> dict[str, Any]:
    """How far columns of one name agree between the tables."""
    if not e.request.stability:
        return {}
    return {"stability": stability(e.scores, e.budget(len(e.scores.train)))}


def _checkpoint(e: Evaluation) -> dict[str, Any]:
    """What the users of fairness and robustness look at, of the model that was scored."""
    found = quality_of(e.scores, e.request.runtime, e.listener, e.request.manifest, e.request.checkpoint)
    return {"at_checkpoint": found} if found else {}


PARTS: tuple[Callable[[Evaluation], dict[str, Any]], ...] = (_detection, _canaries, _order, _stability, _checkpoint)

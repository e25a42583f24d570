"""How far to trust the scores, without training anything: detection, canaries, order consistency, comparisons.

Each question is a file of its own; one that has nothing to say of the tables is left out of the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from influence_cli.errors import ManifestError
from influence_cli.events import SILENT, Listener
from influence_cli.methods.random import uniform_draws
from influence_cli.report.wrong_labels import estimates_of, wrong_labels_said
from influence_cli.settings import parse_budget
from influence_cli.stages.curate.score_table import planted_labels
from influence_cli.stages.evaluate.canary_detection import canaries_of
from influence_cli.stages.evaluate.checkpoint_quality import quality_of
from influence_cli.stages.evaluate.detection import RANDOM, detect
from influence_cli.stages.evaluate.order import order_consistency, stability
from influence_cli.stages.evaluate.request import EvaluateRequest
from influence_cli.stages.evaluate.score_tables import ScoreTables, read_score_tables
from influence_cli.stages.evaluate.truth import Truth, truth_of_column, truth_of_list
from influence_cli.store.place import check_place, store_root


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
    truth, budget = _truth(request, scores, listener), parse_budget(request.budget, len(scores.train))
    result: dict[str, Any] = {
        "schema_version": 1,
        "train_rows": len(scores.train),
        "wrong_rows": None,
        "budget_rows": budget,
        "sources": {name: list(place) for name, place in scores.sources.items()},
        "detection": {},
    }
    if truth is not None:
        result |= _detection(request, scores, truth)
    if canaries := canaries_of(scores, truth, request, listener):
        result["canaries"] = canaries
    result["order"] = order_consistency(scores, budget, request.runtime, listener)
    if said := _wrong_labels(scores):
        result["wrong_labels"] = said
    if request.stability:
        result["stability"] = stability(scores, budget)
    if measured := quality_of(scores, request, listener):
        result["at_checkpoint"] = measured
    said = (result["detection"], *(result.get(part) for part in ("canaries", "at_checkpoint", "wrong_labels")))
    if not (any(said) or len(scores.columns) > 1):
        what = "no column 'clean_label': detection needs to know the truth"
        fix = "name it with --clean-label COLUMN, pass --known-bad FILE, or train with `retrain --canaries 5%`"
        raise ManifestError(what, where=scores.manifest.source, fix=fix)
    return result


def _truth(request: EvaluateRequest, scores: ScoreTables, listener: Listener) -> Truth | None:
    if request.known_bad is not None:
        return truth_of_list(scores.train, request.known_bad, listener)
    truth = truth_of_column(scores.train, request.clean_column or "clean_label")
    if truth is None and request.clean_column is not None:
        what = f"no column {request.clean_column!r}: detection needs to know the truth"
        fix = "name it with --clean-label COLUMN, or pass --known-bad FILE"
        raise ManifestError(what, where=scores.manifest.source, fix=fix)
    return truth


def _wrong_labels(scores: ScoreTables) -> list[dict[str, Any]]:
    """How many labels are wrong by the columns that estimate it, with the names of the classes."""
    found = [{"table": t.source, **said} for t in scores.tables for said in estimates_of(t.provenance)]
    return [{**said, "said": wrong_labels_said(said, scores.manifest.classes)} for said in found]


def _detection(request: EvaluateRequest, scores: ScoreTables, truth: Truth) -> dict[str, Any]:
    """How well each column finds the rows that are known to be wrong; canaries, which learned otherwise, aside."""
    canary = np.any([planted_labels(t.table) >= 0 for t in scores.tables], axis=0)
    truth = truth.without(canary)
    rows = int(truth.known.sum())
    columns = {**scores.columns, RANDOM: uniform_draws(scores.train.ids, request.seed)}
    budget = parse_budget(request.budget, rows)
    found = detect(columns, truth, budget, request.draws, request.seed, request.reference)
    return {
        "wrong_rows": int(truth.wrong.sum()),
        "known_rows": rows,
        "canary_rows": int(canary.sum()),
        "budget_rows": budget,
        "truth": truth.source,
        "detection": found.pop("columns"),
        **found,
    }

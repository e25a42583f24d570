"""How well score columns find canaries: rows that the checkpoint was trained on with a planted wrong label.

The scores are those that ``score`` would give if the manifest held the planted labels: the run behind the table is
opened again with them, and what is stored of logits and tangents serves any label.  Calibration rows and rows of
weight 0, which were not trained on, are left out; rows whose own label is wrong count as no canaries, so precision is
a lower bound.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.events import Listener
from influence_cli.maths.ranking import Ladder, found
from influence_cli.methods.random import uniform_draws
from influence_cli.model.run_folder import RunFolder
from influence_cli.settings import Runtime, parse_budget
from influence_cli.stages.curate.score_table import planted_labels
from influence_cli.stages.evaluate.detection import RANDOM, detect
from influence_cli.stages.evaluate.request import EvaluateRequest
from influence_cli.stages.evaluate.score_tables import NamedTable, ScoreTables, score_columns, side_by_side
from influence_cli.stages.evaluate.truth import Truth
from influence_cli.stages.retrain.canaries import with_planted
from influence_cli.stages.run.reopen import reopen
from influence_cli.stages.score.score import score

Floats = NDArray[np.float64]


def canaries_of(
    scores: ScoreTables, truth: Truth | None, request: EvaluateRequest, listener: Listener
) -> list[dict[str, Any]]:
    """Canary detection for the tables whose checkpoint was trained with canaries, one entry a planting."""
    groups: dict[bytes, list[NamedTable]] = {}
    for table in scores.tables:
        planted = planted_labels(table.table)
        if not (planted >= 0).any():
            continue
        if not table.provenance:
            listener.warn(f"{table.source} has canaries but does not say how it was made: they are not measured")
            continue
        groups.setdefault(planted.tobytes(), []).append(table)
    return [_of_planting(scores, tables, truth, request, listener) for tables in groups.values()]


def _of_planting(
    scores: ScoreTables, tables: list[NamedTable], truth: Truth | None, request: EvaluateRequest, listener: Listener
) -> dict[str, Any]:
    planted = planted_labels(tables[0].table)
    columns, trained = planted_scores(
        tables, scores.train, request.manifest, request.checkpoint, request.runtime, listener
    )
    columns[RANDOM] = uniform_draws(scores.train.ids, request.seed)
    canaries = Truth((planted >= 0) & trained, trained, "canaries")
    rows = parse_budget(request.budget, int(trained.sum()))
    result = detect(columns, canaries, rows, request.draws, request.seed, RANDOM)
    better: dict[str, float] = {}  # than random, which has no difference to itself
    for name, figures in result["columns"].items():
        if figures.get("difference", {}).get("average_precision", {}).get("verdict") == "better":
            better[name] = figures["average_precision"]
    best = max(better, key=lambda name: better[name], default=None)
    entry = {
        "tables": [t.source for t in tables],
        "canaries": int(canaries.wrong.sum()),
        "rows": int(trained.sum()),
        "budget_rows": rows,
        "best_against_random": best,
        "detection": result.pop("columns"),
        **result,
    }
    real = None if truth is None else truth.without(canaries.wrong)
    if real is not None and real.wrong.any() and (real.known & ~real.wrong).any():
        entry["against_truth"] = _against_truth(tables, columns, canaries, real)
    return entry


def planted_scores(
    tables: list[NamedTable], train: Rows, manifest: Any, checkpoint: str | None, runtime: Runtime, listener: Listener
) -> tuple[dict[str, Floats], NDArray[np.bool_]]:
    """The columns of tables [n] by the names they are shown under, scored anew with the planted labels in place of the
    rows' own; and which rows [n] were trained on.

    Raises:
        InfluenceError: the run behind a table cannot be opened again.
    """
    planted, scored = planted_labels(tables[0].table), list[tuple[NamedTable, dict[str, Floats]]]()
    for table in tables:
        where = {"source": table.source, "manifest": manifest, "checkpoint": checkpoint}
        run, session = reopen(table.provenance, runtime, listener, **where)
        scored.append((table, score_columns(score(with_planted(run, planted), session)[0])))
    columns = {shown: values for _, _, shown, values in side_by_side(scored)}
    return columns, _trained_on(train, checkpoint or tables[0].provenance["checkpoint"]["locator"])


def _trained_on(train: Rows, checkpoint: str) -> NDArray[np.bool_]:
    """Rows [n] that a checkpoint was trained on."""
    record = RunFolder.of(checkpoint).read()
    calibration = set(() if record is None else record.calibration_ids)
    return (train.weights > 0) & np.array([i not in calibration for i in train.ids])


def _against_truth(
    tables: list[NamedTable], columns: dict[str, Floats], canaries: Truth, real: Truth
) -> dict[str, Any]:
    """Beside the canaries, how the same columns find the rows that are really wrong: by how much canaries mislead.

    Rows that are really wrong look as suspicious as canaries and are counted against them; among the rows that are
    right that cannot happen.  Average precision depends on how many rows there are to find, so that of the canaries
    is taken at the rate of the really wrong rows: canaries count r N / (P (1 - r)) times, with P canaries, N other
    rows and real rate r.
    """
    clean = canaries.without(real.wrong)
    rate = float(real.wrong.sum() / real.known.sum())
    out: dict[str, Any] = {"wrong_rate": rate, "columns": {}}
    own = {shown: values for _, _, shown, values in side_by_side([(t, t.columns()) for t in tables])}
    for name, planted_values in columns.items():
        if name not in own:
            continue
        held = ((planted_values, canaries), (planted_values, clean), (own[name], real))
        a, b, c = (_auc_and_precision(values, among, rate) for values, among in held)
        if a is not None and b is not None and c is not None:
            out["columns"][name] = {
                figure: {"canaries": x, "canaries_among_right": y, "real": z, "gap": x - z}
                for figure, x, y, z in zip(("auc", "average_precision"), a, b, c, strict=True)
            }
    return out


def _auc_and_precision(values: Floats, truth: Truth, rate: float) -> tuple[float, float] | None:
    """AUC, and AP where wrong rows are weighted so that they are ``rate`` of all."""
    usable = truth.known & np.isfinite(values)
    wrong = truth.wrong[usable]
    if wrong.all() or not wrong.any():
        return None
    f = found(Ladder.of(-values[usable]), wrong, np.ones((1, len(wrong)), np.int64))
    hits, clean = f.wrong[0], f.rows[0] - f.wrong[0]
    weight = rate * clean[-1] / (hits[-1] * (1.0 - rate))
    steps = np.diff(hits, prepend=0)
    with np.errstate(invalid="ignore"):
        precision = np.where(hits > 0, weight * hits / (weight * hits + clean), 0.0)
    return float(f.auc()[0]), float((steps * precision).sum() / hits[-1])

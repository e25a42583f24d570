"""Where canaries cut a score column: ``curate --target-recall``, ``--max-false`` and ``--by auto``.

The canaries are scored as ``evaluate`` scores them, with the label that was planted.  A column is used only where it
finds them better than random does (average precision, paired bootstrap, Holm's correction over the columns looked at);
``--by auto`` takes the one of these that finds them best.  What follows from them is in ``maths.canary_cut``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.tables import shown
from influence_cli.errors import UsageError
from influence_cli.events import SILENT, Listener
from influence_cli.maths.canary_cut import Column, Estimates, cut_for_fine, cut_for_recall, estimates, same_label
from influence_cli.methods.random import uniform_draws
from influence_cli.settings import Runtime, parse_budget, parse_share
from influence_cli.stages.curate.canary_cut import CanaryCut
from influence_cli.stages.curate.combining import floats, score_column_names
from influence_cli.stages.curate.request import AUTO, CurateRequest
from influence_cli.stages.curate.score_table import CANARY, ScoreTable, planted_labels, read_scores
from influence_cli.stages.evaluate.canary_detection import planted_scores
from influence_cli.stages.evaluate.detection import RANDOM, detect
from influence_cli.stages.evaluate.score_tables import NamedTable
from influence_cli.stages.evaluate.truth import Truth

Floats = NDArray[np.float64]
AUTO_COLUMN = "score_auto"  # of the method, which ``--by auto`` does not mean
FEW = 20  # canaries below which intervals say next to nothing
DRAWS = 1000
PLANT = "influence retrain MANIFEST --canaries 5% -o RUN, then score with --checkpoint RUN"


@dataclass(frozen=True, eq=False)
class Measured:
    """The columns that can be acted on [n] by name, as they are and with the planted labels; and the canaries [n]."""

    scores: ScoreTable
    where: str
    own: dict[str, Floats]
    planted: dict[str, Floats]
    canary: NDArray[np.bool_]
    trained: NDArray[np.bool_]

    def usable(self, name: str) -> Column:
        """The scores of a column: canaries as planted, the others as they are; a null canary counts as not found."""
        found = np.where(np.isfinite(self.planted[name]), self.planted[name], np.inf)[self.canary]
        others = self.own[name][~self.canary_rows]
        return Column.of(found, others[np.isfinite(others)])

    @functools.cached_property
    def told(self) -> dict[str, Estimates]:
        """What canaries say of each column."""
        planted = planted_labels(self.scores.table)[self.canary]
        same = same_label(self.scores.train.labels[self.canary], planted)
        return estimates({name: self.usable(name) for name in self.own}, same)

    @property
    def canary_rows(self) -> NDArray[np.bool_]:
        """Every planted row [n], trained on or not."""
        return planted_labels(self.scores.table) >= 0


def with_canaries(
    request: CurateRequest, runtime: Runtime, seed: int = 0, listener: Listener = SILENT, checkpoint: str | None = None
) -> CurateRequest:
    """The request with the column that canaries choose, where they are to, and with what they say of it.

    Raises:
        UsageError: the table has no canaries, too few, or none that any column tells from random rows; the target
            cannot be reached; or what is asked for contradicts itself.
        InfluenceError: the run behind the table cannot be opened again.
    """
    _check(request)
    target = None if request.target_recall is None else parse_share(request.target_recall, "--target-recall")
    most = None if request.max_false is None else parse_share(request.max_false, "--max-false")
    measured = measure(request, runtime, listener, checkpoint)
    name, why = _choose(measured, request, seed)
    told = measured.told[name]
    at = _threshold(told, target, most, measured.where)
    return replace(request, by=(name,), cut=_cut(told, name, why, at, request, len(measured.scores.train)))


def _check(request: CurateRequest) -> None:
    asked = "--target-recall" if request.target_recall is not None else "--max-false"
    asked = "--by auto" if request.target_recall is None and request.max_false is None else asked
    if request.maximise is not None:
        raise UsageError(f"--maximise chooses rows by a sum, and {asked} by a column", fix="leave one of the two out")
    if request.combine is not None or len(request.by) > 1:
        what = f"{asked} is about one column, and canaries have no combined score"
        raise UsageError(what, fix="name one with --by COLUMN, or let canaries choose: --by auto")
    if request.action == "reweight" and (request.target_recall or request.max_false):
        raise UsageError(f"reweight touches every scored row, and {asked} cuts", fix="use --action trim or relabel")


def measure(
    request: CurateRequest, runtime: Runtime, listener: Listener = SILENT, checkpoint: str | None = None
) -> Measured:
    """The columns of a score table that can be acted on, and its canaries' scores.

    Raises:
        UsageError: the table has no canaries, or too few.
        InfluenceError: the run behind the table cannot be opened again.
    """
    where = shown(request.scores)
    first = replace(request, by=("score",)) if request.by == (AUTO,) else request
    scores = read_scores(first)
    planted = planted_labels(scores.table)
    if not (planted >= 0).any():
        what = f"the table has no canaries (column {CANARY}): nothing tells how many wrong labels a cut finds"
        if request.by == (AUTO,):
            what = f"--by auto lets canaries choose the column, and the table has none (column {CANARY})"
        if not request.asks_canaries:
            what = f"column {scores.column} has neither members nor canaries: nothing tells how sure its scores are"
        if request.by == (AUTO,) and AUTO_COLUMN in score_column_names(scores.table):
            raise UsageError(what, where=where, fix=f"--by {AUTO_COLUMN} acts by method auto; for canaries: {PLANT}")
        raise UsageError(what, where=where, fix=PLANT)
    table = NamedTable(where, "table", scores.table, scores.provenance)
    anew, trained = planted_scores([table], scores.train, request.manifest, checkpoint, runtime, listener)
    names = [n for n in score_column_names(scores.table) if n != "score" and n.removeprefix("score_") in anew]
    canary = (planted >= 0) & trained
    if canary.sum() < FEW:
        what = f"{int(canary.sum())} canaries are too few to say anything of a cut: at least {FEW} are needed"
        raise UsageError(what, where=where, fix="retrain with a larger --canaries, and score again")
    own = {n: floats(scores.table, n) for n in names}
    return Measured(scores, where, own, {n: anew[n.removeprefix("score_")] for n in names}, canary, trained)


def _choose(measured: Measured, request: CurateRequest, seed: int) -> tuple[str, str]:
    """The column to act on, and why: the one asked for, or the one that finds canaries best."""
    auto = request.by == (AUTO,)
    column = measured.scores.column
    column = measured.scores.provenance.get("score_is", column) if column == "score" else column
    if not auto and column not in measured.own:
        what = f"canaries have no scores of column {column}"
        raise UsageError(what, where=measured.where, fix=f"--by {next(iter(measured.own), 'COLUMN')}, or --by auto")
    looked_at = {n: measured.planted[n] for n in (measured.own if auto else (column,))}
    looked_at[RANDOM] = uniform_draws(measured.scores.train.ids, seed)
    truth = Truth(measured.canary, measured.trained, "canaries")
    rows = parse_budget(_given(request) or "5%", int(measured.trained.sum()))
    found = detect(looked_at, truth, rows, DRAWS, seed, RANDOM)["columns"]
    better = {n: found[n]["average_precision"] for n in looked_at if _beats(found[n])}
    if not better:
        which = "no column finds" if auto else f"column {column} does not find"
        figures = ", ".join(f"{n} {found[n]['auc']:.3f}" for n in looked_at if found[n]["auc"] is not None)
        what = f"{which} the {int(measured.canary.sum())} canaries better than random does (AUC: {figures})"
        fix = "score with other methods, such as loss, or plant more canaries; a cut from these would be chance"
        raise UsageError(what, where=measured.where, fix=fix)
    best = max(better, key=lambda n: better[n])
    return best, _why(best, found[best], looked_at, truth, rows, seed) if auto else "asked for"


def _beats(figures: dict[str, Any]) -> bool:
    return figures.get("difference", {}).get("average_precision", {}).get("verdict") == "better"


def _why(best: str, figures: dict[str, Any], columns: dict[str, Floats], truth: Truth, rows: int, seed: int) -> str:
    """That a column finds canaries best, and whether that is more than chance."""
    against = detect(columns, truth, rows, DRAWS, seed, best)["columns"]
    low, high = figures["average_precision_interval"]
    text = f"finds canaries best: average precision {figures['average_precision']:.3f} ({low:.3f} to {high:.3f})"
    others = {n: c["average_precision"] for n, c in against.items() if n not in (best, RANDOM) and "difference" in c}
    if not others:
        return text
    second = max(others, key=lambda n: others[n])
    difference = against[second]["difference"]["average_precision"]
    low, high = sorted(-end for end in difference["interval"])
    resolved = "" if difference["verdict"] == "worse" else ", not resolved"
    return f"{text}; {-difference['difference']:+.3f} ({low:+.3f} to {high:+.3f}) against {second}{resolved}"


def _given(request: CurateRequest) -> str | None:
    """The budget that is given as a number; None for none, and for the one that canaries are to give."""
    return None if request.budget == AUTO else request.budget


def _threshold(told: Estimates, target: float | None, most: float | None, where: str) -> float:
    """The score at or below which rows are cut; infinite where nothing but a budget cuts."""
    total = len(told.column.canaries)
    at = np.inf
    if target is not None:
        found = cut_for_recall(told, target)
        if found is None or not np.isfinite(found):
            what = f"{total} canaries cannot resolve a recall of {target:.3g}"
            raise UsageError(what, where=where, fix="lower --target-recall, or retrain with a larger --canaries")
        at = found
    if most is None:
        return at
    limit = cut_for_fine(told, most)
    if limit is None:
        least = float(np.nanmin(told.fine(np.unique(told.column.rows))))
        what = f"no cut is expected to hold at most {most:.3g} of rows that are fine: the least share is {least:.3g}"
        raise UsageError(what, where=where, fix="raise --max-false, or act on another column: --by auto")
    if target is not None and at > limit:
        fine, recall = float(told.fine(np.array([at]))[0]), told.recall(limit)[0]
        what = (
            f"--target-recall and --max-false contradict: for a recall of {target:.3g} a share of {fine:.3g} of "
            f"the rows cut is fine, and with at most {most:.3g} the recall is {recall:.3g}"
        )
        raise UsageError(what, where=where, fix="give one of the two, or lower the first or raise the second")
    return at if target is not None else limit


def _cut(told: Estimates, name: str, why: str, at: float, request: CurateRequest, train: int) -> CanaryCut:
    """What is expected of the rows at or below a score, or of fewer where the budget says so."""
    rows, cut = told.column.rows, np.isfinite(at)
    taken = int(told.column.taken(at))
    capped = None
    given = str(min(round(told.wrong_rows), train)) if request.budget == AUTO else request.budget
    budget = None if given is None and cut else parse_budget(given or "5%", train)
    if budget is not None and budget < taken:
        capped, taken = (request.budget if cut else None), budget
        at = float(rows[budget - 1]) if budget else -np.inf
    scores, value, low, high = told.probabilities()
    value_at, *interval = told.recall(at)
    return CanaryCut(
        name,
        why,
        len(told.column.canaries),
        at,
        taken,
        value_at,
        (interval[0], interval[1]),
        float(told.fine(np.array([at]))[0]) if taken else None,
        told.fine_interval(at) if taken else None,
        told.wrong_rows,
        told.wrong_interval(),
        capped,
        scores,
        value,
        low,
        high,
    )

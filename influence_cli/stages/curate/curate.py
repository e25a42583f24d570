"""(3) scores -> edits under a budget, and what they do to the data: classes, groups and scores before and after.

Chi-square of the edits by class, with k_c edits among the n_c rows of class c and q = k/n the share edited at all:

    X^2 = sum_c (k_c - q n_c)^2 / (q (1 - q) n_c),   C - 1 degrees of freedom

which is Pearson's statistic of the table (edited or not) x class.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.actions import make_action
from influence_cli.actions.edited import Edited, apply_edits
from influence_cli.actions.protocol import PROPOSAL, Edits, Scored
from influence_cli.data.classes import Names, class_called
from influence_cli.data.labels import wrong_labels
from influence_cli.data.tables import with_provenance
from influence_cli.errors import UsageError
from influence_cli.settings import parse_budget
from influence_cli.stages.curate.auto_budget import with_rows
from influence_cli.stages.curate.bins import ACT, Bins, binned
from influence_cli.stages.curate.neighbours import with_neighbours
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.curate.score_table import (
    ScoreTable,
    guarded_groups,
    read_scores,
    said_of_rows_without_score,
    scored_groups,
)
from influence_cli.store.arrow import array_of
from influence_cli.store.keys import taken
from influence_cli.store.shards import as_arrow

Ints = NDArray[np.int64]
Masks = dict[int, NDArray[np.bool_]]
MOST_OF_EDITS, MINORITY = 0.5, 0.25  # more of the edits than this from a class of less than that is worth a warning


@dataclass(eq=False)
class Curated:
    """Edits of a manifest's train rows."""

    scores: ScoreTable
    edits: Edits
    request: CurateRequest
    predicted: list[dict[str, Any]] = field(default_factory=list)  # by objective, where one is maximised
    bins: Bins | None = None
    estimated: dict[str, Any] = field(default_factory=dict)  # the number of wrong labels that ``--budget auto`` takes

    def table(self) -> pa.Table:
        """One row per edit, most harmful first: what the row was, what it is, its score, and why."""
        scored, edits = self.scores.scored, self.edits
        edited = np.zeros(len(scored.score), dtype=bool)
        edited[edits.edited] = True
        ascending = scored.ascending()
        unscored = np.flatnonzero(edited & ~np.isfinite(scored.score))  # people may have decided on them: they are last
        order = np.concatenate([ascending[edited[ascending]], unscored])
        labelled = partial(self.scores.manifest.label_kind.shown, names=self.scores.manifest.classes)
        columns = {
            "id": self.scores.train.ids.take(order).column,
            "row_key": as_arrow(taken(self.scores.train.row_keys, order)),
            "action": pa.array([edits.action_of(i) for i in order.tolist()], pa.string()),
            "label_was": labelled(scored.labels[order]),
            "label": labelled(edits.labels[order]),
            "weight_was": array_of(scored.weights[order]),
            "weight": array_of(edits.weights[order]),
            "score": array_of(scored.score[order]),
            "reason": pa.array([edits.reason[i] for i in order.tolist()], pa.string()),
        }
        return with_provenance(pa.table(columns), self.provenance())

    @property
    def added_columns(self) -> list[str]:
        """What the curated manifest has and the manifest has not."""
        there = self.scores.manifest.table.column_names
        wanted = {"weight": self.edits.action == "reweight", PROPOSAL: self.edits.proposal is not None}
        return [name for name, added in wanted.items() if added and name not in there]

    def after(self) -> Edited:
        """Every row of the manifest as it is after the edits."""
        return apply_edits(self.scores.manifest, self.scores.train, self.edits)

    def provenance(self) -> dict[str, Any]:
        """The score table's provenance, with the action."""
        return {
            **self.scores.provenance,
            "stage": "curate",
            "action": {
                "name": self.edits.action,
                "budget": self.request.budget,
                "by": self.scores.column,
                **({"predicted": self.predicted} if self.predicted else {}),
                **({"canaries": self.request.cut.as_dict()} if self.request.cut is not None else {}),
                **({"estimated": self.estimated} if self.estimated else {}),
                **({"bins": self.bins.counts()} if self.bins is not None else {}),
                "options": self.request.options.get(self.request.action, {}),
                "edited": len(self.edits.edited),
                "added_columns": self.added_columns,
            },
        }


def curate(request: CurateRequest) -> Curated:
    """Decide edits; writes nothing.

    Raises:
        InfluenceError: the table, the action or the budget cannot work.
    """
    action = make_action(request.action, request.options)
    if request.asks_canaries and request.cut is None:
        raise UsageError("canaries have not been asked yet", fix="influence_cli.curate, or `influence curate`")
    scores = read_scores(request, lean=True)
    if request.decisions is not None:
        from influence_cli.stages.curate.decisions import decided_edits

        return Curated(scores, decided_edits(request.decisions, scores), request)
    if request.action == "relabel" and not scores.manifest.labelled:
        what = "relabel gives rows another label, and these have none"
        raise UsageError(what, where=scores.manifest.source, fix="use --action trim or reweight")
    if request.action == "reweight" and request.budget is not None:
        raise UsageError("reweight touches every scored row and takes no budget", fix="leave --budget out")
    request, estimated = with_rows(request, scores)
    budget = _rows_to_touch(request, scores)
    if request.maximise is not None:
        from influence_cli.stages.curate.constrained import constrained_trim

        if request.bins is not None:
            raise UsageError("--maximise chooses rows by a sum, and --bins row by row", fix="leave one of the two out")
        if request.combine is not None or request.by != ("score",):
            raise UsageError("--maximise names the column to act on", fix="leave --by and --combine out")
        edits, predicted = constrained_trim(request, scores, action, budget)
        return Curated(scores, edits, request, predicted, estimated=estimated)
    if request.subject_to:
        raise UsageError("--subject-to needs an objective to gain", fix="--maximise utility")
    scored, bins = _as_cut(request, scores, budget)
    most = budget if bins is None else min(budget, int(np.isfinite(scored.score).sum()))
    edits = with_neighbours(action.propose(scored, most), scores)
    if bins is not None:
        edits = replace(
            edits, reason=[f"{r}; {b}" if r else "" for r, b in zip(edits.reason, bins.reasons, strict=True)]
        )
    gone = [column for column in scored_groups(scores.provenance) if column not in scores.group_columns]
    if gone and request.action == "trim":
        edits.notes.append(
            f"the train rows have no column {gone[0]}, by which they were scored: its groups are unguarded"
        )
    if request.combine == "minrank" and len(edits.edited):
        worst = scores.scored.score[edits.edited].max()
        edits.notes.append(f"largest worst rank among the edited rows: {worst:,.10g} of {len(scores.train):,}")
    return Curated(scores, edits, request, bins=bins, estimated=estimated)


def _rows_to_touch(request: CurateRequest, scores: ScoreTable) -> int:
    """Most rows to edit: what canaries say, or the budget, or the fewer of the two where both are given."""
    if request.cut is not None and request.budget is None and np.isfinite(request.cut.threshold):
        return request.cut.rows
    budget = parse_budget(request.budget or "5%", len(scores.train))
    return budget if request.cut is None else min(budget, request.cut.rows)


def _as_cut(request: CurateRequest, scores: ScoreTable, budget: int) -> tuple[Scored, Bins | None]:
    """The rows that may be edited: those beyond the cut of canaries, and in the bin to act on where bins are asked for.

    A row that a guard passes over is not replaced by one on this side of the cut.
    """
    score = scores.scored.score
    if request.cut is not None:
        score = np.where(score <= request.cut.threshold, score, np.nan)
    if request.bins is None:
        return (scores.scored if request.cut is None else replace(scores.scored, score=score)), None
    if request.action == "reweight":
        raise UsageError(
            "reweight touches every scored row, and --bins edits those that are sure", fix="trim or relabel"
        )
    order = replace(scores.scored, score=score).candidates()[:budget]
    beyond = np.zeros(len(score), dtype=bool)
    beyond[order] = True
    bins = binned(scores, request, beyond, float(score[order[-1]]) if len(order) else -np.inf)
    return replace(scores.scored, score=np.where(bins.names == ACT, score, np.nan)), bins


def summarise(curated: Curated) -> dict[str, Any]:
    """What the edits do: counts by class and group, before and after; scores; notes; precision against clean labels."""
    edits, train = curated.edits, curated.scores.train
    edited = np.zeros(len(train), dtype=bool)
    edited[edits.edited] = True
    kept = (edits.weights > 0) | (train.weights <= 0)
    labelled = train.manifest.label_kind
    classes = _parts(labelled.parts(train.labels), labelled.parts(edits.labels), edited, kept)
    summary: dict[str, Any] = {
        "action": edits.action,
        "train_rows": len(train),
        "edited": int(edited.sum()),
        "notes": list(edits.notes),
        "warnings": [
            *_unscored(curated),
            *_lopsided(classes, int(edited.sum()), len(train), train.manifest.classes),
            *_emptied(classes, train.manifest.classes),
        ],
        "classes": classes,
        "score": _scores(curated.scores.scored.score, edited),
        "chi_square": chi_square(train.strata, edited),
    }
    columns = curated.scores.group_columns
    for column, groups in zip(columns, guarded_groups(train, columns), strict=True):
        if not (groups >= 0).any():
            continue
        names, rows = train.manifest.table.column(column).to_pylist(), train.index.tolist()
        first = {int(g): rows[k] for g, k in zip(*np.unique(groups, return_index=True), strict=True)}
        by_group = {int(g): groups == g for g in np.unique(groups)}
        parts = _parts(by_group, by_group, edited, kept)
        of = f"{column}=" if len(columns) > 1 else ""
        summary.setdefault("groups", {}).update({f"{of}{names[first[g]]}": part for g, part in parts.items() if g >= 0})
    truth = wrong_labels(train)
    if truth is not None and edited.any():
        wrong, known = truth
        summary["wrong_share_of_edited"] = float(wrong[edited].mean())
        summary["wrong_share_of_all"] = float(wrong.mean())
        if edits.action == "relabel":
            after = wrong_labels(train, edits.labels)
            assert after is not None
            summary["right_after_relabel"] = float((known & ~after[0])[edited].mean())
    return summary


def _unscored(curated: Curated) -> list[str]:
    """A warning where rows have no score; decisions name their rows, and need none."""
    said = None if curated.request.decisions is not None else said_of_rows_without_score(curated.scores)
    return [] if said is None else [said]


def chi_square(labels: Ints, edited: NDArray[np.bool_]) -> dict[str, float] | None:
    """Whether edits fall on classes as their sizes would have it; None where there is nothing to tell."""
    from scipy.special import chdtrc  # chi2.sf, without importing all distributions

    classes, sizes = np.unique(labels, return_counts=True)
    hit = int(edited.sum())
    if len(sizes) < 2 or hit in (0, len(labels)):
        return None
    found = np.array([edited[labels == c].sum() for c in classes])
    q = hit / len(labels)
    statistic = float(((found - q * sizes) ** 2 / (q * (1 - q) * sizes)).sum())
    free = len(sizes) - 1
    return {"statistic": statistic, "degrees": free, "p_value": float(chdtrc(free, statistic))}


def _parts(
    before: Masks, after: Masks, edited: NDArray[np.bool_], kept: NDArray[np.bool_]
) -> dict[int, dict[str, int]]:
    """By class, label or group: its rows, how many of them are edited, and its rows after the edits."""
    none = np.zeros(len(edited), dtype=bool)
    return {
        c: {
            "rows": int(before.get(c, none).sum()),
            "edited": int(edited[before.get(c, none)].sum()),
            "after": int((kept & after.get(c, none)).sum()),
        }
        for c in sorted({*before, *after})
    }


def _scores(score: NDArray[np.float64], edited: NDArray[np.bool_]) -> dict[str, float | None]:
    finite = np.isfinite(score)
    means = {"edited": score[edited & finite], "kept": score[~edited & finite]}
    return {name: float(values.mean()) if len(values) else None for name, values in means.items()}


def _lopsided(classes: dict[int, dict[str, int]], edited: int, rows: int, names: Names | None) -> list[str]:
    """A warning where most edits are of one small class."""
    if not classes:
        return []
    label, worst = max(classes.items(), key=lambda kv: kv[1]["edited"])
    if edited and worst["edited"] > MOST_OF_EDITS * edited and worst["rows"] < MINORITY * rows:
        share, size = worst["edited"] / edited, worst["rows"] / rows
        return [f"{share:.0%} of the edits are of {class_called(names, label)}, a minority ({size:.1%} of the rows)"]
    return []


def _emptied(classes: dict[int, dict[str, int]], names: Names | None) -> list[str]:
    """A warning where a class, or a label of several, has lost its last row: a model trained on the rest lacks it."""
    gone = [class_called(names, c) for c, part in classes.items() if part["edited"] and not part["after"]]
    return [f"no row of {', '.join(gone)} is left"] if gone else []

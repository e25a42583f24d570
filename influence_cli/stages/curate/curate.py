"""(3) scores -> edits under a budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from influence_cli.actions import make_action
from influence_cli.actions.edited import Edited, apply_edits
from influence_cli.actions.protocol import PROPOSAL, Edits
from influence_cli.data.tables import with_provenance
from influence_cli.errors import UsageError
from influence_cli.settings import parse_budget
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.curate.score_table import ScoreTable, read_scores
from influence_cli.store.shards import as_arrow


@dataclass(eq=False)
class Curated:
    """Edits of a manifest's train rows."""

    scores: ScoreTable
    edits: Edits
    request: CurateRequest
    predicted: list[dict[str, Any]] = field(default_factory=list)  # by objective, where one is maximised

    def table(self) -> pa.Table:
        """One row per edit, most harmful first: what the row was, what it is, its score, and why."""
        scored, edits = self.scores.scored, self.edits
        chosen = set(edits.edited.tolist())
        order = np.array([i for i in scored.ascending().tolist() if i in chosen], dtype=np.int64)
        columns = {
            "id": pa.array([self.scores.train.ids[i] for i in order]),
            "row_key": as_arrow(self.scores.train.row_keys[order]),
            "action": pa.array([edits.action] * len(order)),
            "label_was": pa.array(scored.labels[order]),
            "label": pa.array(edits.labels[order]),
            "weight_was": pa.array(scored.weights[order]),
            "weight": pa.array(edits.weights[order]),
            "score": pa.array(scored.score[order]),
            "reason": pa.array([edits.reason[i] for i in order], pa.string()),
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
    scores = read_scores(request)
    if request.action == "reweight" and request.budget is not None:
        raise UsageError("reweight touches every scored row and takes no budget", fix="leave --budget out")
    budget = parse_budget(request.budget or "5%", len(scores.train))
    if request.maximise is not None:
        from influence_cli.stages.curate.constrained import constrained_trim

        if request.combine is not None or request.by != ("score",):
            raise UsageError("--maximise names the column to act on", fix="leave --by and --combine out")
        edits, predicted = constrained_trim(request, scores, action, budget)
        return Curated(scores, edits, request, predicted)
    if request.subject_to:
        raise UsageError("--subject-to needs an objective to gain", fix="--maximise utility")
    edits = action.propose(scores.scored, budget)
    if request.combine == "minrank" and len(edits.edited):
        worst = scores.scored.score[edits.edited].max()
        edits.notes.append(f"largest worst rank among the edited rows: {worst:,.10g} of {len(scores.train):,}")
    return Curated(scores, edits, request)

"""Why a row was edited, where its score is of its neighbours: their ids, and the label that weighs most among them."""

from __future__ import annotations

from dataclasses import replace

from influence_cli.actions.protocol import Edits
from influence_cli.data.classes import class_called
from influence_cli.stages.curate.score_table import ScoreTable

NEAREST, LABEL = "_nearest", "_label"  # after a method's name: columns of a score table


def with_neighbours(edits: Edits, scores: ScoreTable) -> Edits:
    """The edits, with each row's nearest neighbours in its reason where these are what it was scored by."""
    method = _method(scores)
    if method is None:
        return edits
    names = scores.table.column_names
    nearest = scores.table.column(method + NEAREST).to_pylist()
    most = scores.table.column(method + LABEL).to_pylist() if method + LABEL in names else [None] * len(nearest)
    reason = list(edits.reason)
    for i in edits.edited.tolist():
        if nearest[i]:
            reason[i] += f"; nearest rows: {nearest[i]}"
            if most[i] is not None:
                reason[i] += f"; its neighbours say {class_called(scores.manifest.classes, most[i])}"
    return replace(edits, reason=reason)


def _method(scores: ScoreTable) -> str | None:
    """The method of neighbours that the column acted on is of; None for any other column."""
    column = scores.provenance.get("score_is") if scores.column == "score" else scores.column
    method = str(column).removeprefix("score_")
    return method if f"{method}{NEAREST}" in scores.table.column_names else None

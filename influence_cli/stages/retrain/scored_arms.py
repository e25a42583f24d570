"""Arms from scores: one for every score column, action and budget that is asked for, each with its random controls."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from influence_cli.actions import make_action
from influence_cli.data.manifest import Rows
from influence_cli.errors import UsageError
from influence_cli.settings import parse_budget
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.curate.score_table import read_scores
from influence_cli.stages.retrain.arms import Arm, described, without
from influence_cli.stages.retrain.controls import control_arms
from influence_cli.stages.retrain.request import EditsRequest


def scored_arms(request: EditsRequest, base: Rows, seed: int, left_out: NDArray[np.bool_]) -> list[Arm]:
    """An arm and its controls for every (columns, action, budget); reweighting touches all rows, whatever the budget.

    Raises:
        UsageError: the table, a column, an action or a budget cannot be used, or rows were left out of training.
    """
    if left_out.any():
        raise UsageError("--calibration and --scores are two questions", fix="leave --calibration out")
    wanted = [(name,) for name in request.by] + ([request.by] if request.combine is not None else [])
    made: list[Arm] = []
    for by in wanted:
        rule = request.combine if len(by) > 1 else None
        table = read_scores(
            CurateRequest(request.scores, manifest=base.manifest, by=by, combine=rule, options=request.options)
        )
        name = table.column if rule is None else rule
        for action in request.actions:
            for budget in (None,) if action == "reweight" else request.budgets:
                rows = parse_budget(budget or "0", len(base))
                edits = make_action(action, request.options).propose(table.scored, rows)
                called = " ".join(part for part in (name.removeprefix("score_"), action, budget) if part)
                arm = described(Arm(called, edits.labels, edits.weights), base, left_out)
                arm.about.update(method=name, action=action, budget=budget)
                proposals = np.full(len(base), -1) if edits.proposal is None else edits.proposal
                made += [without(arm, left_out), *control_arms(arm, base, proposals, seed, left_out)]
    return made

"""``--maximise A --subject-to 'B>=0'``: the trim that gains most of one objective while others are not made worse.

The predicted gain of removing row i, of weight w_i, is -w_i s_i for every objective (to first order; positive: Phi
falls), in the objective's own unit, divided by n, where the method estimates an effect.  Which rows are taken is a
knapsack (``maths.knapsack``): its rule and guarantee stand there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from influence_cli.actions.protocol import Edits, Floats
from influence_cli.actions.trim import Trim
from influence_cli.errors import UsageError
from influence_cli.maths.knapsack import choose, greatest
from influence_cli.stages.curate.combining import column_named, floats
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.curate.score_table import ScoreTable, parity_of

_BOUND = re.compile(r"\s*([^\s<>=]+)\s*>=\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True, eq=False)
class _Objective:
    name: str
    column: str
    gain: Floats  # [n], of removing each row
    least: float | None  # None: the one that is maximised
    phi: float | None
    effect: bool
    room: float | None  # of an objective about groups: what it can gain until there is no gap


def constrained_trim(request: CurateRequest, scores: ScoreTable, trim: Trim, budget: int) -> tuple[Edits, list[Any]]:
    """The edits, and for every objective what is predicted: with the constraints, and of the lowest rows without.

    Raises:
        UsageError: a constraint cannot be read or met, or a column has no sign.
    """
    objectives = _objectives(request, scores)
    first, others = objectives[0], objectives[1:]
    usable = np.flatnonzero(np.isfinite(np.stack([o.gain for o in objectives])).all(axis=0))
    usable = usable[np.isfinite(scores.scored.score[usable])]  # canaries have no score to act on
    parts = [(limit.part[usable], limit.most) for limit in trim.limits(scores.scored, budget)]
    gains, bounds = np.stack([o.gain[usable] for o in objectives]), np.array([o.least or 0.0 for o in others])
    found = choose(gains[0], gains[1:], bounds, parts, budget)
    if found is None:
        most = {o.name: greatest(g, parts, budget) for o, g in zip(others, gains[1:], strict=True)}
        reach = ", ".join(f"{name} can gain at most {value:.4g}" for name, value in most.items())
        fix = "lower the bounds of --subject-to, or raise --budget"
        raise UsageError(f"no {budget} rows can meet every constraint: alone, {reach}", fix=fix)
    taken = usable[found.taken].tolist()
    reasons = {i: ", ".join(f"{o.name} {o.gain[i]:+.3g}" for o in objectives) for i in taken}
    notes = _notes(first, others, budget, found.total, found.bound, len(taken))
    edits = trim.take(scores.scored, taken, notes, reasons)
    alone = trim.propose(scores.scored, budget).edited.tolist()
    predicted = [_predicted(o, taken, alone) for o in objectives]
    for o, p in zip(objectives, predicted, strict=True):
        if o.room is not None and p["gain"] > o.room:
            edits.notes.append(
                f"{o.name} is predicted to gain {p['gain']:.4g}, past parity ({o.room:.4g}): the gap opens the other "
                "way; lower --budget"
            )
    return edits, predicted


def _objectives(request: CurateRequest, scores: ScoreTable) -> list[_Objective]:
    assert request.maximise is not None
    if request.action != "trim":
        raise UsageError("--maximise chooses rows to trim", fix="leave --action out, or --maximise and --subject-to")
    if not request.subject_to:
        raise UsageError("--maximise needs a constraint", fix="--subject-to 'fairness>=0', or --by alone")
    asked: list[tuple[str, float | None]] = [(request.maximise, None)]
    for text in request.subject_to:
        read = _BOUND.fullmatch(text)
        if read is None or not math.isfinite(float(read[2])):
            raise UsageError(f"--subject-to {text!r} cannot be read", fix="write --subject-to 'fairness>=0'")
        asked.append((read[1], float(read[2])))
    made = [_objective(name, least, scores) for name, least in asked]
    columns = [o.column for o in made]
    if len(set(columns)) < len(columns):
        raise UsageError("an objective is named twice", fix="name every objective once")
    return made


def _objective(name: str, least: float | None, scores: ScoreTable) -> _Objective:
    origin = scores.provenance
    column = column_named(name, scores.table, scores.label)
    if column == "score":
        column = origin.get("score_is") or column
    if origin.get("kinds", {}).get(column) != "signed":
        raise UsageError(
            f"{column} is ranking-only: its sums predict nothing", fix="use columns of a signed method, such as exact"
        )
    divisor = origin.get("effect_divisors", {}).get(column)
    if least and divisor is None:
        fix = "write >=0, or score by a method that estimates an effect, such as exact"
        raise UsageError(f"a bound of {least:g} on {column} has no unit: its method estimates no effect", fix=fix)
    gain = -scores.train.weights * floats(scores.table, column) / (divisor or 1.0)
    phi = origin.get("noise", {}).get(origin.get("objective_of", {}).get(column), {}).get("phi")
    gap = parity_of(origin, column)
    room = gap.room if gap is not None and divisor is not None else None
    return _Objective(name, column, gain, least, phi, divisor is not None, room)


def _notes(
    first: _Objective, others: list[_Objective], budget: int, total: float, bound: float, taken: int
) -> list[str]:
    held = ", ".join(f"{o.name} >= {o.least or 0.0:g}" for o in others)
    notes = [f"{taken} of a budget of {budget} rows: most of {first.name} subject to {held}"]
    if not taken:
        notes.append(f"no rows gain {first.name} without breaking a constraint or a guard: nothing is edited")
    elif bound > 0:
        notes.append(f"no other choice of rows is predicted to gain over {max(0.0, bound / total - 1.0):.2%} more")
    return notes


def _predicted(o: _Objective, taken: list[int], alone: list[int]) -> dict[str, Any]:
    gain, without = (math.fsum(np.nan_to_num(o.gain[rows]).tolist()) for rows in (taken, alone))
    return {
        "objective": o.name,
        "column": o.column,
        "least": o.least,
        "phi": o.phi,
        "effect": o.effect,
        "gain": gain,
        "gain_without_constraints": without,
        "phi_after": o.phi - gain if o.effect and o.phi is not None else None,
    }

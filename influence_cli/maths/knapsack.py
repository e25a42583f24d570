"""Which rows to take so that one total is greatest while others do not fall below a bound: a knapsack, rounded.

    maximise   sum_i a_i x_i,   x_i in {0, 1}
    subject to sum_i x_i <= k,   sum_i b_ji x_i >= beta_j for every j,   sum_{i in part} x_i <= most(part)

Rule: solve the linear relaxation (0 <= x_i <= 1), whose vertex has at most as many fractional x_i as it has
constraints; keep x_i where the relaxation is sure of it, and solve exactly for the ``core``, the rows whose reduced
cost is nearest to zero; a larger core is tried where a core has no solution (Balas and Zemel 1980's core idea).

Guarantee: every bound holds in float64 sums of the values given, and the total is at most ``bound - total`` below that
of any choice of rows, where ``bound`` is the value of the relaxation.  Deterministic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CORE = 200  # rows solved exactly: half a second with three constraints
NODES = 20_000


@dataclass(frozen=True, eq=False)
class Choice:
    """Rows taken, the total that they give, and the relaxation's, which no choice of rows exceeds."""

    taken: NDArray[np.bool_]
    total: float
    bound: float


@dataclass(frozen=True, eq=False)
class _Problem:
    gain: Floats  # [n], scaled
    rows: Floats  # [r, n] of A x <= limit
    limit: Floats  # [r]


def choose(
    gain: Floats, others: Floats, least: Floats, parts: list[tuple[Ints, list[int]]], budget: int
) -> Choice | None:
    """At most ``budget`` rows by gain a [n], with others b [m, n] summing to at least ``least`` [m]; None: impossible.

    ``parts`` are (part of every row or -1, most rows of each part).

    >>> choose(np.array([3.0, 2.0, 1.0]), np.array([[-1.0, 0.5, 1.0]]), np.zeros(1), [], 2).taken.tolist()
    [True, False, True]
    """
    useful = (gain > 0) | (others > 0).any(axis=0)
    place = np.flatnonzero(useful)
    empty = Choice(np.zeros(len(gain), dtype=bool), 0.0, 0.0)
    if budget <= 0 or not len(place):
        return empty if (least <= 0).all() else None
    problem, scale = _problem(gain[place], others[:, place], least, [(p[place], m) for p, m in parts], budget)
    relaxed, reduced, bound = _relaxation(problem)
    if relaxed is None:
        return None
    order, size = np.argsort(np.abs(reduced), kind="stable"), min(CORE, len(place))
    while True:
        found = _round(problem, relaxed, order[:size])
        if found is not None or size == len(place):
            break
        size = min(4 * size, len(place))
    taken = np.zeros(len(gain), dtype=bool)
    if found is not None:
        taken[place[found]] = True
    taken = _repaired(taken, gain, others, least)
    if taken is None:
        return None
    total = math.fsum(gain[taken].tolist())
    if total < 0 <= -least.max(initial=-math.inf):
        return Choice(empty.taken, 0.0, max(0.0, bound * scale))
    return Choice(taken, total, max(total, bound * scale))


def greatest(gain: Floats, parts: list[tuple[Ints, list[int]]], budget: int) -> float:
    """The greatest total that a budget can give of one thing alone, by the relaxation (an upper bound)."""
    found = choose(gain, np.zeros((0, len(gain))), np.zeros(0), parts, budget)
    return 0.0 if found is None else found.bound


def _problem(
    gain: Floats, others: Floats, least: Floats, parts: list[tuple[Ints, list[int]]], budget: int
) -> tuple[_Problem, float]:
    scale = float(np.abs(gain).max(initial=0.0)) or 1.0
    rows, limits = [np.ones(len(gain))], [float(budget)]
    for b, bound in zip(others, least, strict=True):
        size = float(np.abs(b).max(initial=0.0)) or 1.0
        rows.append(-b / size)
        limits.append(-float(bound) / size)
    for part, most in parts:
        for k, allowed in enumerate(most):
            inside = (part == k).astype(np.float64)
            if inside.sum() > allowed:
                rows.append(inside)
                limits.append(float(allowed))
    return _Problem(gain / scale, np.stack(rows), np.array(limits)), scale


def _relaxation(problem: _Problem) -> tuple[Floats | None, Floats, float]:
    """x, reduced costs and the value; x is None where nothing is feasible."""
    from scipy.optimize import linprog

    found = linprog(-problem.gain, problem.rows, problem.limit, bounds=(0.0, 1.0), method="highs-ds")
    if found.x is None or found.fun is None:
        return None, np.zeros(0), 0.0
    reduced = problem.gain + found.ineqlin.marginals @ problem.rows
    return np.asarray(found.x, dtype=np.float64), np.asarray(reduced, dtype=np.float64), -float(found.fun)


def _round(problem: _Problem, relaxed: Floats, core: NDArray[np.intp]) -> NDArray[np.intp] | None:
    """Positions taken where rows outside of the core are as in the relaxation; None where the core has no solution."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    fixed = relaxed > 0.5
    fixed[core] = False
    left = problem.limit - problem.rows[:, fixed].sum(axis=1)
    found = milp(
        -problem.gain[core],
        integrality=np.ones(len(core), dtype=np.int64),
        bounds=Bounds(0.0, 1.0),
        constraints=LinearConstraint(problem.rows[:, core], ub=left),
        options={"node_limit": NODES, "mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    return np.concatenate([np.flatnonzero(fixed), core[np.asarray(found.x) > 0.5]])


def _repaired(taken: NDArray[np.bool_], gain: Floats, others: Floats, least: Floats) -> NDArray[np.bool_] | None:
    """Drop the rows that cost least until every bound holds to the last bit; a solver's tolerance is a millionth."""
    while True:
        sums = [math.fsum(b[taken].tolist()) for b in others]
        short = [j for j, total in enumerate(sums) if total < least[j]]
        if not short:
            return taken
        if not taken.any():
            return None
        j, where = short[0], np.flatnonzero(taken)
        mends = where[others[j, where] <= sums[j] - least[j]]
        drop = mends[gain[mends].argmin()] if len(mends) else where[others[j, where].argmin()]
        taken[drop] = False

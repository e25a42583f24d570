"""What of a run is stored and what is missing: the work to do, and the plan that ``--dry-run`` prints.

Nothing here imports torch: a run whose every row is stored never does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from influence_cli.stages.run import names
from influence_cli.stages.run.auto_method import planned
from influence_cli.stages.run.curvature_plan import Along, Fit, Solve, missing_directions, missing_fits, missing_solves
from influence_cli.stages.run.further_plan import Further, missing_further, missing_phis
from influence_cli.stages.run.gradient_plan import describe_rows
from influence_cli.stages.run.input_said import input_of
from influence_cli.stages.run.members import planned_members
from influence_cli.stages.run.quantities import QUANTITIES, Part
from influence_cli.stages.run.rates import FIT, FIXED, SOLVE, START, Rates, known_rates, seconds_of_pairs, start_key
from influence_cli.stages.run.run import Member, Run
from influence_cli.stages.run.session import Session
from influence_cli.store import Keys
from influence_cli.store.keys import stack
from influence_cli.store.shards import positions, unique

NO_KEYS = stack([])
COSTED_APART = ("forward", "chains")  # passes whose seconds are not those of a rate a row


@dataclass(frozen=True)
class Work:
    """What is missing at one member: directions to measure, curvature, and for each part the keys of its rows."""

    member: Member
    lacking: dict[Part, Keys]
    directions: tuple[str, ...] = ()  # objectives whose q must be measured
    preconditioned: tuple[Along, ...] = ()  # u's to compute
    fits: tuple[Fit, ...] = ()  # factors that they need
    solves: tuple[Solve, ...] = ()  # passes over the fit rows that they take beyond those
    phis: tuple[str, ...] = ()  # objectives whose value is needed, and no gradient
    further: tuple[Further, ...] = ()  # training that goes on from the checkpoint, and draws around it

    def in_pass(self, name: str) -> dict[Part, Keys]:
        """What one pass over the rows computes: forward, values, or another quantity's own."""
        return {part: keys for part, keys in self.lacking.items() if pass_of(part) == name}

    def rows_in(self, name: str) -> int:
        """Distinct training rows that the pass looks at."""
        first, *others = sorted(self.in_pass(name).values(), key=len, reverse=True) or [NO_KEYS]
        more = [keys[positions(keys, first) < 0] for keys in others if not np.array_equal(keys, first)]
        return len(first) + (len(unique(np.concatenate(more))) if more else 0)

    @property
    def rows(self) -> int:
        """Distinct training rows to run through the model for logits and tangents."""
        return self.rows_in("forward")

    @property
    def passes(self) -> list[str]:
        """The passes that have rows to look at, in order."""
        return list(dict.fromkeys(pass_of(part) for part, keys in self.lacking.items() if len(keys)))

    @property
    def nothing(self) -> bool:
        """Whether the store holds all of it."""
        return not self.directions and not self.preconditioned and not self.phis and not self.passes

    @property
    def tangents(self) -> list[Part]:
        """Whole directions along which there are to be tangents, whether rows lack them or not."""
        return [part for part in self.lacking if part.quantity == "tangents" and not part.half]

    @property
    def halves(self) -> dict[str, Keys]:
        """By name of a direction of half of the target rows: the keys that lack its tangents."""
        return {part.name: keys for part, keys in self.lacking.items() if part.half}

    @property
    def values(self) -> dict[str, Keys]:
        """By method: the row keys that lack its value."""
        return {part.of: keys for part, keys in self.lacking.items() if part.quantity == "row_values"}


def pass_of(part: Part) -> str:
    """The pass over the rows that computes a part."""
    computed_in = QUANTITIES[part.quantity].computed_in
    return part.quantity if computed_in == "own" else computed_in


def missing_work(run: Run, session: Session) -> list[Work]:
    """What the store lacks, member by member."""
    found, factors = list[Work](), set[str]()
    for member in run.members:
        work = _missing_at(run, session, member)
        fits = tuple(fit for fit in work.fits if fit.factor not in factors)  # some are of several members
        factors |= {fit.factor for fit in fits}
        found.append(work if len(fits) == len(work.fits) else replace(work, fits=fits))
    return found


def _missing_at(run: Run, session: Session, member: Member) -> Work:
    lacking = {
        part: quantity.lacking(run, session, part)
        for quantity in QUANTITIES.values()
        for part in quantity.parts(run, member)
        if not part.half or _has_halves(run, session, member, part.of)
    }
    work = Work(member, lacking)
    queried = any(names.query(run, name, member) == member for name in run.methods_at(member))
    measure = [o for o in run.objectives if queried and _lacks_direction(run, session, work, o)]
    along = missing_directions(run, session, member, work.halves)
    lacking_values = [name for name, keys in work.values.items() if len(keys)]
    fits = missing_fits(run, session, member, [*(a.method for a in along), *lacking_values])
    solves = missing_solves(run, session, along, work.values)
    work = Work(member, lacking, tuple(measure), along, fits, solves, missing_phis(run, session, member))
    return work if work.nothing else replace(work, further=missing_further(run, session, member, lacking))


def _has_halves(run: Run, session: Session, member: Member, objective: str) -> bool:
    """Whether the target rows of an objective can be halved, as far as is known before they were measured."""
    meta = session.store.directions.meta(names.direction(run, member, objective))
    return meta is None or bool(meta["halves"])


def _lacks_direction(run: Run, session: Session, work: Work, objective: str) -> bool:
    """Whether q must be measured: it is not stored, or tangents of its half are lacking and nothing they run along."""
    known, member = session.store.directions.meta, work.member
    if known(names.direction(run, member, objective)) is None:
        return True
    lacking = [part.name for part, keys in work.lacking.items() if part.half and part.of == objective and len(keys)]
    half = names.direction(run, member, objective, half=True)
    return any(known(name) is None and known(half) is None for name in lacking)


def needed_rates(work: list[Work]) -> set[str]:
    """The kinds of pass that the work holds."""
    kinds = {"target" for w in work if w.directions} | {n for w in work for n in w.passes if n not in COSTED_APART}
    kinds |= {kind for w in work for part in w.further for kind in part.kinds}
    return kinds | {"tangents" if w.tangents else "outputs" for w in work if w.rows}


def describe_plan(
    run: Run,
    session: Session,
    work: list[Work],
    estimated: Rates | None = None,
    gradients: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The plan as plain values: per member what is stored and what will run and why; passes, seconds, bytes.

    An ensemble that has not decided on its number of members is planned with the most it may have.

    ``seconds`` come from rates that earlier runs measured, else from ``estimated`` ones; None where none is known.
    ``gradients`` are rows' own gradients as ``describe_rows`` plans them.
    """
    gradients = describe_rows(run, session) if gradients is None else gradients
    n = len(run.payload_keys) if run.members_of else 0
    measured = known_rates(run, session)
    rates = {**known_rates(run, session, enough=False), **(estimated or {}), **measured}
    sure = all(part.seconds is not None for w in work for part in (*w.fits, *w.solves))
    steps = [_step(run, w, position, n, rates) for position, w in enumerate(work)]
    fits, solves = [fit for w in work for fit in w.fits], [solve for w in work for solve in w.solves]
    seconds = [*(s["seconds"] for s in [*steps, *gradients]), *(_in_all(part, rates) for part in [*fits, *solves])]
    known = sure and needed_rates(work) <= set(measured) and all(g["seconds_are"] == "measured" for g in gradients)
    start = _start(run, session, work, gradients, rates)
    seconds += [start, seconds_of_pairs(run, session)]
    return {
        "schema_version": 1,
        "store": session.store.called if session.runtime.store else "temporary, thrown away at the end",
        "methods": list(run.methods),
        **planned(run),
        "objectives": list(run.objectives),
        "train_rows": len(run.train),
        "target_rows": len(run.target),
        **({} if run.limits is None else {"limits": run.limits, "given_up": list(run.given_up)}),
        "input": input_of(run, session),
        "members": planned_members(run),
        "steps": steps,
        "row_gradients": gradients,
        "rows_to_compute": sum(s["rows_to_compute"] for s in steps),
        "seconds": None if any(s is None for s in seconds) else round(sum(seconds), 1),
        "seconds_are": "measured" if known else "estimated",
        "start_seconds": start,
        "bytes": sum(s["bytes"] for s in steps)
        + sum(fit.bytes for fit in fits)
        + sum(part.bytes for w in work for part in w.further)
        + sum(g["bytes"] or 0 for g in gradients),
    }


def _in_all(part: Fit | Solve, rates: Rates) -> float | None:
    """Seconds of a fit or of solves; where they were never timed, from passes that were tried, or forward ones."""
    tried = rates.get((FIT if isinstance(part, Fit) else SOLVE) + part.method, rates.get("outputs"))
    if part.seconds is not None or tried is None:
        return part.seconds
    fixed = rates.get(FIXED + part.method, 0.0) if isinstance(part, Fit) else 0.0
    return round(tried * part.rows * part.passes + fixed, 1)


def _start(run: Run, session: Session, work: list[Work], gradients: list[dict[str, Any]], rates: Rates) -> float:
    """Seconds before the first row, where anything is to be run; 0 where they are not known."""
    if all(w.nothing for w in work) and not any(g["rows_to_compute"] for g in gradients):
        return 0.0
    known = session.store.timing(start_key(run, session))
    return round(rates.get(START, 0.0) if known is None else known, 1)


def _step(run: Run, work: Work, position: int, n: int, rates: Rates) -> dict[str, Any]:
    """What will run at one member, of n distinct training rows."""
    others = {part.of or part.quantity: len(keys) for part, keys in work.lacking.items() if pass_of(part) != "forward"}
    return {
        "member": position,
        "dropout": None if work.member.dropout is None else work.member.dropout.rate,
        "target_rows_to_pass": len(run.target) if work.directions else 0,
        "target_passes": _target_passes(run, work),
        "rows": n,
        "rows_stored": n - work.rows,
        "rows_to_compute": work.rows,
        "row_values_to_compute": others,
        "why": _why(work, n),
        "forward_passes": 1 + 2 * len(work.tangents) if work.rows else 0,
        "directions": len(work.tangents) + len(work.halves),
        "seconds": _seconds(run, work, rates),
        "bytes": sum(len(k) * QUANTITIES[p.quantity].row_bytes(run) for p, k in work.lacking.items() if len(k)),
        "fits": [{**fit.as_dict(), "seconds": _in_all(fit, rates)} for fit in work.fits],
        "solves": [{**solve.as_dict(), "seconds": _in_all(solve, rates)} for solve in work.solves],
        "further": [part.as_dict(rates) for part in work.further],
    }


def _target_passes(run: Run, work: Work) -> int:
    """Forward passes' worth: a forward and a backward of twice that for means of rows, a forward more for groups."""
    of_groups = sum(name in run.groups for name in work.directions)
    return (3 if len(work.directions) > of_groups else 0) + (1 + 3 * of_groups if of_groups else 0)


def _seconds(run: Run, work: Work, rates: Rates) -> float | None:
    """Seconds of one member's work; None where a rate that it needs is not known."""
    if not needed_rates([work]) <= set(rates):
        return None
    rows = work.rows * rates["tangents" if work.tangents else "outputs"] if work.rows else 0.0
    by_row = any(solve.method in work.values for solve in work.solves)  # whose seconds are all of the pass
    others = [name for name in work.passes if name not in COSTED_APART and not (name == "values" and by_row)]
    more = sum(work.rows_in(name) * rates[name] for name in others)
    more += sum(part.seconds(rates) for part in work.further)
    return round(rows + more + (len(run.target) * rates["target"] if work.directions else 0.0), 1)


def _why(work: Work, n: int) -> str:
    if work.nothing:
        return "all stored"
    if work.further and work.member.walk is not None:
        return "a member whose weights are not stored: training goes on from the checkpoint"
    if work.further and work.rows == 0:
        return "draws that are not stored (fit rows, options of the method or rows not seen before)"
    if work.fits and not work.directions:
        return "curvature to fit: " + work.fits[0].why
    if work.preconditioned and not work.directions:
        return "new preconditioned direction (options of the method or objective not seen before)"
    if work.directions and work.rows == n:
        return "new direction (checkpoint, target rows, objective or settings not seen before)"
    if work.directions:
        return "the direction's file is missing"
    if work.rows == 0 and not work.preconditioned:
        return "values of rows that the store has not seen"
    if work.rows == n:
        return "nothing of these rows is stored"
    return "rows that the store has not seen"

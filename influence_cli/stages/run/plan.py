"""What of a run is stored and what is missing: the work to do, and the plan that ``--dry-run`` prints.

Nothing here imports torch: a run whose every row is stored never does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.stages.grads.preconditioning import (
    Along,
    Fit,
    Solve,
    missing_directions,
    missing_fits,
    missing_solves,
)
from influence_cli.stages.run.gradient_plan import describe_rows
from influence_cli.stages.run.job import Job, Member
from influence_cli.stages.run.members import planned_members
from influence_cli.stages.run.row_values import ROW_VALUE_BYTES, lacking, missing_values, timing_of_values
from influence_cli.store import Keys
from influence_cli.store.shards import unique

Rates = dict[str, float]  # seconds per row, by kind of pass


@dataclass(frozen=True)
class Work:
    """What is missing at one member: directions to measure and, for each folder, keys to compute."""

    member: Member
    directions: tuple[str, ...]  # objectives whose q must be measured
    outputs: Keys
    tangents: dict[str, Keys]  # direction name -> keys
    halves: dict[str, Keys]  # half-direction name -> keys
    preconditioned: tuple[Along, ...] = ()  # u's to compute
    fits: tuple[Fit, ...] = ()  # factors that they need
    solves: tuple[Solve, ...] = ()  # passes over the fit rows that they take beyond those
    values: dict[str, Keys] = field(default_factory=dict)  # method -> row keys that lack its value

    @property
    def rows(self) -> int:
        """Distinct training rows to run through the model."""
        stacked = np.concatenate([self.outputs, *self.tangents.values(), *self.halves.values()])
        return len(unique(stacked))

    @property
    def value_rows(self) -> int:
        """Distinct training rows, payload and label, whose own gradient is looked at."""
        return len(unique(np.concatenate(list(self.values.values())))) if self.values else 0

    @property
    def nothing(self) -> bool:
        """Whether the store holds all of it."""
        return not self.directions and not self.preconditioned and self.rows == 0 and self.value_rows == 0


def missing_work(job: Job) -> list[Work]:
    """What the store lacks, member by member."""
    if not job.method_members:
        return []
    keys = job.payload_keys
    linear = {m.name for m in job.linear_members()}
    half_at, half_of = job.half_member(), job.half_method()
    work: list[Work] = []
    for member in job.members:
        measure: list[str] = []
        tangents: dict[str, Keys] = {}
        halves: dict[str, Keys] = {}
        for objective in job.objectives if member.name in linear else ():
            q = job.direction(member, objective)
            meta = job.store.direction_meta(q)
            for u in (job.along(name, member, objective) for name in job.methods_at(member)):
                tangents[u] = keys[job.tangents(u).missing(keys)]
            if member == half_at and half_of is not None and (meta is None or meta["halves"]):
                half, sample = job.along(half_of, member, objective, half=True), job.half_sample()
                halves[half] = sample[job.tangents(half).missing(sample)]
                sources = (half, job.direction(member, objective, half=True))
                if len(halves[half]) and all(job.store.direction_meta(name) is None for name in sources):
                    meta = None
            if meta is None:
                measure.append(objective)
        outputs = keys[job.outputs(member).missing(keys)]
        along, values = missing_directions(job, member, halves), missing_values(job, member)
        fits = missing_fits(job, member, [*(a.method for a in along), *lacking(values)])
        solves = missing_solves(job, along, values)
        work.append(Work(member, tuple(measure), outputs, tangents, halves, along, fits, solves, values))
    return work


def known_rates(job: Job) -> Rates:
    """Seconds per row as they were last measured, by kind of pass: outputs, tangents, target, values."""
    if job.model is None:
        return {}
    found = {
        "outputs": job.store.timing(timing_key(job, False)),
        "tangents": job.store.timing(timing_key(job, True)),
        "target": job.store.timing(timing_key(job, True, target=True)),
        "values": job.store.timing(timing_key(job, True, values=True)),
    }
    return {kind: rate for kind, rate in found.items() if rate is not None}


def needed_rates(work: list[Work]) -> set[str]:
    """The kinds of pass that the work holds."""
    kinds = {"target" for w in work if w.directions} | {"values" for w in work if w.value_rows}
    return kinds | {"tangents" if w.tangents else "outputs" for w in work if w.rows}


def describe_plan(
    job: Job, work: list[Work], estimated: Rates | None = None, gradients: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The plan as plain values: per member what is stored and what will run and why; passes, seconds, bytes.

    An ensemble that has not decided on its number of members is planned with the most it may have.

    ``seconds`` come from rates that earlier runs measured, else from ``estimated`` ones; None where none is known.
    ``gradients`` are rows' own gradients as ``describe_rows`` plans them.
    """
    gradients = describe_rows(job) if gradients is None else gradients
    n = len(job.payload_keys) if job.method_members else 0
    classes = job.model.num_classes if job.model else 0
    itemsize = 8 if job.spec.precision == "fp64" else 4
    measured = known_rates(job)
    rates = {**(estimated or {}), **measured}
    steps: list[dict[str, Any]] = []
    for position, w in enumerate(work):
        directions = len(w.tangents) + len(w.halves)
        cells = len(w.outputs) + sum(len(k) for k in (*w.tangents.values(), *w.halves.values()))
        forward = (1 + 2 * len(w.tangents)) if w.tangents else 1
        steps.append(
            {
                "member": position,
                "dropout": None if w.member.dropout is None else w.member.dropout.rate,
                "target_rows_to_pass": len(job.target) if w.directions else 0,
                "target_passes": _target_passes(job, w),
                "rows": n,
                "rows_stored": n - w.rows,
                "rows_to_compute": w.rows,
                "row_values_to_compute": {name: len(keys) for name, keys in w.values.items()},
                "why": _why(w, n),
                "forward_passes": 0 if w.rows == 0 else forward,
                "directions": directions,
                "seconds": _seconds(job, w, rates),
                "bytes": cells * (16 + classes * itemsize) + sum(map(len, w.values.values())) * ROW_VALUE_BYTES,
                "fits": [fit.as_dict() for fit in w.fits],
                "solves": [solve.as_dict() for solve in w.solves],
            }
        )
    fits, solves = [fit for w in work for fit in w.fits], [solve for w in work for solve in w.solves]
    seconds = [*(s["seconds"] for s in [*steps, *gradients]), *(part.seconds for part in [*fits, *solves])]
    known = needed_rates(work) <= set(measured) and all(g["seconds_are"] == "measured" for g in gradients)
    return {
        "schema_version": 1,
        "store": str(job.store.root) if job.runtime.store else "temporary, thrown away at the end",
        "methods": list(job.methods),
        "objectives": list(job.objectives),
        "train_rows": len(job.train),
        "target_rows": len(job.target),
        "members": planned_members(job),
        "steps": steps,
        "row_gradients": gradients,
        "rows_to_compute": sum(s["rows_to_compute"] for s in steps),
        "seconds": None if any(s is None for s in seconds) else round(sum(seconds), 1),
        "seconds_are": "measured" if known else "estimated",
        "bytes": sum(s["bytes"] for s in steps)
        + sum(fit.bytes for fit in fits)
        + sum(g["bytes"] or 0 for g in gradients),
    }


def _target_passes(job: Job, work: Work) -> int:
    """Forward passes' worth: a forward and a backward of twice that for means of rows, a forward more for groups."""
    of_groups = sum(name in job.groups for name in work.directions)
    return (3 if len(work.directions) > of_groups else 0) + (1 + 3 * of_groups if of_groups else 0)


def _seconds(job: Job, work: Work, rates: Rates) -> float | None:
    """Seconds of one member's work; None where a rate that it needs is not known."""
    if not needed_rates([work]) <= set(rates):
        return None
    rows = work.rows * rates["tangents" if work.tangents else "outputs"] if work.rows else 0.0
    by_row = any(solve.method in work.values for solve in work.solves)  # whose seconds are all of the pass
    values = work.value_rows * rates["values"] if work.value_rows and not by_row else 0.0
    return round(rows + values + (len(job.target) * rates["target"] if work.directions else 0.0), 1)


def timing_key(job: Job, tangents: bool, target: bool = False, values: bool = False) -> str:
    """Under what name a pass's measured seconds per row are kept: of training rows, of the target, of row values."""
    if values:
        return timing_of_values(job)
    assert job.model is not None
    shape = "x".join(str(s) for s in job.model.shape)
    kind = ("target " if target else "") + (job.spec.params if tangents else "outputs")
    return f"{job.model.name} {shape} {kind} {job.spec.precision} {job.runtime.device}"


def _why(work: Work, n: int) -> str:
    if work.nothing:
        return "all stored"
    if work.fits and not work.directions:
        return "curvature to fit: " + work.fits[0].why
    if work.preconditioned and not work.directions:
        return "new preconditioned direction (options of the method or objective not seen before)"
    if work.directions and work.rows == n:
        return "new direction (checkpoint, target rows, objective or settings not seen before)"
    if work.directions:
        return "the direction's file is missing"
    if work.rows == 0 and not work.preconditioned:
        return "values of rows' own gradients that the store has not seen"
    if work.rows == n:
        return "nothing of these rows is stored"
    return "rows that the store has not seen"


def index_by_key(rows: Rows) -> dict[bytes, int]:
    """First manifest row of every distinct payload."""
    first: dict[bytes, int] = {}
    for row, key in zip(rows.index.tolist(), rows.payload_keys, strict=True):
        first.setdefault(key.tobytes(), row)
    return first


def key_list(keys: NDArray[np.uint8]) -> list[bytes]:
    """Keys [n, 16] as byte strings."""
    return [k.tobytes() for k in keys]

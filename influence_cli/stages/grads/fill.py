"""(1) manifest -> store, for the rows that the store has not seen.

At each member: pass V measures the directions that are not stored, then one pass over the training rows computes
logits and tangents for the rows that lack any of them, and another the values of rows' own gradients.  Every full shard
is written as soon as it is complete, so a run that is killed has lost only the rows in hand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from influence_cli.data.tables import with_provenance
from influence_cli.stages.grads.bf16 import measure_agreement, note_frozen, points
from influence_cli.stages.grads.curvature_report import note_curvature
from influence_cli.stages.grads.directions import measure
from influence_cli.stages.grads.first_look import FirstLook, run_target
from influence_cli.stages.grads.preconditioning import missing_directions, precondition
from influence_cli.stages.grads.provenance import base_table, nullable, provenance_of
from influence_cli.stages.grads.row_gradients import fill_gradients
from influence_cli.stages.grads.row_pass import batch_size, row_pass
from influence_cli.stages.grads.value_functions import note_values, value_functions
from influence_cli.stages.grads.value_pass import value_pass
from influence_cli.stages.run.job import Job, require_model
from influence_cli.stages.run.members import added_member, begin, grow, note_members
from influence_cli.stages.run.plan import Work, missing_work
from influence_cli.stages.score.noise import direction_noise
from influence_cli.store.shards import as_arrow

if TYPE_CHECKING:
    from influence_cli.data.manifest import Payload


def fill(job: Job) -> int:
    """Compute and store what is missing; returns the number of training rows run through the model."""
    look = FirstLook(job)
    begin(job)
    done = _fill(job, look)
    while grow(job):
        done += _fill(job, look)
    job.held = None
    note_curvature(job)
    note_values(job)
    note_members(job)
    return done + fill_gradients(job)


def _fill(job: Job, look: FirstLook) -> int:
    """Compute and store what is missing at the members that the job has now."""
    work = [_with_readable_directions(job, w) for w in missing_work(job) if not w.nothing]
    if not work:
        return 0
    work.sort(key=lambda w: w.member != job.plain_member())  # the model itself first: how good it is, is said at once
    skipped = len(job.manifest.bad)
    from influence_cli.engines.point import DTYPES
    from influence_cli.model.build import device_of, load_model
    from influence_cli.model.decoded import DecodedByKey

    spec, checkpoint = require_model(job)
    device = device_of(job.runtime.device)
    model = load_model(spec, checkpoint, DTYPES["fp32" if job.spec.precision == "bf16" else job.spec.precision])
    note_frozen(job, model)
    payloads = _target_payloads(job) if any(w.directions for w in work) else {}
    if len(job.members) > 1 or any(w.rows and w.value_rows for w in work):
        job.held = job.held or DecodedByKey(spec)
    done = 0
    for position, w in enumerate(work):
        exact, point = points(job, model, w.member, device)
        what = f"member {position + 1} of {len(work)}" if len(work) > 1 else added_member(job, w.member) or "model"
        if w.directions:
            measure(job, w, exact, payloads, what)
        if position == 0 and not job.linear_members():
            run_target(job, point)
        if w.preconditioned:
            precondition(job, w.member, w.preconditioned, model, device, batch_size(job))
        if w.rows:
            row_pass(job, w, point, what, look)
        if w.value_rows:
            functions = value_functions(job, w.member, w.values, model, device, batch_size(job))
            value_pass(job, w, exact, what, functions)
        if point is not exact:
            measure_agreement(job, w.member, exact, point)
        look.say()
        done += w.rows + w.value_rows
    job.forget_folders()
    if len(job.manifest.bad) > skipped:  # others may have taken their place, where rows are sampled
        return done + _fill(job, look)
    return done


def _with_readable_directions(job: Job, work: Work) -> Work:
    """The work, with directions to make again whose stored tensors turn out to be damaged or gone."""
    measure, lacking = list(work.directions), [n for n, keys in (work.tangents | work.halves).items() if len(keys)]
    unreadable = {name for name in lacking if job.store.read_direction(name) is None}  # and set aside
    missing = missing_directions(job, work.member, work.halves)
    for objective in job.objectives:
        needed = {job.direction(work.member, objective, half=h) for h in (False, True)} & unreadable
        needed |= {a.q for a in missing if a.objective == objective and job.store.read_direction(a.q) is None}
        if objective not in measure and needed:
            measure.append(objective)
    return replace(work, directions=tuple(measure), preconditioned=missing)


def _target_payloads(job: Job) -> dict[int, Payload]:
    """Encoded payloads of the target rows, read once for all members."""
    return dict(job.target.manifest.payloads(job.target.index))


def grads_table(job: Job) -> pa.Table:
    """A row per training row: id, row_key, payload_key, label and, where a model was run, its loss."""
    table = base_table(job)
    keys = as_arrow(job.train.payload_keys)
    table = table.add_column(2, "payload_key", keys)
    if job.members:
        logits = job.outputs(job.plain_member()).read(job.train.payload_keys)["logits"]
        with np.errstate(invalid="ignore", over="ignore"):
            loss = job.row_loss.losses(logits, job.train.labels)
        table = table.append_column("loss", nullable(loss))
    return with_provenance(table, {**provenance_of(job, "grads"), "noise": direction_noise(job)})

"""(2) For every target row its K most helpful and K most harmful train rows, without a matrix of n x m scores.

    s(v, i) = < grad l_i, P grad l_v >

is the score of train row i where target row v is the whole target: positive where the row helps it.  ``score`` itself
is the mean of s over the target rows.  Memory holds a block of target rows, a batch of train rows and the table itself:
O(block x (batch + parameters) + m K).  Every finished block is stored, so a run that is stopped goes on from there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.data.tables import with_provenance
from influence_cli.errors import UsageError
from influence_cli.maths.top_k import NONE, SIDES, TopK
from influence_cli.methods.protocol import Preconditioned
from influence_cli.stages.grads import fill
from influence_cli.stages.job import Job, Member
from influence_cli.stages.per_target_pass import block_size, rate_key, tangent_pass
from influence_cli.stages.plan import Work
from influence_cli.stages.preconditioning import Along, missing_fits, missing_solves, parameter_count
from influence_cli.stages.provenance import provenance_of
from influence_cli.store import ShardFolder, fingerprint
from influence_cli.store.keys import digest_in_order
from influence_cli.store.shards import as_arrow, unique

TOP = 10  # rows of each side
OBJECTIVE = "utility"  # the objective whose term of a target row is its own loss
ROW_BYTES = 2 * 16  # of a place and a score on either side


def check_per_target(job: Job, top: int) -> str:
    """The method that scores pairs of rows.

    Raises:
        UsageError: there are several, it has no scores of pairs, another objective was asked for, or ``top`` is no
            number of rows.
    """
    if top < 1:
        raise UsageError(f"--top {top} is no number of rows", fix=f"--top {TOP}")
    if len(job.methods) > 1:
        names = ", ".join(job.methods)
        raise UsageError(f"--per-target is a table of one method, and these are several: {names}", fix="--method ip")
    (name,) = job.methods
    if job.methods[name].needs != "tangents":
        raise UsageError(
            f"--per-target needs a score for every pair of a train and a target row, and {name} is a value of a row "
            "alone",
            fix="--method ip, or another that measures a direction (see: influence methods)",
        )
    others = [o for o in job.objectives if o != OBJECTIVE]
    if others:
        raise UsageError(
            f"--per-target is about the loss of each target row, and {', '.join(others)} is about all of them together",
            fix=f"--objective {OBJECTIVE}",
        )
    return name


def per_target(job: Job, top: int = TOP) -> pa.Table:
    """The table: for every target row up to ``top`` rows of each side, the most extreme first.

    Columns: target_id, target_row_key, target_label, rank (from 1), side (helpful or harmful), id, row_key, label and
    score.  A side holds rows of its own sign alone: there are fewer where fewer help, or harm.
    """
    name = check_per_target(job, top)
    if _undecided(job):
        fill(job)  # how many members there are is decided by the scores for all target rows
    train, target = job.train, job.target
    missing = _missing(job, name, top)
    if len(missing):
        job.listener.note(sentence(describe_per_target(job, top)))
        folder = _folder(job, name, top)

        def keep(block: Rows, found: TopK, bad: NDArray[np.int64]) -> None:
            """Store a finished block."""
            values = {"places": found.places, "scores": found.scores, "bad": bad}
            folder.write(block.row_keys, {"payload_keys": block.payload_keys, **values})

        tangent_pass(job, name, missing, top, keep)
    stored = _folder(job, name, top, train).read(target.row_keys)
    _warn(job, train, stored["bad"], stored["places"])
    table = _table(target, train, stored["places"], stored["scores"])
    about = {
        "method": name,
        "top": top,
        "rows": "none",
        "exact": True,
        "non_finite_rows": int(stored["bad"][:, 0].max(initial=0)),
    }
    return with_provenance(table, {**provenance_of(job, "per-target"), "kind": "signed", "per_target": about})


def _undecided(job: Job) -> bool:
    return any(ensemble.decided is None for ensemble in job.ensembles.values())


def _folder(job: Job, name: str, top: int, train: Rows | None = None) -> ShardFolder:
    """The shards of what was found, by target row; named by all that decides it, the order of the train rows too."""
    method, members = job.methods[name], job.method_members[name]
    p = isinstance(method, Preconditioned)
    how = {"name": name, **method.describe(), "factors": [job.factor(name, m) for m in members]} if p else None
    rows = job.train if train is None else train
    about = {"params": job.spec.params, "loss": job.loss_name, "top": top}
    named = fingerprint(
        "top-rows", 1, members=[m.name for m in members], method=how, train=digest_in_order(rows.row_keys), **about
    )
    assert job.model is not None
    of = {"model": job.model.as_dict(), "precision": job.spec.precision, "value": {"value": f"top {top} by {name}"}}
    return job.store.top_rows(named, {**about, **of})


def _missing(job: Job, name: str, top: int) -> Rows:
    """Distinct target rows that nothing is stored for, in order."""
    keys = job.target.row_keys
    distinct = np.zeros(len(keys), dtype=bool)
    distinct[unique(keys)] = True
    return job.target.take(distinct & _folder(job, name, top).missing(keys))


def _table(target: Rows, train: Rows, places: NDArray[np.int64], scores: NDArray[np.float64]) -> pa.Table:
    """Places and scores [m, 2, K] as rows."""
    v, side, rank = np.nonzero(places != NONE)
    row = places[v, side, rank]
    return pa.table(
        {
            "target_id": pa.array(target.ids, pa.string()).take(pa.array(v)),
            "target_row_key": as_arrow(target.row_keys[v]),
            "target_label": pa.array(target.labels[v]),
            "rank": pa.array(rank + 1),
            "side": pa.array(SIDES, pa.string()).take(pa.array(side)),
            "id": pa.array(train.ids, pa.string()).take(pa.array(row)),
            "row_key": as_arrow(train.row_keys[row]),
            "label": pa.array(train.labels[row]),
            "score": pa.array(scores[v, side, rank]),
        }
    )


def _warn(job: Job, train: Rows, bad: NDArray[np.int64], places: NDArray[np.int64]) -> None:
    """Rows that are not finite, and target rows that nothing helps or harms."""
    count = int(bad[:, 0].max(initial=0))
    if count:
        worst = bad[bad[:, 0].argmax(), 1:]
        named = ", ".join(train.ids[k] for k in worst[worst >= 0].tolist())
        job.listener.warn(f"{count} rows have a non-finite score and are never ranked: {named}")
    empty = np.flatnonzero((places == NONE).all(axis=(1, 2)))
    if len(empty):
        named = ", ".join(job.target.ids[k] for k in empty[:5].tolist())
        job.listener.warn(f"no row helps or harms {len(empty)} target rows, every score is 0: {named}")


# -- the plan -------------------------------------------------------------------------------------------------------


def describe_per_target(job: Job, top: int) -> dict[str, Any]:
    """The plan as plain values: target rows stored and to compute, blocks, passes, seconds and memory."""
    name = check_per_target(job, top)
    members, missing, n = job.method_members[name], len(_missing(job, name, top)), len(job.payload_keys)
    size = block_size(job, len(members))
    blocks = -(-missing // size)
    rate, measured = _rate(job, members[0], size) if missing else (0.0, True)
    along = (Along(name, OBJECTIVE, False, "", ""),) if missing and job.fit is not None else ()
    fits = [fit for member in members for fit in missing_fits(job, member, along)]
    solves = [replace(s, directions=missing, passes=blocks * s.passes) for s in missing_solves(job, along)]
    solves = [s if s.seconds is None else replace(s, seconds=round(blocks * s.seconds, 1)) for s in solves]
    seconds = None if rate is None else round(rate * missing * n * len(members), 1)
    every = [seconds, *(f.seconds for f in fits), *(s.seconds for s in solves)]
    known = [s for s in every if s is not None]
    values = 2 * size * len(members) * parameter_count(job)
    return {
        "schema_version": 1,
        "store": str(job.store.root) if job.runtime.store else "temporary, thrown away at the end",
        "method": name,
        "rows": "none",
        "exact": True,
        "top": top,
        "train_rows": len(job.train),
        "target_rows": len(job.target),
        "target_rows_to_compute": missing,
        "members": len(members),
        "target_rows_a_block": size,
        "passes": blocks * len(members),
        "forward_passes": (blocks + 2 * missing) * len(members),
        "seconds": round(sum(known), 1) if len(known) == len(every) else None,
        "seconds_are": "measured" if measured else "estimated",
        "memory_bytes": values * (8 if job.spec.precision == "fp64" else 4) + ROW_BYTES * top * len(job.target),
        "fits": [fit.as_dict() for fit in fits],
        "solves": [solve.as_dict() for solve in solves],
    }


def _rate(job: Job, member: Member, size: int) -> tuple[float | None, bool]:
    """Seconds per train row, direction and member, and whether they were measured; else a small batch is timed."""
    known = job.store.timing(rate_key(job))
    if known is not None:
        return known, True
    from influence_cli.stages.estimate import estimated_rates

    keys = job.payload_keys[:1]
    rates = estimated_rates(job, [Work(member, (), keys[:0], {str(k): keys for k in range(size)}, {})])
    return (rates["tangents"] / size if "tangents" in rates else None), False


def sentence(plan: dict[str, Any]) -> str:
    """What is about to be run, and how long it takes."""
    seconds = "unknown" if plan["seconds"] is None else f"{plan['seconds']:,.3g} {plan['seconds_are']}"
    return (
        f"{plan['target_rows_to_compute']:,} target rows, {plan['target_rows_a_block']} a pass: {plan['passes']:,} "
        f"passes over {plan['train_rows']:,} train rows, as much as {plan['forward_passes']:,} forward passes; "
        f"seconds: {seconds}"
    )

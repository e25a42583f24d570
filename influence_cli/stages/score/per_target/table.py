"""(2) For every target row its K most helpful and K most harmful train rows, without a matrix of n x m scores.

    s(v, i) = < grad l_i, P grad l_v >

is the score of train row i where target row v is the whole target: positive where the row helps it.  ``score`` itself
is the mean of s over the target rows.  There are two ways to it: directions of blocks of target rows along which the
train rows' tangents are taken (``per_target_pass``), or, where the run asks for rows' own gradients (``--rows``), a
product of stored ones (``per_target_product``), exact unless they are sketches.

Memory holds a block of target rows, a batch or a shard of train rows and the table itself:
O(block x (batch + parameters) + m K).  Every finished block is stored, so a run that is stopped goes on from there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.data.tables import with_provenance
from influence_cli.errors import UsageError
from influence_cli.maths.top_k import NONE, SIDES, TopK
from influence_cli.methods.shapes.preconditioned import Preconditioned
from influence_cli.stages.grads.fill import fill
from influence_cli.stages.grads.provenance import provenance_of
from influence_cli.stages.run.gradient_plan import row_request
from influence_cli.stages.run.job import Job
from influence_cli.stages.score.per_target.against_exact import agreement_of_pairs, is_exact
from influence_cli.stages.score.per_target.plan import describe, hint, sentence
from influence_cli.stages.score.per_target.products import open_rows, product_pass
from influence_cli.stages.score.per_target.tangents import tangent_pass
from influence_cli.store import ShardFolder, fingerprint
from influence_cli.store.keys import digest_in_order
from influence_cli.store.shards import as_arrow, unique

TOP = 10  # rows of each side
OBJECTIVE = "utility"  # the objective whose term of a target row is its own loss


def check_per_target(job: Job, top: int) -> str:
    """The method that scores pairs of rows.

    Raises:
        UsageError: there are several, it has no scores of pairs or none from the rows that are stored, another
            objective was asked for, or ``top`` is no number of rows.
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
    if name in job.values:
        how = "--relative" if job.spec.relative else "ip.normalise=cosine"
        raise UsageError(
            f"scores of pairs are not divided by the size of a row's own gradient, as {how} asks for",
            fix=f"leave {how} out, or --per-target",
        )
    others = [o for o in job.objectives if o != OBJECTIVE]
    if others:
        raise UsageError(
            f"--per-target is about the loss of each target row, and {', '.join(others)} is about all of them together",
            fix=f"--objective {OBJECTIVE}",
        )
    if job.spec.rows is not None:
        _check_rows(job, name)
    return name


def _check_rows(job: Job, name: str) -> None:
    """Refuse methods whose scores the stored rows do not give."""
    rows, members = job.spec.rows, job.method_members[name]
    if len(members) > 1 or members[0].dropout is not None:
        raise UsageError(
            f"--rows {rows} stores gradients at the checkpoint, and {name} takes them where parameters are dropped",
            fix="leave --rows out, or take --method ip",
        )
    whole = rows == "full" or (rows == "last" and job.spec.params == "last")
    if isinstance(job.methods[name], Preconditioned) and not whole:
        stored = "sketches" if rows == "sketch" else "those of the head alone"
        raise UsageError(
            f"{name} turns whole gradients into others, and --rows {rows} stores {stored}",
            fix="--rows full, or leave --rows out" + (", or add --params last" if rows == "last" else ""),
        )


def per_target(job: Job, top: int = TOP) -> pa.Table:
    """The table: for every target row up to ``top`` rows of each side, the most extreme first.

    Columns: target_id, target_row_key, target_label, rank (from 1), side (helpful or harmful), id, row_key, label and
    score, and from sketches ``standard_error``, the most that the score's may be.  A side holds rows of its own sign
    alone: there are fewer where fewer help, or harm.
    """
    name = check_per_target(job, top)
    if any(ensemble.decided is None for ensemble in job.ensembles.values()):
        fill(job)  # how many members there are is decided by the scores for all target rows
    target, train, missing = job.target, job.train, _missing(job, name, top)
    if len(missing):
        plan = describe(job, name, top, len(missing))
        for text in filter(None, (sentence(plan), hint(job, plan))):
            job.listener.note(text)
        train = _compute(job, name, top)
    stored = _folder(job, name, top, train).read(target.row_keys)
    _warn(job, train, stored["bad"], stored["places"])
    table = _table(target, train, stored)
    bad = int(stored["bad"][:, 0].max(initial=0))
    about = {"method": name, "top": top, **_rows_said(job, name, table), "non_finite_rows": bad}
    return with_provenance(table, {**provenance_of(job, "per-target"), "kind": "signed", "per_target": about})


def _compute(job: Job, name: str, top: int) -> Rows:
    """Find and store what is missing, block by block; returns the train rows that it is of."""
    gradients = None if job.spec.rows is None else open_rows(job)  # leaves out rows that turn out not to be readable
    folder, train, missing = _folder(job, name, top, job.train), job.train, _missing(job, name, top)

    def keep(block: Rows, found: TopK, bad: NDArray[np.int64], more: dict[str, NDArray[Any]]) -> None:
        values = {"places": found.places, "scores": found.scores, "bad": bad, **more}
        folder.write(block.row_keys, {"payload_keys": block.payload_keys, **values})

    if gradients is None:
        tangent_pass(job, name, missing, top, keep)
    else:
        product_pass(job, name, gradients, missing, top, keep)
    if not is_exact(job):
        agreement_of_pairs(job, name, True, gradients)
    return train


def describe_per_target(job: Job, top: int = TOP) -> dict[str, Any]:
    """The plan as plain values: target rows stored and to compute, blocks, passes, seconds and memory."""
    name = check_per_target(job, top)
    return describe(job, name, top, len(_missing(job, name, top)))


def _folder(job: Job, name: str, top: int, train: Rows) -> ShardFolder:
    """The shards of what was found, by target row; named by all that decides it, the order of the train rows too.

    Both ways are exact but for sketches, and share it.
    """
    method, members, params = job.methods[name], job.method_members[name], job.spec.params
    p = isinstance(method, Preconditioned)
    how = {"name": name, **method.describe(), "factors": [job.factor(name, m) for m in members]} if p else None
    sketch = None
    if job.spec.rows is not None:
        request = row_request(job)
        params, sketch = request.params, None if request.sketch_dim is None else [request.sketch_dim, request.seed]
    about = {"params": params, "loss": job.loss_name, "top": top, "sketch": sketch}
    named = fingerprint(
        "top-rows", 2, members=[m.name for m in members], method=how, train=digest_in_order(train.row_keys), **about
    )
    assert job.model is not None
    of = {"model": job.model.as_dict(), "precision": job.spec.precision, "value": {"value": f"top {top} by {name}"}}
    return job.store.top_rows(named, {**about, **of})


def _missing(job: Job, name: str, top: int) -> Rows:
    """Distinct target rows that nothing is stored for, in order."""
    keys = job.target.row_keys
    distinct = np.zeros(len(keys), dtype=bool)
    distinct[unique(keys)] = True
    return job.target.take(distinct & _folder(job, name, top, job.train).missing(keys))


def _table(target: Rows, train: Rows, stored: dict[str, NDArray[Any]]) -> pa.Table:
    """Places and scores [m, 2, K] as rows."""
    there = stored["places"] != NONE
    v, side, rank = np.nonzero(there)
    row = stored["places"][there]
    columns = {
        "target_id": pa.array(target.ids, pa.string()).take(pa.array(v)),
        "target_row_key": as_arrow(target.row_keys[v]),
        "target_label": pa.array(target.labels[v]),
        "rank": pa.array(rank + 1),
        "side": pa.array(SIDES, pa.string()).take(pa.array(side)),
        "id": pa.array(train.ids, pa.string()).take(pa.array(row)),
        "row_key": as_arrow(train.row_keys[row]),
        "label": pa.array(train.labels[row]),
        "score": pa.array(stored["scores"][there]),
    }
    if "errors" in stored:
        columns["standard_error"] = pa.array(stored["errors"][there])
    return pa.table(columns)


def _rows_said(job: Job, name: str, table: pa.Table) -> dict[str, Any]:
    """For provenance: by which gradients, whether exactly, and how large errors are; said too."""
    request = None if job.spec.rows is None else row_request(job)
    about = {
        "rows": job.spec.rows,
        "params": job.spec.params if request is None else request.params,
        "exact": is_exact(job),
    }
    if about["params"] != job.spec.params:
        job.listener.note("scores are of the head's parameters alone (--rows last), not of all")
    if about["exact"]:
        return about
    said, measured = list[str](), agreement_of_pairs(job, name, False)
    if measured is not None and measured["rank_correlation"] is not None:
        of = f"{measured['train_rows']:,} train rows for {measured['target_rows']} target rows"
        said.append(f"rank correlation {measured['rank_correlation']:.3f} with exact scores of {of}")
    if request is not None:
        error, score = (table.column(n).to_numpy() for n in ("standard_error", "score"))
        share = float(np.median(error / np.abs(score))) if len(score) else None
        about |= {"sketch_dim": request.sketch_dim, "median_relative_error": share}
        if share is not None:
            said.append(f"standard errors of those listed are at most {share:.0%} of them in the median")
    way = (
        "from sketches (without --rows they are exact)"
        if request is not None
        else "in bf16 (--precision fp32 is exact)"
    )
    job.listener.note(f"scores are estimates {way}: {'; '.join(said)}")
    return {**about, "against_exact": measured}


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

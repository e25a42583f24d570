"""What a table by target row costs: blocks, passes, seconds and memory, by directions or by stored row gradients."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from influence_cli.maths.top_k import inner_products
from influence_cli.stages.run.auto_method import method_is
from influence_cli.stages.run.curvature_plan import Along, missing_fits, missing_solves, parameter_count
from influence_cli.stages.run.gradient_plan import GIB, describe_rows, row_bytes, row_request
from influence_cli.stages.run.plan import Work
from influence_cli.stages.run.quantities import Part
from influence_cli.stages.run.rates import is_measured
from influence_cli.stages.run.run import Member, Run
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.per_target.against_exact import is_exact
from influence_cli.stages.score.per_target.products import PAIRS, product_block_size
from influence_cli.stages.score.per_target.tangents import block_size, rate_key
from influence_cli.store.shards import SHARD_BYTES

MANY_BLOCKS = 4  # passes from which storing gradients is advised
ROW_BYTES = 2 * 16  # of a place and a score on either side


def describe(run: Run, session: Session, name: str, top: int, missing: int, timed: bool = True) -> dict[str, Any]:
    """The plan as plain values, for so many target rows that nothing is stored for.

    With ``timed`` a batch is run where the store does not know how long a pass takes.
    """
    members = run.members_of[name]
    about = (
        _by_products(run, session, missing, timed)
        if run.spec.rows is not None
        else _by_directions(run, session, members, missing, timed)
    )
    blocks = -(-missing // about["target_rows_a_block"])
    along = (Along(name, "", False, "", "", run.members_of[name][0]),) if missing and name in run.solvers else ()
    every_fit = [fit for member in members for fit in missing_fits(run, session, member, [a.method for a in along])]
    fits = list({fit.factor: fit for fit in every_fit}.values())  # some are of several members
    solves = [replace(s, directions=missing, passes=blocks * s.passes) for s in missing_solves(run, session, along, {})]
    solves = [s if s.seconds is None else replace(s, seconds=round(blocks * s.seconds, 1)) for s in solves]
    every = [about["seconds"], *(f.seconds for f in fits), *(s.seconds for s in solves)]
    known = [s for s in every if s is not None]
    return {
        "schema_version": 1,
        "store": session.store.called if session.runtime.store else "temporary, thrown away at the end",
        "method": method_is(run, name),
        "rows": run.spec.rows,
        "exact": is_exact(run),
        "top": top,
        "train_rows": len(run.train),
        "target_rows": len(run.target),
        "target_rows_to_compute": missing,
        "members": len(members),
        **about,
        "seconds": round(sum(known), 1) if len(known) == len(every) else None,
        "memory_bytes": about["memory_bytes"] + ROW_BYTES * top * len(run.target),
        "fits": [fit.as_dict() for fit in fits],
        "solves": [solve.as_dict() for solve in solves],
    }


def _by_directions(
    run: Run, session: Session, members: tuple[Member, ...], missing: int, timed: bool
) -> dict[str, Any]:
    size, n = block_size(run, session, len(members)), len(run.payload_keys)
    blocks = -(-missing // size)
    rate, measured = _rate(run, session, members[0], size, timed) if missing else (0.0, True)
    itemsize = 8 if run.spec.precision == "fp64" else 4
    return {
        "target_rows_a_block": size,
        "passes": blocks * len(members),
        "forward_passes": (blocks + 2 * missing) * len(members),
        "seconds": None if rate is None else round(rate * missing * n * len(members), 1),
        "seconds_are": "measured" if measured else "estimated",
        "memory_bytes": 2 * size * len(members) * parameter_count(run, session) * itemsize,
    }


def _rate(run: Run, session: Session, member: Member, size: int, timed: bool) -> tuple[float | None, bool]:
    """Seconds per train row, direction and member, and whether they were measured; else a small batch is timed."""
    known = session.store.timing(rate_key(run, session))
    if is_measured(session, rate_key(run, session)):
        return known, True
    if not timed:
        return known, False
    from influence_cli.stages.run.estimate import estimated_rates

    keys = run.payload_keys[:1]
    rates = estimated_rates(run, session, [Work(member, {Part("tangents", str(k), member): keys for k in range(size)})])
    return (rates["tangents"] / size if "tangents" in rates else known), False


def _by_products(run: Run, session: Session, missing: int, timed: bool) -> dict[str, Any]:
    """Of row gradients: what of them lacks, and the product."""
    from influence_cli.stages.run.estimate import planned_gradients

    (rows,) = planned_gradients(run, session) if missing and timed else describe_rows(run, session)
    dim, request = rows["values"], row_request(run, session)
    if dim is None:
        whole = parameter_count(run, session, request.params)
        dim = whole if request.sketch_dim is None else min(whole, request.sketch_dim)
    if missing == 0:
        rows |= {"rows_to_compute": 0, "seconds": 0.0, "bytes": 0, "refused": None}
    size = product_block_size(dim)
    product = _product_rate(dim, min(missing, size)) * missing * len(run.train)
    block = size * row_bytes(run, dim) + SHARD_BYTES + 8 * PAIRS
    return {
        "values_a_row": dim,
        "target_rows_a_block": size,
        "passes": -(-missing // size),  # over the stored train rows
        "row_gradients_to_compute": rows["rows_to_compute"],
        "row_gradient_bytes": rows["bytes"],
        "refused": rows["refused"],
        "seconds": None if rows["seconds"] is None else round(rows["seconds"] + product, 1),
        "seconds_are": "estimated",
        "memory_bytes": block,
    }


def _product_rate(dim: int, targets: int) -> float:
    """Seconds a pair: a small product is timed."""
    if targets == 0:
        return 0.0
    t, p = min(targets, 64), min(dim, 4096)
    a, b = np.ones((t, p), dtype=np.float32), np.ones((256, p), dtype=np.float32)
    inner_products(a, b)
    started = time.perf_counter()
    inner_products(a, b)
    return (time.perf_counter() - started) / (t * 256) * (dim / p)


def hint(run: Run, session: Session, plan: dict[str, Any]) -> str | None:
    """What would be faster for many target rows: stored gradients, where they are no more than the limit."""
    many = plan["target_rows_to_compute"] > MANY_BLOCKS * plan.get("target_rows_a_block", 0)
    if plan["rows"] is not None or plan["members"] > 1 or not many:
        return None
    size = (len(run.train) + len(run.target)) * row_bytes(run, parameter_count(run, session)) / GIB
    if size > session.runtime.rows_limit:
        return None
    return f"with --rows full all target rows are one product of stored gradients ({size:,.3g} GiB), as exact"


def sentence(plan: dict[str, Any]) -> str:
    """What is about to be run, and how long it takes."""
    known = plan["seconds"] is not None
    seconds = f"; about {plan['seconds']:,.3g} s ({plan['seconds_are']})" if known else "; how long is not known yet"
    what = f"{plan['target_rows_to_compute']:,} target rows, {plan['target_rows_a_block']:,} a pass: "
    if plan["rows"] is None:
        forward = f"as much as {plan['forward_passes']:,} forward passes"
        return f"{what}{plan['passes']:,} passes over {plan['train_rows']:,} train rows, {forward}{seconds}"
    lacking = plan["row_gradients_to_compute"]
    first = f"; {lacking:,} row gradients are computed first" if lacking else ""
    return (
        f"{what}{plan['passes']:,} passes over the stored gradients ({plan['rows']}, {plan['values_a_row']:,} values) "
        f"of {plan['train_rows']:,} train rows{first}{seconds}"
    )

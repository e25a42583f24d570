"""What a run says of its curvature: spectrum, damping, fit rows inside and outside it, and what to be warned of."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.methods.shapes.preconditioned import Preconditioned
from influence_cli.stages.run.row_values import value_name

if TYPE_CHECKING:
    from influence_cli.stages.run.job import Job

ILL_CONDITIONED = {
    "bf16": 1e6,
    "fp32": 1e6,
    "fp64": 1e12,
}  # condition numbers above which scores lose most of their digits


def curvature_report(job: Job) -> dict[str, dict[str, Any]]:
    """By method: spectrum, damping, l2, gradient norm and fit rows at its first member, for provenance."""
    report: dict[str, dict[str, Any]] = {}
    for name, method in job.methods.items():
        if isinstance(method, Preconditioned):
            meta = job.store.direction_meta(job.along(name, job.method_members[name][0], next(iter(job.objectives))))
            report[name] = {} if meta is None else meta["curvature"]
        elif name in job.solvers:
            report[name] = job.store.value_facts(value_name(job, name, job.method_members[name][0])[0]) or {}
    return report


def note_curvature(job: Job) -> None:
    """Say of every curvature what its spectrum was, and warn where it loses digits."""
    for name, facts in curvature_report(job).items():
        if not facts:
            continue
        job.listener.curvature(name, facts, asdict(job.solvers[name]))
        for text in _warnings(job, name):
            job.listener.warn(f"{name}: {text}")
        for text in condition_warning(job, name, facts):
            job.listener.warn(f"{name}: {text}")


def condition_warning(job: Job, name: str, facts: dict[str, Any]) -> list[str]:
    """Where a curvature loses most digits of the scores: what to do."""
    condition, bound = facts.get("condition_number"), ILL_CONDITIONED[job.spec.precision]
    if condition is None or not condition > bound:
        return []
    more = "--precision fp64, or " if job.spec.precision == "fp32" else ""
    return [
        f"the condition number {condition:.3g} is above {bound:g}, what {job.spec.precision} can resolve: pass "
        f"{more}--set {name}.damping=X"
    ]


def _warnings(job: Job, name: str) -> list[str]:
    """What a method warns of in any of its directions, each text once."""
    said = dict[str, None]()
    if not isinstance(job.methods[name], Preconditioned):
        return warnings_of(job, name, curvature_report(job)[name])
    for member in job.method_members[name]:
        for objective in job.objectives:
            meta = job.store.direction_meta(job.along(name, member, objective))
            said |= dict.fromkeys(warnings_of(job, name, meta["curvature"]) if meta is not None else ())
    return list(said)


def warnings_of(job: Job, name: str, facts: dict[str, Any]) -> list[str]:
    """What a method warns of in one direction, and that fit rows are outside its curvature."""
    said = job.solvers[name].warnings(facts)
    if facts.get("unusable_rows"):
        some = ", ".join(facts["unusable"]) + (", ..." if facts["unusable_rows"] > len(facts["unusable"]) else "")
        said = [
            *said,
            f"{facts['unusable_rows']:,} fit rows have logits or derivatives that are not finite, or overflow when "
            f"squared, and are outside the curvature: {some}",
        ]
    return said


def effect_weight(job: Job, name: str) -> float:
    """N of a method's effect = score / n: the weights of the fit rows that its curvature is of.

    Where the curvature has seen a sample of them, the others are outside where their stored logits are not finite.
    """
    assert job.fit is not None
    facts, rows = curvature_report(job)[name], job.fit.rows
    if facts.get("product_rows", facts["fit_rows"]) >= facts["fit_rows"]:
        return facts["fit_weight"]
    member = job.method_members[name][0]
    meta = job.store.factor_meta(job.factor(name, member))
    rows = job.fit.less(set() if meta is None else set(meta["unusable"]))
    stored = ~job.outputs(member).missing(rows.payload_keys)
    finite = np.ones(len(rows), dtype=bool)
    finite[stored] = np.isfinite(job.outputs(member).read(rows.payload_keys[stored])["logits"]).all(axis=1)
    return float(np.sort(rows.weights[finite]).sum())

"""What a run says of its curvature: spectrum, damping, fit rows inside and outside it, and what to be warned of."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from influence_cli.report.curvature import curvature_sentence
from influence_cli.stages.grads.further_report import law_facts
from influence_cli.stages.run import names
from influence_cli.stages.run.row_values import values_of
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session

NAMED = 5  # unused parameters that a note names
# condition numbers above which scores lose most of their digits
ILL_CONDITIONED = {"bf16": 1e6, "fp32": 1e6, "fp64": 1e12}


def curvature_report(run: Run, session: Session) -> dict[str, dict[str, Any]]:
    """By method: spectrum, damping, l2, gradient norm and fit rows at its first member, for provenance."""
    report: dict[str, dict[str, Any]] = {}
    for name, method in run.methods.items():
        if method.fitted_curvature:
            along = [names.along(run, name, m, next(iter(run.objectives))) for m in run.members_of[name]]
            known = [meta["curvature"] for u in along if (meta := session.store.directions.meta(u)) is not None]
            report[name] = run.solvers[name].together(known) if known else {}
        elif name in run.solvers:
            report[name] = session.store.value_facts(names.row_value(run, name, run.members_of[name][0])[0]) or {}
    return report


def note_curvature(run: Run, session: Session) -> None:
    """Say of every curvature what its spectrum was, and warn where it loses digits."""
    for name, facts in curvature_report(run, session).items():
        if not facts:
            continue
        session.listener.note(f"{name}: {curvature_sentence(facts, asdict(run.solvers[name]))}")
        for text in notes_of(run, name, facts):
            session.listener.note(f"{name}: {text}")
        for text in (*_warnings(run, session, name), *condition_warning(run, name, facts)):
            session.listener.warn(f"{name}: {text}")


def notes_of(run: Run, name: str, facts: dict[str, Any]) -> list[str]:
    """What a reader of a method's scores has to know, and which parameters are outside its curvature."""
    said = list(run.solvers[name].notes(facts))
    if facts.get("unused"):
        some = ", ".join(facts["unused"][:NAMED]) + (", ..." if len(facts["unused"]) > NAMED else "")
        said.append(
            f"{facts['unused_parameters']:,} selected parameters are unused: no logit depends on them, and they are "
            f"outside the curvature ({some})"
        )
    return said


def condition_warning(run: Run, name: str, facts: dict[str, Any]) -> list[str]:
    """Where a curvature loses most digits of the scores: what to do."""
    condition, bound = facts.get("condition_number"), ILL_CONDITIONED[run.spec.precision]
    if condition is None or not condition > bound:
        return []
    more = "--precision fp64, or " if run.spec.precision == "fp32" else ""
    return [
        f"the condition number {condition:.3g} is above {bound:g}, what {run.spec.precision} can resolve: pass "
        f"{more}--set {name}.damping=X"
    ]


def _warnings(run: Run, session: Session, name: str) -> list[str]:
    """What a method warns of in any of its directions, each text once."""
    said = dict[str, None]()
    if not run.methods[name].fitted_curvature:
        return warnings_of(run, name, curvature_report(run, session)[name])
    for member in run.members_of[name]:
        for objective in run.objectives:
            meta = session.store.directions.meta(names.along(run, name, member, objective))
            said |= dict.fromkeys(warnings_of(run, name, meta["curvature"]) if meta is not None else ())
    return list(said)


def warnings_of(run: Run, name: str, facts: dict[str, Any]) -> list[str]:
    """What a method warns of in one direction, and that fit rows are outside its curvature."""
    said = list(run.solvers[name].warnings(facts))
    if facts.get("unusable_rows"):
        some = ", ".join(facts["unusable"]) + (", ..." if facts["unusable_rows"] > len(facts["unusable"]) else "")
        said.append(
            f"{facts['unusable_rows']:,} fit rows have logits or derivatives that are not finite, or overflow when "
            f"squared, and are outside the curvature: {some}"
        )
    return said


def effect_weight(run: Run, session: Session, name: str) -> float:
    """N of a method's effect = score / n: the weights of the fit rows that its curvature is of.

    Where the curvature has seen a sample of them, the others are outside where their stored logits are not finite.
    """
    assert run.fit is not None
    if name in run.samplers:
        return law_facts(run, session, name)["fit_weight"]
    facts, rows = curvature_report(run, session)[name], run.fit.rows
    if facts.get("product_rows", facts["fit_rows"]) >= facts["fit_rows"]:
        return facts["fit_weight"]
    member = run.members_of[name][0]
    meta = session.store.factors.meta(names.factor(run, name, member))
    rows = run.fit.less(set() if meta is None else set(meta["unusable"]))
    stored = ~session.outputs(run, member).missing(rows.payload_keys)
    finite = np.ones(len(rows), dtype=bool)
    outputs = session.outputs(run, member)
    finite[stored] = outputs.of_rows(rows.payload_keys[stored], "logits", lambda z: np.isfinite(z).all(axis=1))
    return float(np.sort(rows.weights[finite]).sum())


def negative_values(run: Run, session: Session) -> dict[str, int]:
    """By method with a value by curvature: how many training rows have a negative one, at its first member."""
    keys, solved = run.train.row_keys, [name for name in run.values if name in run.solvers]
    return {n: int((values_of(run, session, n, run.members_of[n][0], keys) < 0).sum()) for n in solved}


def note_values(run: Run, session: Session) -> None:
    """Say how many values by curvature are negative; a positive definite P has none."""
    for name, count in negative_values(run, session).items():
        text = f"{name}: {count:,} of {len(run.train):,} values of self-influence are negative"
        if count:
            session.listener.warn(
                f"{text}: its curvature is not positive definite, or its series is far from the inverse"
            )
        else:
            session.listener.note(text)

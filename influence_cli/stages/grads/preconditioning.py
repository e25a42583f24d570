"""From q to u = P q for methods with curvature: fitting, storing and applying factors.

A factor is fitted once for (member, fit set, selected parameters, what the method fits) and shared by every objective,
every run and every method that fits the same; u is stored beside q.  A run that is killed while it fits has lost the
factor in hand and nothing else; of a computation by steps, such as a solve, those since its state was last written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.data.manifest import Rows
from influence_cli.errors import ManifestError
from influence_cli.methods.shapes.preconditioned import FactorAt
from influence_cli.stages.grads.divided_sums import DividedSums
from influence_cli.stages.grads.interim import KeptInterim
from influence_cli.stages.grads.member_model import MemberModel, Models
from influence_cli.stages.grads.same_run import helpers
from influence_cli.stages.run import names
from influence_cli.stages.run.curvature_plan import Along, fit_key, solve_key
from influence_cli.stages.run.rates import remember_rate
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature


def precondition(
    run: Run,
    session: Session,
    at: MemberModel,
    missing: tuple[Along, ...],
) -> None:
    """Fit the factors that are not stored, and compute and store every missing u whose q is."""
    from influence_cli.engines.point import differentiable_kernels

    assert run.fit is not None
    for name in dict.fromkeys(a.method for a in missing):
        method = run.solvers[name]
        stored = [(a, session.store.directions.read(a.q)) for a in missing if a.method == name]
        wanted = [(a, q) for a, q in stored if q is not None]  # a target too small to be halved has no half
        if not wanted:
            continue
        curvature = fitted_curvature(run, session, name, at)
        columns = np.stack([curvature.flat(q) for _, q in wanted]).T  # each lies in one piece
        interim, started = KeptInterim(run, session, *(a.u for a, _ in wanted)), time.perf_counter()
        with interim.kept(curvature), differentiable_kernels(at.exact.recurrent):  # once for all products
            preconditioned, facts = method.precondition(columns, curvature)
            about = about_curvature(run, facts, curvature)
            dtype = next(iter(wanted[0][1].values())).dtype
            for (a, _), column in zip(wanted, preconditioned.T, strict=True):
                meta = {
                    **(session.store.directions.meta(a.q) or {}),
                    "method": name,
                    "factor": names.factor(run, name, at.member),
                    "fit": run.fit.fingerprint,
                    "curvature": about,
                }
                tensors = {n: t.astype(dtype) for n, t in curvature.by_name(column).items()}
                session.store.directions.write(a.u, tensors, meta)
        costs = method.costs(len(run.fit.rows), curvature.size)
        if not interim.resumed and costs.solve_passes > 0:
            seconds = time.perf_counter() - started
            remember_rate(session, solve_key(run, session, name), costs.rows, seconds)


def fitted_curvature(run: Run, session: Session, name: str, at: MemberModel) -> Curvature:
    """The curvature at a member with what a method fits on it, from the store or fitted now.

    Fit rows whose logits or derivatives are not finite are outside it, as if they were not there; so are parameters
    that no logit depends on.  Other factors that the method's directions go through are its ``further``.
    """
    models = Models(run, session)
    own, *others = names.factors(run, name, at.member)
    curvature = _opened(run, session, own, at, models)
    curvature.factor = _factor(run, session, own, curvature)
    for other in others:
        known = _read_factor(run, session, other, curvature.size)
        if known is None:
            like = _opened(run, session, other, at, models, curvature)
            known = _factor(run, session, other, like)
        curvature.further.append(known)
    return curvature


def _opened(
    run: Run, session: Session, at: FactorAt, known: MemberModel, models: Models, like: Curvature | None = None
) -> Curvature:
    """What a factor is fitted on: the curvature at its first member, with those at the others beside it.

    It is ``like`` itself where that is the same.
    """
    from influence_cli.curvature.curvature import Curvature

    assert run.fit is not None
    own = known.member.name
    weights = [known.model if m.name == own else models.weights(m.checkpoint) for m in at.members]

    group = helpers(run, session)

    def of(rows: Rows, without: Sequence[str] = ()) -> list[Curvature]:
        made = [
            Curvature(
                model, require_model(run)[0], rows, run.spec.params, member.dropout, session.device,
                session.batch_size(run.model), session.runtime.workers, session.listener, without=without,
                loss=run.row_loss, head=known.head if member.name == own and member.walk is None else None,
            )
            for member, model in zip(at.members, weights, strict=True)
        ]  # fmt: skip
        for member, curvature in zip(at.members, made, strict=True):
            curvature.divided = None if group is None else DividedSums(group, run, session, member)
        return made

    meta = session.store.factors.meta(names.factor_of(run, at))
    curvatures = of(run.fit.rows)
    rows = _usable_fit_rows(run, session, at, curvatures) if meta is None else run.fit.less(set(meta["unusable"]))
    alone = len(at.members) == 1 and at.members[0].name == own
    if like is not None and alone and np.array_equal(rows.index, like.rows.index):
        return like
    if len(rows) < len(run.fit.rows):
        curvatures = of(rows)
    if unused := sorted({name for c in curvatures for name in c.unused()}):
        curvatures = of(rows, unused)
    curvatures[0].beside = curvatures[1:]
    return curvatures[0]


def _usable_fit_rows(run: Run, session: Session, at: FactorAt, curvatures: list[Curvature]) -> Rows:
    """The fit rows less those, of what a method sees of them, that are not finite in the precision of scores.

    What lies before the head of a model is run for that, and its inputs are there for the scores of these rows.

    Raises:
        ManifestError: none is left.
    """
    from influence_cli.curvature.minibatches import sample_by_keys

    assert run.fit is not None
    precision = "fp64" if run.spec.precision == "fp64" else "fp32"  # directions of bf16 runs are float32
    rows, checked = run.fit.rows, set[int]()
    while True:
        seen = sample_by_keys(rows, at.solver.costs(len(rows), curvatures[0].size).rows)
        new = seen.take(np.array([row not in checked for row in seen.index.tolist()], dtype=bool))
        if len(new) == 0:
            return rows
        checking = [c.over(new, precision) for c in curvatures]
        bad = np.unique(np.concatenate([c.unusable(others=True) for c in checking]))
        if len(checking) == 1 and not checked:
            found = checking[0].head_inputs()
            session.head_inputs = None if found is None else (names.before_head(at.members[0]), found)
        checked |= set(new.index.tolist())
        rows = rows.take(~np.isin(rows.index, bad))
        if len(rows) == 0:
            raise ManifestError(
                "curvature cannot be fitted: no fit row has finite logits and derivatives",
                where=run.fit.rows.manifest.source,
                fix="standardise the features, or give a checkpoint whose logits are finite",
            )


def about_curvature(run: Run, facts: dict[str, Any], curvature: Curvature) -> dict[str, Any]:
    """What a method says of its P, with the fit rows in it and outside it, and the number of parameters."""
    assert run.fit is not None
    rows = curvature.rows
    outside = run.fit.rows.take(~np.isin(run.fit.rows.index, rows.index))
    about = {"fit_rows": len(rows), "fit_weight": curvature.weight, "parameters": curvature.size}
    if len(outside):
        about |= {"unusable_rows": len(outside), "unusable": [outside.ids[k] for k in range(min(5, len(outside)))]}
    if curvature.outside:
        about |= {
            "unused_parameters": sum(s.numel() for s in curvature.outside.values()),
            "unused": [*curvature.outside],
        }
    return {**facts, **about}


def _read_factor(run: Run, session: Session, at: FactorAt, size: int) -> dict[str, Any] | None:
    """The stored arrays of a factor of so many parameters, or None."""
    factor = names.factor_of(run, at)
    meta = session.store.factors.meta(factor)
    of_these = meta is not None and meta["parameters"] == size  # earlier versions fitted unused ones too
    return session.store.read_factor(factor) if of_these else None


def _factor(run: Run, session: Session, at: FactorAt, curvature: Curvature) -> dict[str, Any]:
    """The arrays of a method's factor, from the store or fitted now."""
    stored = _read_factor(run, session, at, curvature.size)
    if stored is not None:
        return stored
    assert run.fit is not None
    method, factor = at.solver, names.factor_of(run, at)
    method.check_size(curvature.size)
    interim, started = KeptInterim(run, session, factor), time.perf_counter()
    with interim.kept(curvature):
        fitted = method.fit(curvature)
        about = {
            "facts": fitted.facts,
            "fitted": method.fitted(),
            "spec": names.factor_spec(run, at),
            "fit": run.fit.fingerprint,
            "rows": len(curvature.rows),
            "weight": curvature.weight,
            "unusable": run.fit.outside(curvature.rows),
            "parameters": curvature.size,
        }
        session.store.write_factor(factor, fitted.arrays, run.fit.keys, about)
    if not interim.resumed:
        rows = method.costs(len(curvature.rows), curvature.size).rows * len(at.members)
        remember_rate(session, fit_key(run, session, at), rows, time.perf_counter() - started)
    return fitted.arrays

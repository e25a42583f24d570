"""From q to u = P q for methods with curvature: what of it is missing, and fitting, storing and applying factors.

A factor is fitted once for (member, fit set, selected parameters, what the method fits) and shared by every objective,
every run and every method that fits the same; u is stored beside q.  A run that is killed while it fits has lost the
factor in hand and nothing else; of a computation by steps, such as a solve, those since its state was last written.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.data.manifest import Rows
from influence_cli.errors import ManifestError
from influence_cli.methods.shapes.preconditioned import Preconditioned
from influence_cli.stages.grads.interim import KeptInterim
from influence_cli.stages.run.job import Job, Member, require_model
from influence_cli.stages.run.row_values import lacking, timing_of_values
from influence_cli.store import Keys, fingerprint

if TYPE_CHECKING:
    import torch
    from torch import nn

    from influence_cli.curvature.curvature import Curvature


@dataclass(frozen=True)
class Along:
    """One preconditioned direction to compute: u = P q, for a method, an objective and maybe half of the target."""

    method: str
    objective: str
    half: bool
    q: str
    u: str


@dataclass(frozen=True)
class Fit:
    """One factor to fit, and why."""

    method: str
    factor: str
    rows: int
    passes: int
    bytes: int
    seconds: float | None
    why: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the plan."""
        return asdict(self)


@dataclass(frozen=True)
class Solve:
    """Directions to precondition by more passes over the fit rows."""

    method: str
    directions: int
    rows: int
    passes: float
    seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the plan."""
        return asdict(self)


def missing_directions(job: Job, member: Member, halves: dict[str, Keys]) -> tuple[Along, ...]:
    """Every u at a member that is not stored; of the half directions those whose tangents are lacking."""
    missing: list[Along] = []
    for name in job.methods_at(member):
        for objective in job.objectives if isinstance(job.methods[name], Preconditioned) else ():
            for half in (False, True):
                u = job.along(name, member, objective, half)
                wanted = not half or len(halves.get(u, ())) > 0
                if wanted and job.store.direction_meta(u) is None:
                    missing.append(Along(name, objective, half, job.direction(member, objective, half), u))
    return tuple(missing)


def missing_fits(job: Job, member: Member, methods: list[str]) -> tuple[Fit, ...]:
    """The factors that methods which lack directions or values need and the store lacks, each once.

    Raises:
        UsageError: a method cannot fit so many parameters.
    """
    fits: dict[str, Fit] = {}
    for name in (name for name in dict.fromkeys(methods) if name in job.solvers):
        method, factor = job.solvers[name], job.factor(name, member)
        if factor in fits or job.store.factor_meta(factor) is not None:
            continue
        assert job.fit is not None
        parameters = parameter_count(job)
        method.check_size(parameters)
        costs = method.costs(len(job.fit.rows), parameters)
        size, seconds = costs.factor_bytes + 24 * len(job.fit.rows), _seconds(job, _timing_key(job, name), costs.rows)
        fits[factor] = Fit(name, factor, costs.rows, costs.fit_passes, size, seconds, _why(job, name, member))
    return tuple(fits.values())


def missing_solves(job: Job, missing: tuple[Along, ...], values: dict[str, Keys]) -> tuple[Solve, ...]:
    """What preconditioning those directions costs beyond fitting, by method; all of a method's share the passes.

    A value that is solved for row by row has a direction for every row that lacks it, and passes for each.
    """
    solves: list[Solve] = []
    for name in dict.fromkeys(a.method for a in missing):
        assert job.fit is not None
        costs = job.solvers[name].costs(len(job.fit.rows), parameter_count(job))
        if costs.solve_passes > 0:
            count = sum(a.method == name for a in missing)
            seconds = _seconds(job, _timing_key(job, name, solve=True), costs.rows)
            solves.append(Solve(name, count, costs.rows, costs.solve_passes, seconds))
    for name in (name for name in lacking(values) if name in job.solvers):
        assert job.fit is not None
        costs, count = job.solvers[name].costs(len(job.fit.rows), parameter_count(job)), len(values[name])
        if costs.form_passes > 0:
            seconds = _seconds(job, timing_of_values(job), count)
            solves.append(Solve(name, count, costs.rows, round(count * costs.form_passes, 1), seconds))
    return tuple(solves)


def _seconds(job: Job, what: str, rows: int) -> float | None:
    rate = job.store.timing(what)
    return None if rate is None else round(rate * rows, 1)


def _why(job: Job, method: str, member: Member) -> str:
    """Against the nearest stored factor that differs in its fit set alone."""
    assert job.fit is not None
    spec = job.factor_spec(method, member)
    others = [job.store.fit_keys(name) for name, meta in job.store.factors().items() if meta.get("spec") == spec]
    differences = [job.fit.differs_from(keys) for keys in others if keys is not None]
    if not differences:
        return "no factor of this model with these settings is stored"
    new, gone = min(differences, key=sum)
    return (
        f"its fit set has changed: {new:,} rows are not those of the stored factor, {gone:,} of its rows are gone "
        "(--fit-rows MANIFEST pins the fit set)"
    )


def parameter_count(job: Job, params: str | None = None) -> int:
    """Number of parameters that are selected (by the run); remembered, since counting them needs the model built."""
    (spec, _), params = require_model(job), params or job.spec.params
    note = fingerprint("parameters", 2, model=spec.as_dict(), params=params)
    known = job.store.read_model_note(note)
    if known is None or "parameters" not in known:
        from influence_cli.model.build import build_model
        from influence_cli.model.parameters import select_parameters

        known = {"parameters": sum(p.numel() for p in select_parameters(build_model(spec), params).values())}
        job.store.write_model_note(note, known)
    return int(known["parameters"])


def _timing_key(job: Job, method: str, solve: bool = False) -> str:
    spec, _ = require_model(job)
    named = job.solvers[method].describe() if solve else job.solvers[method].fitted()
    kind = f"solve {method}" if solve else "fit"
    return f"{kind} {spec.name} {'x'.join(map(str, spec.shape))} {job.spec.params} {named}"


def precondition(
    job: Job, member: Member, missing: tuple[Along, ...], model: nn.Module, device: torch.device, batch_size: int
) -> None:
    """Fit the factors that are not stored, and compute and store every missing u whose q is."""
    assert job.fit is not None
    for name in dict.fromkeys(a.method for a in missing):
        method = job.solvers[name]
        stored = [(a, job.store.read_direction(a.q)) for a in missing if a.method == name]
        wanted = [(a, q) for a, q in stored if q is not None]  # a target too small to be halved has no half
        if not wanted:
            continue
        curvature = fitted_curvature(job, name, member, model, device, batch_size)
        columns = np.stack([curvature.flat(q) for _, q in wanted]).T  # each lies in one piece
        interim, started = KeptInterim(job, *(a.u for a, _ in wanted)), time.perf_counter()
        with interim.kept(curvature):
            preconditioned, facts = method.precondition(columns, curvature)
            about = about_curvature(job, facts, curvature)
            dtype = next(iter(wanted[0][1].values())).dtype
            for (a, _), column in zip(wanted, preconditioned.T, strict=True):
                meta = {
                    **(job.store.direction_meta(a.q) or {}),
                    "method": name,
                    "factor": job.factor(name, member),
                    "fit": job.fit.fingerprint,
                    "curvature": about,
                }
                tensors = {n: t.astype(dtype) for n, t in curvature.by_name(column).items()}
                job.store.write_direction(a.u, tensors, meta)
        costs = method.costs(len(job.fit.rows), curvature.size)
        if not interim.resumed and costs.solve_passes > 0:
            job.store.write_timing(_timing_key(job, name, solve=True), (time.perf_counter() - started) / costs.rows)


def fitted_curvature(
    job: Job, name: str, member: Member, model: nn.Module, device: torch.device, batch_size: int
) -> Curvature:
    """The curvature at a member with what a method fits on it, from the store or fitted now.

    Fit rows whose logits or derivatives are not finite are outside it, as if they were not there.
    """
    from influence_cli.curvature.curvature import Curvature

    assert job.fit is not None

    def of(rows: Rows) -> Curvature:
        return Curvature(
            model, require_model(job)[0], rows, job.spec.params, member.dropout, device, batch_size,
            job.runtime.workers, job.listener,
        )  # fmt: skip

    meta = job.store.factor_meta(job.factor(name, member))
    if meta is None:
        curvature = of(job.fit.rows)
        rows = _usable_fit_rows(job, name, curvature)
    else:
        curvature, rows = of(job.fit.rows), job.fit.less(set(meta["unusable"]))
    if len(rows) < len(job.fit.rows):
        curvature = of(rows)
    curvature.factor = _factor(job, name, job.solvers[name], member, curvature)
    return curvature


def _usable_fit_rows(job: Job, name: str, curvature: Curvature) -> Rows:
    """The fit rows less those, of what a method sees of them, that are not finite in the precision of scores.

    Raises:
        ManifestError: none is left.
    """
    from influence_cli.curvature.minibatches import sample_by_keys

    assert job.fit is not None
    precision = "fp64" if job.spec.precision == "fp64" else "fp32"  # directions of bf16 runs are float32
    rows, checked = job.fit.rows, set[int]()
    while True:
        seen = sample_by_keys(rows, job.solvers[name].costs(len(rows), curvature.size).rows)
        new = seen.take(np.array([row not in checked for row in seen.index.tolist()], dtype=bool))
        if len(new) == 0:
            return rows
        bad = curvature.over(new, precision).unusable()
        checked |= set(new.index.tolist())
        rows = rows.take(~np.isin(rows.index, bad))
        if len(rows) == 0:
            raise ManifestError(
                "curvature cannot be fitted: no fit row has finite logits and derivatives",
                where=job.fit.rows.manifest.source,
                fix="standardise the features, or give a checkpoint whose logits are finite",
            )


def about_curvature(job: Job, facts: dict[str, Any], curvature: Curvature) -> dict[str, Any]:
    """What a method says of its P, with the fit rows in it and outside it, and the number of parameters."""
    assert job.fit is not None
    rows = curvature.rows
    outside = job.fit.rows.take(~np.isin(job.fit.rows.index, rows.index))
    about = {"fit_rows": len(rows), "fit_weight": curvature.weight, "parameters": curvature.size}
    if len(outside):
        about |= {"unusable_rows": len(outside), "unusable": [outside.ids[k] for k in range(min(5, len(outside)))]}
    return {**facts, **about}


def _factor(job: Job, name: str, method: Preconditioned, member: Member, curvature: Curvature) -> dict[str, Any]:
    """The arrays of a method's factor, from the store or fitted now."""
    factor = job.factor(name, member)
    stored = job.store.read_factor(factor)
    if stored is not None:
        return stored
    assert job.fit is not None
    method.check_size(curvature.size)
    interim, started = KeptInterim(job, factor), time.perf_counter()
    with interim.kept(curvature):
        fitted = method.fit(curvature)
        about = {
            "facts": fitted.facts,
            "fitted": method.fitted(),
            "spec": job.factor_spec(name, member),
            "fit": job.fit.fingerprint,
            "rows": len(curvature.rows),
            "weight": curvature.weight,
            "unusable": job.fit.outside(curvature.rows),
            "parameters": curvature.size,
        }
        job.store.write_factor(factor, fitted.arrays, job.fit.keys, about)
    if not interim.resumed:
        rows = method.costs(len(curvature.rows), curvature.size).rows
        job.store.write_timing(_timing_key(job, name), (time.perf_counter() - started) / rows)
    return fitted.arrays

"""What preconditioning lacks: directions u = P q, the factors that they need, and what both cost.

Nothing here imports torch: a run whose every direction is stored never does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from influence_cli.errors import UsageError
from influence_cli.methods.shapes.preconditioned import FactorAt, Preconditioned
from influence_cli.stages.run import names
from influence_cli.stages.run.rates import pass_key, timing_key
from influence_cli.stages.run.run import Member, Run, require_model
from influence_cli.stages.run.session import Session
from influence_cli.store import Keys, fingerprint

SELECTIONS = ("all", "linear", "last")  # of parameters that every model has


@dataclass(frozen=True)
class Along:
    """One preconditioned direction to compute: u = P q, for a method, an objective and maybe half of the target."""

    method: str
    objective: str
    half: bool
    q: str
    u: str
    query: Member  # at which q is taken


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
    solver: Preconditioned

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the plan."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "solver"}


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


def missing_directions(run: Run, session: Session, member: Member, halves: dict[str, Keys]) -> tuple[Along, ...]:
    """Every u at a member that is not stored; of the half directions those whose tangents are lacking."""
    missing: list[Along] = []
    for name in run.methods_at(member):
        for objective in run.objectives if run.methods[name].fitted_curvature else ():
            for half in (False, True):
                u = names.along(run, name, member, objective, half)
                wanted = not half or len(halves.get(u, ())) > 0
                if wanted and session.store.directions.meta(u) is None:
                    at = names.query(run, name, member)
                    missing.append(Along(name, objective, half, names.direction(run, at, objective, half), u, at))
    return tuple(missing)


def missing_fits(run: Run, session: Session, member: Member, methods: list[str]) -> tuple[Fit, ...]:
    """The factors that methods which lack directions or values need and the store lacks, each once.

    Raises:
        UsageError: a method cannot fit so many parameters.
    """
    fits: dict[str, Fit] = {}
    for name in (name for name in dict.fromkeys(methods) if name in run.solvers):
        for at in names.factors(run, name, member):
            factor = names.factor_of(run, at)
            if factor not in fits and session.store.factors.meta(factor) is None:
                fits[factor] = _missing_fit(run, session, name, at, factor)
    return tuple(fits.values())


def _missing_fit(run: Run, session: Session, name: str, at: FactorAt, factor: str) -> Fit:
    assert run.fit is not None
    parameters = parameter_count(run, session)
    at.solver.check_size(parameters)
    costs, passes = at.solver.costs(len(run.fit.rows), parameters), len(at.members)
    size, why = costs.factor_bytes + 24 * len(run.fit.rows), _why(run, session, at)
    seconds = _seconds(session, fit_key(run, session, at), costs.rows * passes)
    called = f"{at.of} (of {name})" if at.of else name
    return Fit(called, factor, costs.rows, costs.fit_passes * passes, size, seconds, why, at.solver)


def missing_solves(
    run: Run, session: Session, missing: tuple[Along, ...], values: dict[str, Keys]
) -> tuple[Solve, ...]:
    """What preconditioning those directions costs beyond fitting, by method; all of a method's share the passes.

    A value that is solved for row by row has a direction for every row that lacks it, and passes for each.
    """
    solves: list[Solve] = []
    for name in dict.fromkeys(a.method for a in missing):
        assert run.fit is not None
        costs = run.solvers[name].costs(len(run.fit.rows), parameter_count(run, session))
        if costs.solve_passes > 0:
            count = sum(a.method == name for a in missing)
            seconds = _seconds(session, solve_key(run, session, name), costs.rows)
            solves.append(Solve(name, count, costs.rows, costs.solve_passes, seconds))
    for name in (name for name, keys in values.items() if len(keys) and name in run.solvers):
        assert run.fit is not None
        costs, count = run.solvers[name].costs(len(run.fit.rows), parameter_count(run, session)), len(values[name])
        if costs.form_passes > 0:
            seconds = _seconds(session, pass_key(run, session, "values"), count)
            solves.append(Solve(name, count, costs.rows, round(count * costs.form_passes, 1), seconds))
    return tuple(solves)


def _seconds(session: Session, what: str, rows: int) -> float | None:
    rate = session.store.timing(what)
    return None if rate is None else round(rate * rows, 1)


def _why(run: Run, session: Session, at: FactorAt) -> str:
    """Against the nearest stored factor that differs in its fit set alone."""
    assert run.fit is not None
    spec = names.factor_spec(run, at)
    others = [
        session.store.fit_keys(name) for name, meta in session.store.factors.known().items() if meta.get("spec") == spec
    ]
    differences = [run.fit.differs_from(keys) for keys in others if keys is not None]
    if not differences:
        return "no factor of this model with these settings is stored"
    new, gone = min(differences, key=sum)
    return (
        f"its fit set has changed: {new:,} rows are not those of the stored factor, {gone:,} of its rows are gone "
        "(--fit-rows MANIFEST pins the fit set)"
    )


def refuse_no_parameters(run: Run, session: Session) -> None:
    """Refuse (UsageError) names of parameters that the model has not, also where nothing takes a gradient in them."""
    if run.spec.params in SELECTIONS:
        return
    if run.model is None:
        what = f"--params {run.spec.params!r} has no effect: features alone are looked at, and no model is scored"
        raise UsageError(what, fix="leave it out, or pass --checkpoint RUN")
    parameter_count(run, session)


def parameter_count(run: Run, session: Session, params: str | None = None) -> int:
    """Number of parameters that are selected (by the run); remembered, since counting them needs the model built.

    A model that is built for it is kept, for the weights of the checkpoint.
    """
    (spec, _), params = require_model(run), params or run.spec.params
    note = fingerprint("parameters", 2, model=spec.as_dict(), params=params)
    known = session.store.read_model_note(note)
    if known is None or "parameters" not in known:
        from influence_cli.model.build import build_model
        from influence_cli.model.parameters import select_parameters

        model = build_model(spec, values=False)
        session.built = spec, model
        known = {"parameters": sum(p.numel() for p in select_parameters(model, params).values())}
        session.store.write_model_note(note, known)
    return int(known["parameters"])


def fit_key(run: Run, session: Session, at: FactorAt) -> str:
    """Under what name the seconds per fit row of a fit at one member are kept."""
    return timing_key(run, session, f"fit {run.spec.params} {at.solver.fitted()}")


def solve_key(run: Run, session: Session, method: str) -> str:
    """The same of a method's solves."""
    return timing_key(run, session, f"solve {method} {run.spec.params} {run.solvers[method].describe()}")

"""Seconds per row as they were last measured, by kind of pass, and what they are called in the store."""

from __future__ import annotations

from influence_cli.stages.run.quantities import QUANTITIES
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session

Rates = dict[str, float]  # seconds per row, by kind of pass


def timing_key(run: Run, session: Session, kind: str) -> str:
    """Under what name a kind of work's measured seconds per row are kept."""
    model, _ = require_model(run)
    shape = "x".join(str(s) for s in model.shape)
    return f"{model.name} {shape} {kind} {run.spec.precision} {session.runtime.device}"


def pass_key(run: Run, session: Session, kind: str) -> str:
    """The same of a pass over rows: outputs, tangents (with them), target, values, or another quantity's name."""
    if kind == "outputs":
        return timing_key(run, session, kind)
    if kind == "values":
        solvers = {f"{run.values[n].solver} {p.describe()}" for n, p in run.solvers.items() if n in run.values}
        return timing_key(run, session, " ".join(["values", *sorted(solvers), run.spec.params]))
    return timing_key(run, session, run.spec.params if kind == "tangents" else f"{kind} {run.spec.params}")


def known_rates(run: Run, session: Session) -> Rates:
    """What earlier runs measured."""
    if run.model is None:
        return {}
    own = [quantity.name for quantity in QUANTITIES.values() if quantity.computed_in == "own"]
    found = {
        kind: session.store.timing(pass_key(run, session, kind))
        for kind in ("outputs", "tangents", "target", "values", *own)
    }
    return {kind: rate for kind, rate in found.items() if rate is not None}

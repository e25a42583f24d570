"""The names of everything that the store holds for a run: pure functions from a run to fingerprints."""

from __future__ import annotations

from typing import Any

from influence_cli.methods.shapes.preconditioned import FactorAt
from influence_cli.model.walk import Walk
from influence_cli.stages.run.objective_inputs import attack_name, described
from influence_cli.stages.run.run import Member, Run
from influence_cli.store import fingerprint


def direction(run: Run, member: Member, objective: str, half: bool = False) -> str:
    """Name of q at a member; with ``half`` the mean over the even buckets of target rows alone."""
    given = run.groups.get(objective), attack(run, objective), run.changed.get(objective)
    about = described(objective, run.objectives[objective], *given)
    # revision 1 could be of train rows, where these and the target rows were of one type in memory
    return fingerprint(
        "direction",
        2,
        member=member.name,
        objective=about,
        target=run.target.fingerprint(),
        params=run.spec.params,
        loss=run.loss_name,
        half=half,
    )


def attack(run: Run, objective: str) -> str | None:
    """Name of the attacked target rows that an objective is measured on; None where they are as they are."""
    weights = "" if run.checkpoint is None else run.checkpoint.digest
    return attack_name(run.objectives[objective], run.spec, run.model, weights, run.loss_name)


def query(run: Run, method: str, member: Member) -> Member:
    """The member at which q is taken of a method's direction at a member."""
    if not run.methods[method].fitted_curvature:
        return member
    return run.solvers[method].query_at(member, run.members_of[method])


def along(run: Run, method: str, member: Member, objective: str, half: bool = False) -> str:
    """Name of the direction that a method's tangents run along: q itself, or u = P q where P is fitted."""
    q, p = direction(run, query(run, method, member), objective, half), run.methods[method]
    if not p.fitted_curvature:
        return q
    named: dict[str, Any] = {"name": method, **run.solvers[method].describe()}
    if query(run, method, member) != member:  # the same u, along which other weights have other tangents
        named["at"] = member.name
    return fingerprint("preconditioned", 1, direction=q, method=named, **factor_names(run, method, member))


def factors(run: Run, method: str, member: Member) -> tuple[FactorAt, ...]:
    """What a method's directions at a member go through; its own factor is the first."""
    return run.solvers[method].factors_at(member, run.members_of[method])


def factor_names(run: Run, method: str, member: Member) -> dict[str, Any]:
    """What stands for all of these in the name of what is made with them."""
    own, *further = (factor_of(run, at) for at in factors(run, method, member))
    return {"factor": own, **({"further": further} if further else {})}


def factor(run: Run, method: str, member: Member) -> str:
    """Name of what a method fits at a member on the run's fit set."""
    return factor_of(run, factors(run, method, member)[0])


def factor_of(run: Run, at: FactorAt) -> str:
    """Name of what is fitted on the run's fit set at a member, or at several together."""
    assert run.fit is not None
    return fingerprint("factor", 2, spec=factor_spec(run, at), fit=run.fit.fingerprint)


def factor_spec(run: Run, at: FactorAt) -> str:
    """Name of all of that but the fit set."""
    first, *others = (member.name for member in at.members)
    about: dict[str, Any] = {"member": first, "params": run.spec.params, "loss": run.loss_name}
    about |= {"beside": others} if others else {}
    return fingerprint("factor-spec", 1, fitted=at.solver.fitted(), **about)


def before_head(member: Member) -> str:
    """What stands for the model before the layers that are selected: members that training goes on to share it."""
    return member.name if member.walk is None else member.checkpoint.digest


def outputs(member: Member) -> str:
    """Name of a member's logits."""
    # revision 1, the member's own name, could hold outputs of target rows under the keys of train rows
    return fingerprint("outputs", 2, member=member.name)


def row_value(run: Run, method: str, member: Member) -> tuple[str, dict[str, Any]]:
    """Name of the value of rows that a method needs at a member, and what is in the name.

    A value that is taken with fitted curvature is named by the factor too, and so by the fit set; methods that need
    the same value share it.
    """
    value = run.values[method]
    about: dict[str, Any] = {"params": run.spec.params, "loss": run.loss_name, "value": value.about}
    if value.solver is not None:
        about["value"] = {**value.about, **run.solvers[method].describe()}
        about |= factor_names(run, method, member)
    # revision 1 could hold values of target rows' inputs under the keys of train rows
    return fingerprint("row-values", 2, member=member.name, **about), about


def walked(run: Run, weights: str, walk: Walk) -> str:
    """Name of the weights that further training on the run's fit set leads to, from a checkpoint's digest."""
    assert run.fit is not None
    assert run.model is not None
    precision = "fp64" if run.spec.precision == "fp64" else "fp32"
    about = {"model": run.model.as_dict(), "loss": run.loss_name, "precision": precision}
    return fingerprint("weights", 1, weights=weights, walk=walk.describe(), fit=run.fit.fingerprint, **about)


def phi(run: Run, member: Member, objective: str) -> str:
    """Name of an objective's value at a member, where no gradient of it is taken."""
    return fingerprint("phi", 1, direction=direction(run, member, objective))


def law(run: Run, method: str, member: Member) -> str:
    """Name of what a method draws from around a member, and by which steps."""
    assert run.fit is not None
    about = {"member": member.name, "params": run.spec.params, "loss": run.loss_name, "fit": run.fit.fingerprint}
    return fingerprint("law", 1, sampling=run.samplers[method].sampling(run.spec.seed), **about)


def chain(run: Run, method: str, member: Member, number: int, objective: str) -> str:
    """Name of one of a method's chains, with the objective whose value is taken at its draws."""
    about = {"chain": number, "direction": direction(run, member, objective)}
    return fingerprint("chain", 1, law=law(run, method, member), **about)

"""The names of everything that the store holds for a run: pure functions from a run to fingerprints."""

from __future__ import annotations

from typing import Any

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


def along(run: Run, method: str, member: Member, objective: str, half: bool = False) -> str:
    """Name of the direction that a method's tangents run along: q itself, or u = P q where P is fitted."""
    q, p = direction(run, member, objective, half), run.methods[method]
    if not p.fitted_curvature:
        return q
    named = {"name": method, **run.solvers[method].describe()}
    return fingerprint("preconditioned", 1, direction=q, method=named, factor=factor(run, method, member))


def factor(run: Run, method: str, member: Member) -> str:
    """Name of what a method fits at a member on the run's fit set."""
    assert run.fit is not None
    return fingerprint("factor", 2, spec=factor_spec(run, method, member), fit=run.fit.fingerprint)


def factor_spec(run: Run, method: str, member: Member) -> str:
    """Name of all of that but the fit set."""
    about = {"member": member.name, "params": run.spec.params, "loss": run.loss_name}
    return fingerprint("factor-spec", 1, fitted=run.solvers[method].fitted(), **about)


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
        about["factor"] = factor(run, method, member)
    # revision 1 could hold values of target rows' inputs under the keys of train rows
    return fingerprint("row-values", 2, member=member.name, **about), about

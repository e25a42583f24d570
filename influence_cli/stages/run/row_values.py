"""Values of rows' own gradients in a run: which of its methods need one, what it is called, and which rows lack it.

A value is stored by row key, since the label is part of the gradient; one that is taken with fitted curvature is named
by the factor too, and so by the fit set.  Methods that need the same value share it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.methods import METHODS
from influence_cli.methods.protocol import Linear, Method, RowMethod, RowValue
from influence_cli.methods.shapes.preconditioned import Preconditioned
from influence_cli.settings import GradSpec, build_options
from influence_cli.store import Keys, fingerprint
from influence_cli.store.shards import unique

if TYPE_CHECKING:
    from influence_cli.stages.run.job import Job, Member

ROW_VALUE_BYTES = 16 + 16 + 8  # row key, payload key and value


def needed_values(methods: dict[str, Method], relative: bool) -> dict[str, RowValue]:
    """The value of rows that each method of a run needs, if any; with ``relative`` every linear method does.

    Raises:
        UsageError: a linear method cannot be relative, or none of the methods is linear.
    """
    linear = {name: method for name, method in methods.items() if isinstance(method, Linear)}
    if relative and not linear:
        raise UsageError(
            f"--relative divides scores of signed methods, and {', '.join(methods)} gives none", fix="use --method ip"
        )
    found: dict[str, RowValue | None] = {n: m.row_value() for n, m in methods.items() if isinstance(m, RowMethod)}
    for name, method in linear.items():
        try:
            found[name] = method.row_value(relative)
        except UsageError as error:
            raise UsageError(f"{name}: {error.what}", fix=error.fix) from error
    return {name: value for name in methods if (value := found.get(name)) is not None}


def solver_of(name: str, method: Method, value: RowValue | None, spec: GradSpec) -> Preconditioned | None:
    """The method with curvature that a method of the run is, or that its value of rows is taken with."""
    if isinstance(method, Preconditioned):
        return method
    if value is None or value.solver is None:
        return None
    given = {**spec.options.get(value.solver, {}), **value.options}
    solver = build_options(METHODS[value.solver].load(), value.solver, given)
    assert isinstance(solver, Preconditioned), name
    return solver


def value_name(job: Job, name: str, member: Member) -> tuple[str, dict[str, Any]]:
    """The name of the value that a method needs at a member, and what is in it."""
    value = job.values[name]
    about: dict[str, Any] = {"params": job.spec.params, "loss": job.loss_name, "value": value.about}
    if value.solver is not None:
        about["value"] = {**value.about, **job.solvers[name].describe()}
        about["factor"] = job.factor(name, member)
    # revision 1 could hold values of target rows' inputs under the keys of train rows
    return fingerprint("row-values", 2, member=member.name, **about), about


def values_at(job: Job, member: Member) -> list[str]:
    """Methods that need a value of rows at a member, in order."""
    return [name for name in job.values if member in job.method_members[name]]


def values_of(job: Job, name: str, member: Member, row_keys: Keys) -> NDArray[np.float64]:
    """Stored values [n] that a method needs of rows."""
    return job.row_values(name, member).read(row_keys)["value"]


def missing_values(job: Job, member: Member) -> dict[str, Keys]:
    """For every value that a method needs: the row keys that lack it; under the first of the methods that share it.

    Raises:
        UsageError: they are more than a method can compute it of.
    """
    keys = job.train.row_keys
    distinct = keys[unique(keys)] if job.values else keys
    missing: dict[str, Keys] = {}
    seen: set[str] = set()
    for name in values_at(job, member):
        called = value_name(job, name, member)[0]
        if called not in seen:
            seen.add(called)
            missing[name] = distinct[job.row_values(name, member).missing(distinct)]
            if job.values[name].solver and not len(missing[name]) and job.store.value_facts(called) is None:
                missing[name] = distinct[:1]  # what was noted of the curvature is lost: it is found with a row again
            method = job.methods[name]
            if isinstance(method, RowMethod):
                method.check_rows(len(missing[name]))
    return missing


def timing_of_values(job: Job) -> str:
    """What the pass for values is called where its measured seconds per row are kept."""
    assert job.model is not None
    solvers = sorted({f"{job.values[n].solver} {p.describe()}" for n, p in job.solvers.items() if n in job.values})
    shape = "x".join(str(s) for s in job.model.shape)
    kind = " ".join(["values", *solvers, job.spec.params])
    return f"{job.model.name} {shape} {kind} {job.spec.precision} {job.runtime.device}"


def lacking(values: dict[str, Keys]) -> list[str]:
    """The methods whose value some rows lack."""
    return [name for name, keys in values.items() if len(keys)]

"""Values of rows' own gradients in a run: which of its methods need one, what it is called, and which rows lack it.

A value is stored by row key, since the label is part of the gradient; one that is taken with fitted curvature is named
by the factor too, and so by the fit set.  Methods that need the same value share it.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.methods import METHODS
from influence_cli.methods.protocol import Method, RowValue
from influence_cli.methods.shapes.preconditioned import Preconditioned
from influence_cli.settings import GradSpec, build_options
from influence_cli.stages.run import names
from influence_cli.stages.run.run import Member, Run
from influence_cli.stages.run.session import Session
from influence_cli.store import Keys

ROW_VALUE_BYTES = 16 + 16 + 8  # row key, payload key and value


def needed_values(methods: dict[str, Method], relative: bool) -> dict[str, RowValue]:
    """The value of rows that each method of a run needs, if any; with ``relative`` every linear method does.

    Raises:
        UsageError: a linear method cannot be relative, or none of the methods is linear.
    """
    linear = [name for name, method in methods.items() if method.needs == "tangents"]
    if relative and not linear:
        raise UsageError(
            "--relative divides scores of signed methods that are inner products with a row's gradient by its size, "
            f"and {', '.join(methods)} gives none",
            fix="use --method ip",
        )
    found: dict[str, RowValue] = {}
    for name, method in methods.items():
        try:
            value = method.row_value(relative and name in linear)
        except UsageError as error:
            raise UsageError(f"{name}: {error.what}", fix=error.fix) from error
        if value is not None:
            found[name] = value
    return found


def solver_of(method: Method, value: RowValue | None, spec: GradSpec) -> Preconditioned | None:
    """The method with curvature that a method of the run is, or that its value of rows is taken with."""
    if method.fitted_curvature:
        return cast("Preconditioned", method)
    if value is None or value.solver is None:
        return None
    given = {**spec.options.get(value.solver, {}), **value.options}
    return build_options(METHODS[value.solver].load(), value.solver, given)


def with_helper(method: Preconditioned, spec: GradSpec) -> Preconditioned:
    """The method with the other one whose factor it works with, where there is one."""
    name = method.helper()
    if name is None:
        return method
    return method.helped_by(build_options(METHODS[name].load(), name, spec.options.get(name, {})))


def values_at(run: Run, member: Member) -> list[str]:
    """Methods that need a value of rows at a member, in order."""
    return [name for name in run.values if member in run.members_of[name]]


def values_of(run: Run, session: Session, method: str, member: Member, row_keys: Keys) -> NDArray[np.float64]:
    """Stored values [n] that a method needs of rows."""
    return session.row_values(run, method, member).read(row_keys)["value"]


def lacking_values(run: Run, session: Session, method: str, member: Member) -> Keys:
    """The row keys that lack the value that a method needs.

    Raises:
        UsageError: they are more than the method can compute it of.
    """
    keys = run.row_keys
    missing = keys[session.row_values(run, method, member).missing(keys)]
    named = names.row_value(run, method, member)[0]
    if run.values[method].solver and not len(missing) and session.store.value_facts(named) is None:
        missing = keys[:1]  # what was noted of the curvature is lost: it is found with a row again
    run.methods[method].check_rows(len(missing))
    return missing

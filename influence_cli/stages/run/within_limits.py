"""A run whose plan fits into limits on its time and on what it stores, and what was given up for that.

Three things are given up, in this order, each where it makes the plan cheaper: precision (fp64, fp32, bf16),
parameters (the last layer's alone), and rows.  What is asked for by a flag stays.  Rows are taken in the order of their
keys; those that are stored cost nothing, so that the same command goes further every time.  Rows that are left for
later are in the table without a score.  The limits are about the plan: a run does not stop where it takes
longer than was planned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.split_column import LATER
from influence_cli.errors import InfluenceError, UsageError
from influence_cli.options import kept_values
from influence_cli.settings import GradSpec, Limits
from influence_cli.stages.run.open import check_methods, open_run
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.stages.run.usable_rows import usable_train_rows
from influence_cli.stages.run.whole_plan import Tried, whole_plan
from influence_cli.store.keys import key_order

GIB = 1 << 30
STEPS = 64  # rows are taken in so many parts
LESS = {"fp64": "fp32", "fp32": "bf16"}
CALLED = {"precision": "--precision", "params": "--params"}


@dataclass(frozen=True)
class _Choice:
    """A run that may be carried out, its plan, and what of the settings is another than was asked for."""

    run: Run
    session: Session
    plan: dict[str, Any]
    tried: Tried
    changed: tuple[str, ...] = ()

    def over(self, limits: Limits) -> float:
        """How many times over the limits the plan is: at most 1 where it fits."""
        return max(_times(self.minutes, limits.max_minutes), _times(self.gib, limits.max_disk))

    @property
    def minutes(self) -> float | None:
        """Minutes that are planned; None where they are not known."""
        return None if self.plan["seconds"] is None else self.plan["seconds"] / 60

    @property
    def gib(self) -> float:
        """GiB that are planned to be stored."""
        return self.plan["bytes"] / GIB


def _times(planned: float | None, limit: float | None) -> float:
    if limit is None:
        return 0.0
    if planned is None:
        what = "--max-minutes needs seconds a row, and nothing says how long these rows take"
        raise UsageError(what, fix="run a few rows first, which measures them, or leave --max-minutes out")
    return planned / limit if limit > 0 else (np.inf if planned > 0 else 0.0)


def within_limits(
    run: Run, session: Session, limits: Limits, insisted: frozenset[str] = frozenset(), effects: str = ""
) -> Run:
    """The run, or one with less precision, fewer parameters or fewer rows; ``insisted`` names options that stay.

    What is given up is said to the listener, and is in the run, for its plan and provenance.

    Raises:
        UsageError: nothing fits; names the least limits that would do.
    """
    if not limits.any:
        return run
    asked, quiet = run.spec, session.silent()
    best = _chosen(run, quiet)
    if best.over(limits) > 1:
        for spec in _cheaper(asked, insisted):
            other = _opened(run, quiet, spec, effects)
            if other is not None and other.over(limits) < best.over(limits):
                best = other
            if best.over(limits) <= 1:
                break
    taken = best.run
    if best.over(limits) > 1:
        taken = _some_rows(best, limits)
    given_up = tuple(
        {"what": name, "asked": getattr(asked, name), "taken": getattr(taken.spec, name)} for name in best.changed
    )
    if len(taken.train) < len(run.train):
        given_up += ({"what": "rows", "asked": len(run.train), "taken": len(taken.train)},)
    for entry in given_up:
        session.listener.warn(_said(entry, limits))
    return replace(taken, limits=kept_values(limits), given_up=given_up)


def _said(entry: dict[str, Any], limits: Limits) -> str:
    pairs = (("--max-minutes", limits.max_minutes), ("--max-disk", limits.max_disk))
    why = " and ".join(f"{flag} {value:g}" for flag, value in pairs if value is not None)
    if entry["what"] == "rows":
        return (
            f"given up for {why}: {entry['taken']:,} of {entry['asked']:,} train rows are taken, in the order of their "
            "keys; the others have no score yet: run again to go on"
        )
    flag = CALLED[entry["what"]]
    return f"given up for {why}: {flag} {entry['asked']}; {flag} {entry['taken']} is taken in its place"


def _cheaper(spec: GradSpec, insisted: frozenset[str]) -> Iterator[GradSpec]:
    """Settings that may cost less, those that give up least first."""
    precision = LESS.get(spec.precision) if "precision" not in insisted else None
    params = "last" if spec.params == "all" and "params" not in insisted else None
    if precision is not None:
        yield replace(spec, precision=precision)
    if params is not None:
        yield replace(spec, params=params)
    if precision is not None and params is not None:
        yield replace(spec, precision=precision, params=params)


def _chosen(run: Run, session: Session, changed: tuple[str, ...] = ()) -> _Choice:
    tried = Tried()
    run, plan = whole_plan(run, session, tried)
    return _Choice(run, session, plan, tried, changed)


def _opened(run: Run, session: Session, spec: GradSpec, effects: str) -> _Choice | None:
    """The run with other settings; None where its methods or its model cannot work with them."""
    changed = tuple(name for name in CALLED if getattr(spec, name) != getattr(run.spec, name))
    try:
        return _chosen(open_run(run.inputs, spec, session, effects), session, changed)
    except InfluenceError:
        return None


def _some_rows(best: _Choice, limits: Limits) -> Run:
    """The run of as many rows as fit.

    Raises:
        UsageError: not even the fewest do.
    """
    train = best.run.train
    order = key_order(train.row_keys)

    def some(k: int) -> Run:
        return with_rows(best.run, np.sort(train.index[order[: max(1, len(train) * k // STEPS)]]))

    def part(k: int) -> _Choice:
        run = some(k)
        return replace(best, run=run, plan=whole_plan(run, best.session, best.tried)[1])

    low = next((k for k in range(1, STEPS) if _can_score(some(k))), STEPS)
    least = part(low)
    if least.over(limits) > 1:
        raise _nothing_fits(least, limits)
    high, found = STEPS, least
    while high - low > 1:
        middle = (low + high) // 2
        tried = part(middle)
        if tried.over(limits) <= 1:
            low, found = middle, tried
        else:
            high = middle
    return found.run


def _can_score(run: Run) -> bool:
    """Whether every method can work with so many rows."""
    try:
        check_methods(run)
    except InfluenceError:
        return False
    return True


def _nothing_fits(least: _Choice, limits: Limits) -> UsageError:
    """What the fewest rows take, rounded up, as the least that would do."""
    rows = f"{len(least.run.train):,} train rows"
    spec = least.run.spec
    wanted: list[str] = []
    if _times(least.minutes, limits.max_minutes) > 1:
        wanted.append(f"--max-minutes {_up(least.minutes or 0.0)}")
    if _times(least.gib, limits.max_disk) > 1:
        wanted.append(f"--max-disk {_up(least.gib)}")
    what = (
        f"even {rows} at --params {spec.params} --precision {spec.precision} are planned to take more than the limits"
    )
    return UsageError(what, fix=f"the least that would do: {' '.join(wanted)}")


def _up(value: float) -> str:
    """A number with three digits that is no smaller.

    >>> _up(0.12345), _up(2.0)
    ('0.124', '2')
    """
    for digits in range(3, 18):
        text = f"{value:.{digits}g}"
        if float(text) >= value:
            return text
        step = 10.0 ** (np.floor(np.log10(value)) - digits + 1)
        text = f"{float(text) + step:.{digits}g}"
        if float(text) >= value:
            return text
    return repr(value)


def with_rows(run: Run, kept: NDArray[np.int64]) -> Run:
    """The run with some of its train rows, by their places [k] in the manifest; the others are left for later."""
    splits = run.manifest.splits.copy()
    splits[np.setdiff1d(run.train.index, kept, assume_unique=True)] = LATER
    manifest = replace(run.manifest, splits=splits)
    manifest.__dict__["fingerprint"] = run.manifest.fingerprint  # that of what was read, as with rows left out
    return replace(run, manifest=manifest, train=usable_train_rows(manifest))

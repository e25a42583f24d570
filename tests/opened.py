"""A run and its session in one hand, as a command holds them, and the stages on it by their own names."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa

from influence_cli.events import SILENT, Listener
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.grads import fill as filling
from influence_cli.stages.grads import row_gradients
from influence_cli.stages.run import names, plan
from influence_cli.stages.run.open import open_run
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.stages.score import grads_table as grads_tables
from influence_cli.stages.score import noise
from influence_cli.stages.score import score as scoring
from influence_cli.stages.score.per_target import table as per_target_table


class Opened:
    """What a command works with; a stage that leaves rows out or adds members changes ``run``."""

    def __init__(self, run: Run, session: Session) -> None:
        self.run, self.session = run, session

    def __getattr__(self, name: str) -> Any:
        """What the run has by this name, or else the session."""
        return getattr(self.run if hasattr(self.run, name) else self.session, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """``run`` and ``session`` themselves; all else is the session's, such as its listener."""
        if name in ("run", "session"):
            super().__setattr__(name, value)
        else:
            setattr(self.session, name, value)

    def replaced(self, **changes: Any) -> Opened:
        """The same with other fields of the run, or of the session."""
        of_run = {f.name for f in dataclasses.fields(Run)}
        run = dataclasses.replace(self.run, **{k: v for k, v in changes.items() if k in of_run})
        more = {k: v for k, v in changes.items() if k not in of_run}
        session = Session(**{"store": self.store, "runtime": self.runtime, "listener": self.listener, **more})
        return Opened(run, session)

    def direction(self, member: Any, objective: str, half: bool = False) -> str:
        return names.direction(self.run, member, objective, half)

    def along(self, method: str, member: Any, objective: str, half: bool = False) -> str:
        return names.along(self.run, method, member, objective, half)

    def factor(self, method: str, member: Any) -> str:
        return names.factor(self.run, method, member)

    def attack(self, objective: str) -> str | None:
        return names.attack(self.run, objective)

    def outputs(self, member: Any) -> Any:
        return self.session.outputs(self.run, member)

    def tangents(self, direction: str) -> Any:
        return self.session.tangents(self.run, direction)

    def attacks(self, objective: str) -> Any:
        return self.session.attacks(self.run, objective)


def opened(
    inputs: Inputs, spec: GradSpec, runtime: Runtime, listener: Listener = SILENT, remember: bool = True
) -> Opened:
    session = Session.open(runtime, listener, remember)
    return Opened(open_run(inputs, spec, session), session)


def fill(case: Opened) -> int:
    case.run, rows = filling.fill(case.run, case.session)
    return rows


def score(case: Opened, *how: Any, **more: Any) -> pa.Table:
    table, case.run = scoring.score(case.run, case.session, *how, **more)
    return table


def per_target(case: Opened, *how: Any, **more: Any) -> pa.Table:
    table, case.run = per_target_table.per_target(case.run, case.session, *how, **more)
    return table


def missing_work(case: Opened) -> list[plan.Work]:
    return plan.missing_work(case.run, case.session)


def describe_plan(case: Opened, *how: Any, **more: Any) -> dict[str, Any]:
    return plan.describe_plan(case.run, case.session, *how, **more)


def open_gradients(case: Opened, *how: Any, **more: Any) -> row_gradients.StoredGradients:
    found = row_gradients.open_gradients(case.run, case.session, *how, **more)
    case.run = found.run
    return found


def direction_noise(case: Opened) -> dict[str, dict[str, Any]]:
    return noise.direction_noise(case.run, case.session)


def grads_table(case: Opened) -> pa.Table:
    return grads_tables.grads_table(case.run, case.session)

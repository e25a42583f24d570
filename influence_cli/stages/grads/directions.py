"""The target pass at one member: every direction that is missing, of whatever kind its objective is, with its parts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.events import Progress
from influence_cli.processes.group import Group
from influence_cli.stages.grads.group_parts import group_parts, pair_parts
from influence_cli.stages.grads.member_model import MemberModel, Models
from influence_cli.stages.grads.same_run import RunJob, helpers
from influence_cli.stages.run import names
from influence_cli.stages.run.plan import Work
from influence_cli.stages.run.rates import pass_key, remember_rate
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session

if TYPE_CHECKING:
    from influence_cli.curvature.head import Head
    from influence_cli.data.manifest import Payload
    from influence_cli.engines.direction import Attacked, Measured, TargetPass

HEAD_FROM = 64  # target rows; looking for a head takes about as long as running so many


class DirectionJob(RunJob):
    """The target pass of objectives that are means over rows: each process has some of the buckets."""

    def __init__(self, run: Run, session: Session, at: MemberModel, objectives: tuple[str, ...]) -> None:
        super().__init__(run, session, at.member, at.called)
        self.objectives = objectives

    def of_run(self, group: Group, run: Run, session: Session, at: MemberModel) -> Any:
        """The sums of all, of which the leader returns what was measured."""
        passing = self.here[3] if group.rank == 0 else _target_pass(run, session, at)
        found = self.measured(passing, run, group)
        return found if group.rank == 0 else None

    def measured(self, passing: TargetPass, run: Run, group: Group) -> dict[str, Measured]:
        """The directions, of the buckets of all processes."""
        from influence_cli.engines.direction import measure_directions

        return measure_directions(passing, {name: run.objectives[name] for name in self.objectives}, {}, shared=group)


class GroupDirectionJob(DirectionJob):
    """The backward pass of objectives about groups, whose row values are known."""

    def __init__(
        self, run: Run, session: Session, at: MemberModel, values: dict[str, NDArray[np.float64]], accuracy: float
    ) -> None:
        super().__init__(run, session, at, tuple(values))
        self.values, self.accuracy = values, accuracy

    def measured(self, passing: TargetPass, run: Run, group: Group) -> dict[str, Measured]:
        """The directions, of the buckets of all processes."""
        from influence_cli.engines.group_direction import Grouped, directions_of_groups

        wanted = {name: Grouped(run.objectives[name], run.groups[name].index) for name in self.objectives}
        return directions_of_groups(passing, wanted, self.values, self.accuracy, group)


def _target_pass(run: Run, session: Session, at: MemberModel) -> TargetPass:
    """The target rows in another process than the first."""
    from influence_cli.engines.direction import TargetPass

    assert run.model is not None
    payloads = dict(run.target.manifest.payloads(run.target.index))
    size, workers = session.batch_size(run.model), session.runtime.workers
    return TargetPass(
        at.exact, run.model, run.target, payloads, size, workers, Progress(), session.decoded, _head(run, at)
    )


def measure(
    run: Run, session: Session, work: Work, at: MemberModel, models: Models, payloads: dict[int, Payload]
) -> None:
    """Measure and store the directions that the work lacks: of means of rows in one pass, then of groups."""
    from influence_cli.engines.direction import Paired, TargetPass, measure_directions
    from influence_cli.engines.group_direction import Grouped, directions_of_groups, values_of_groups
    from influence_cli.stages.grads.attacked_rows import attacked_rows
    from influence_cli.stages.grads.changed_rows import changed_inputs

    assert run.model is not None
    point, size = at.exact, session.batch_size(run.model)
    wanted = {name: run.objectives[name] for name in work.directions}
    of_groups = {n: Grouped(o, run.groups[n].index) for n, o in wanted.items() if "groups" in o.needs}
    paired = {n: Paired(o, changed_inputs(run, n, point, payloads)) for n, o in wanted.items() if "pairs" in o.needs}
    of_rows = {n: o for n, o in wanted.items() if n not in of_groups and n not in paired}
    attacked: dict[str, Attacked] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name in of_rows:
        if names.attack(run, name) is not None:
            attacked[name], about = attacked_rows(run, session, name, models.final(), payloads)
            parts[name] = {"attack": about}
    started, passes = time.perf_counter(), (1 if of_rows or paired else 0) + (1 + len(of_groups) if of_groups else 0)
    measured: dict[str, Measured] = {}
    with session.listener.progress(f"direction, {at.called}", passes * len(run.target), "target rows") as progress:
        at_point = point, run.model, run.target, payloads, size, session.runtime.workers, progress, session.decoded
        passing = TargetPass(*at_point, _head(run, at) if of_rows else None)
        if of_rows or paired:
            group = None if attacked or paired or len(run.target) < 2 * size else helpers(run, session)
            if group is None:
                measured |= measure_directions(passing, of_rows, attacked, paired)
            else:
                job = DirectionJob(run, session, at, tuple(of_rows))
                job.here = run, session, at, passing
                measured |= group.share(job)[0]
            parts |= {name: pair_parts(run, name, measured[name].meta.pop("flips")) for name in paired}
        if of_groups:
            group = None if len(run.target) < 2 * size else helpers(run, session)
            values, accuracy = values_of_groups(passing, of_groups)
            if group is None:
                measured |= directions_of_groups(passing, of_groups, values, accuracy)
            else:
                of_all = GroupDirectionJob(run, session, at, values, accuracy)
                of_all.here = run, session, at, passing
                measured |= group.share(of_all)[0]
            parts |= {name: group_parts(run, name, values[name]) for name in of_groups}
    took = time.perf_counter() - started
    remember_rate(session, pass_key(run, session, "target"), len(run.target), took)
    for objective, m in measured.items():
        more = parts.get(objective)
        if more is not None and "attacked_accuracy" in m.meta:
            more = {**more, "attacked_accuracy": m.meta.pop("attacked_accuracy")}
        about = {**m.meta, "objective": objective, "halves": m.half is not None}
        about |= {} if more is None else {"parts": more}
        about |= {"fit": run.fit.fingerprint} if work.member.walk is not None and run.fit is not None else {}
        if m.half is not None and work.halves:
            session.store.directions.write(names.direction(run, work.member, objective, half=True), m.half, about)
        session.store.directions.write(names.direction(run, work.member, objective), m.q, about)


def _head(run: Run, at: MemberModel) -> Head | None:
    """The head at a member, where there are enough target rows that it pays to look for it."""
    return at.head if len(run.target) >= HEAD_FROM else None

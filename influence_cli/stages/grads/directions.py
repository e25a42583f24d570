"""The target pass at one member: every direction that is missing, of whatever kind its objective is, with its parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from influence_cli.curvature.head import Head
    from influence_cli.data.manifest import Payload
    from influence_cli.engines.direction import Attacked, Measured, Paired, TargetPass
    from influence_cli.engines.group_direction import Grouped

HEAD_FROM = 64  # target rows; looking for a head takes about as long as running so many


@dataclass(frozen=True)
class Wanted:
    """Objectives of a target pass by what they look at: rows, rows that were attacked, and rows with changed twins."""

    of_rows: dict[str, Any]
    attacked: dict[str, Attacked]
    paired: dict[str, Paired]

    @staticmethod
    def of(
        run: Run, session: Session, at: MemberModel, wanted: Iterable[str], payloads: dict[int, Payload],
        final: Callable[[], nn.Module], parts: dict[str, dict[str, Any]],
    ) -> Wanted:  # fmt: skip
        """With their inputs: rows that are to be attacked are, at the model that ``final`` gives.

        What is known of an attack is put into ``parts``.
        """
        from influence_cli.engines.direction import Paired
        from influence_cli.stages.grads.attacked_rows import attacked_rows
        from influence_cli.stages.grads.changed_rows import changed_inputs

        by_name = {name: run.objectives[name] for name in wanted}
        pairs = [name for name, objective in by_name.items() if "pairs" in objective.needs]
        attacked: dict[str, Attacked] = {}
        for name in by_name:
            if names.attack(run, name) is not None:
                attacked[name], about = attacked_rows(run, session, name, final(), payloads)
                parts[name] = {"attack": about}
        paired = {name: Paired(by_name[name], changed_inputs(run, name, at.exact, payloads)) for name in pairs}
        return Wanted({n: o for n, o in by_name.items() if n not in paired}, attacked, paired)

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.of_rows, *self.paired)


class DirectionJob(RunJob):
    """The target pass of objectives that are means over rows or pairs: each process has some of the buckets."""

    def __init__(self, run: Run, session: Session, at: MemberModel, objectives: tuple[str, ...]) -> None:
        super().__init__(run, session, at.member, at.called)
        self.objectives = objectives

    def of_run(self, group: Group, run: Run, session: Session, at: MemberModel) -> Any:
        """The sums of all, of which the leader returns what was measured."""
        if group.rank == 0:
            passing, wanted = self.here[3:]
            return self.measured(passing, wanted, group)
        payloads = dict(run.target.manifest.payloads(run.target.index))
        self.measured(_target_pass(run, session, at, payloads), self.wanted(run, session, at, payloads), group)
        return None

    def wanted(self, run: Run, session: Session, at: MemberModel, payloads: dict[int, Payload]) -> Any:
        """What is to be measured, in another process than the first: what was attacked is stored by now."""

        def final() -> nn.Module:
            return at.model  # nothing is left to be attacked at it

        return Wanted.of(run, session, at, self.objectives, payloads, final, {})

    @staticmethod
    def measured(passing: TargetPass, wanted: Any, group: Group | None) -> Any:
        """The directions, of the buckets of all processes."""
        from influence_cli.engines.direction import measure_directions

        return measure_directions(passing, wanted.of_rows, wanted.attacked, wanted.paired, group)


class GroupsJob(DirectionJob):
    """Both passes of objectives about groups: row values, and then the backward pass that they decide."""

    def wanted(self, run: Run, session: Session, at: MemberModel, payloads: dict[int, Payload]) -> Any:
        """The objectives with the groups of the target rows."""
        return _grouped(run, self.objectives)

    @staticmethod
    def measured(passing: TargetPass, wanted: Any, group: Group | None) -> Any:
        """The directions, and the values [m, V] that they are of."""
        return _of_groups(passing, wanted, group)


def _grouped(run: Run, objectives: Iterable[str]) -> dict[str, Grouped]:
    from influence_cli.engines.group_direction import Grouped

    return {name: Grouped(run.objectives[name], run.groups[name].index) for name in objectives}


def _of_groups(
    passing: TargetPass, wanted: dict[str, Grouped], shared: Group | None = None
) -> tuple[dict[str, Measured], dict[str, NDArray[np.float64]]]:
    """The directions of objectives about groups, and the values [m, V] of target rows that they are made of."""
    from influence_cli.engines.group_direction import directions_of_groups, values_of_groups

    values, accuracy = values_of_groups(passing, wanted, shared)
    return directions_of_groups(passing, wanted, values, accuracy, shared), values


def _target_pass(run: Run, session: Session, at: MemberModel, payloads: dict[int, Payload]) -> TargetPass:
    """The target rows in another process than the first."""
    from influence_cli.engines.direction import TargetPass

    assert run.model is not None
    size, workers = session.batch_size(run.model), session.runtime.workers
    return TargetPass(
        at.exact, run.model, run.target, payloads, size, workers, Progress(), session.decoded, _head(run, at)
    )


def measure(
    run: Run, session: Session, work: Work, at: MemberModel, models: Models, payloads: dict[int, Payload]
) -> None:
    """Measure and store the directions that the work lacks: of means of rows in one pass, then of groups."""
    from influence_cli.engines.direction import TargetPass

    assert run.model is not None
    point, size = at.exact, session.batch_size(run.model)
    grouped = _grouped(run, [name for name in work.directions if "groups" in run.objectives[name].needs])
    parts: dict[str, dict[str, Any]] = {}
    others = [name for name in work.directions if name not in grouped]
    wanted = Wanted.of(run, session, at, others, payloads, models.final, parts)
    started, passes = time.perf_counter(), (1 if wanted.names else 0) + (1 + len(grouped) if grouped else 0)
    measured: dict[str, Measured] = {}
    group = None if len(run.target) < 2 * size else helpers(run, session)

    def by_all(job: type[DirectionJob], objectives: Iterable[str], of: Any) -> Any:
        """What is measured here, or by all processes of the run."""
        if group is None:
            return job.measured(passing, of, None)
        shared = job(run, session, at, tuple(objectives))
        shared.here = run, session, at, passing, of
        return group.share(shared)[0]

    with session.listener.progress(f"direction, {at.called}", passes * len(run.target), "target rows") as progress:
        at_point = point, run.model, run.target, payloads, size, session.runtime.workers, progress, session.decoded
        passing = TargetPass(*at_point, _head(run, at) if wanted.of_rows else None)
        if wanted.names:
            measured |= by_all(DirectionJob, wanted.names, wanted)
            parts |= {name: pair_parts(run, name, measured[name].meta.pop("flips")) for name in wanted.paired}
        if grouped:
            found, values = by_all(GroupsJob, grouped, grouped)
            measured |= found
            parts |= {name: group_parts(run, name, values[name]) for name in grouped}
    took = time.perf_counter() - started
    remember_rate(session, pass_key(run, session, "target"), len(run.target), took)
    _store(run, session, work, measured, parts)


def _store(
    run: Run, session: Session, work: Work, measured: dict[str, Measured], parts: dict[str, dict[str, Any]]
) -> None:
    """Keep the directions at a member, with what is known of each."""
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

"""The leader's run in another process: opened there from the same settings, and held against it."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.outside import allowing_outside, outside_allowed
from influence_cli.data.row_checks import BadRow
from influence_cli.data.split_column import LATER
from influence_cli.errors import UsageError
from influence_cli.events import SILENT
from influence_cli.processes.group import Group, Job
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.grads.member_model import MemberModel, Models
from influence_cli.stages.run.backbone_run import features_run
from influence_cli.stages.run.open import open_run
from influence_cli.stages.run.run import Member, Run, require_model
from influence_cli.stages.run.session import Session
from influence_cli.stages.run.within_limits import with_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

PLACE, SAID = "run", "said"  # among what a process has opened


@dataclass(eq=False)
class Opened:
    """A run as it was opened here, before rows were left out of it, and the model at the member last asked for."""

    settings: tuple[Inputs, GradSpec, Runtime]
    run: Run
    session: Session
    models: Models
    at: MemberModel | None = None


@dataclass(frozen=True)
class SameRun:
    """Settings of a run, the rows that it is without, and its members as they are now."""

    inputs: Inputs
    spec: GradSpec
    runtime: Runtime
    bad: tuple[BadRow, ...]
    members_of: Mapping[str, tuple[Member, ...]]
    of_features: bool  # whether it is the part that is about the features of another model
    rows: int
    digest: int
    kept: NDArray[np.int64] | None  # places of the train rows that limits have left
    outside: bool  # whether rows may name files outside of their manifest's folder

    @staticmethod
    def of(run: Run, session: Session) -> SameRun:
        """What another process is told of a run."""
        runtime = replace(session.runtime, store=str(session.store.root.absolute()))
        of_features = run.backbone is None and run.inputs.features is not None
        bad, members = tuple(run.manifest.bad), dict(run.members_of)
        kept = run.train.index if (run.manifest.splits == LATER).any() else None
        told = (bad, members, of_features, len(run.train), _digest(run), kept, outside_allowed())
        return SameRun(run.inputs, run.spec, runtime, *told)

    def open(self, group: Group) -> Opened:
        """The run here, and its session, on which nobody is told anything.

        Raises:
            UsageError: its rows are not the leader's.
        """
        settings = (self.inputs, self.spec, self.runtime)
        known: Opened | None = group.opened.get(PLACE)
        if known is None or known.settings != settings:
            session = Session.open(_here(self.runtime, group), SILENT, remember=False)
            session.group = group
            with allowing_outside(self.outside):
                run = open_run(self.inputs, self.spec, session)
            known = group.opened[PLACE] = Opened(settings, run, session, Models(run, session))
        run, seen = known.run, {(b.row, b.id) for b in known.run.manifest.bad}
        run = run.without([b for b in self.bad if (b.row, b.id) not in seen])
        if self.kept is not None:
            run = with_rows(run, self.kept)
        if self.of_features:
            run = features_run(run, known.session.runtime)
        run = replace(run, members_of=dict(self.members_of))
        if (len(run.train), _digest(run)) != (self.rows, self.digest):
            what = (
                f"process {group.rank} sees {len(run.train):,} other train rows than the first, which has {self.rows:,}"
            )
            fix = "give every process the same manifest, and a store that all of them share"
            raise UsageError(what, where=str(self.inputs.manifest), fix=fix)
        models = Models(run, known.session)
        models.share_weights(known.models)
        known.session.forget_folders()
        return Opened(settings, run, known.session, models, known.at)


class RunJob(Job):
    """A job about a run at one of its members: the leader has both, the others open them."""

    def __init__(self, run: Run, session: Session, member: Member, called: str) -> None:
        self.same, self.member, self.called = SameRun.of(run, session), member, called

    def part(self, group: Group) -> Any:
        """Do this process's part of a run that it has opened."""
        if group.rank == 0:
            run, session, at = self.here[:3]
            with in_job(session):
                return self.of_run(group, run, session, at)
        opened = self.same.open(group)
        if opened.at is None or opened.at.member.name != self.member.name or opened.at.called != self.called:
            opened.at = opened.models.at(self.member, self.called)
            group.opened[PLACE].at = opened.at
            group.opened[PLACE].models.share_weights(opened.models)
        with in_job(opened.session):
            return self.of_run(group, opened.run, opened.session, opened.at)

    def of_run(self, group: Group, run: Run, session: Session, at: MemberModel) -> Any:
        """Do it."""
        raise NotImplementedError


@contextlib.contextmanager
def in_job(session: Session) -> Generator[None]:
    """While several processes are at work in what the session is used for."""
    session.sharing = True
    try:
        yield
    finally:
        session.sharing = False
        session.forget_folders()  # others have written to them


def helpers(run: Run, session: Session) -> Group | None:
    """The processes that a run's work can be divided among; None where this one is alone, or alone knows the run."""
    group = session.group
    if group is None or session.sharing or group.rank:
        return None
    inputs = run.inputs
    parts = (inputs.manifest, inputs.target, inputs.fit_rows)
    named = all(part is None or (isinstance(part, str | Path) and str(part) != "-") for part in parts)
    if not named or inputs.task is not None:
        if not group.opened.get(SAID):
            group.opened[SAID] = True
            session.listener.note(
                "rows from standard input, or in memory, are known to one process: nothing is divided"
            )
        return None
    require_model(run)
    return group


def _here(runtime: Runtime, group: Group) -> Runtime:
    """The same with an accelerator of this process's own."""
    return replace(runtime, device=group.device(runtime.device))


def _digest(run: Run) -> int:
    return zlib.crc32(run.train.row_keys.tobytes())

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
from influence_cli.stages.run.plan import missing_work
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
        of_features = run.backbone is None and run.inputs.features is not None
        bad, members = tuple(run.manifest.bad), dict(run.members_of)
        kept = run.train.index if (run.manifest.splits == LATER).any() else None
        told = (bad, members, of_features, len(run.train), _digest(run), kept, outside_allowed())
        return SameRun(run.inputs, run.spec, _told(session), *told)

    def open(self, group: Group) -> Opened:
        """The run here, and its session, on which nobody is told anything.

        Raises:
            UsageError: its rows are not the leader's.
        """
        known = _opened(group, (self.inputs, self.spec, self.runtime), self.outside)
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
        return Opened(known.settings, run, known.session, models, known.at)


class OpeningJob(Job):
    """Open a run, and the model that it begins with, while the leader does: ahead of the first job that needs them."""

    ahead = True

    def __init__(self, inputs: Inputs, spec: GradSpec, session: Session) -> None:
        self.settings, self.outside = (inputs, spec, _told(session)), outside_allowed()

    def part(self, group: Group) -> None:
        """Have both here, where there is something to compute."""
        opened = _opened(group, self.settings, self.outside)
        work = missing_work(opened.run, opened.session)
        if work:
            opened.models.at(work[0].member)
            opened.session.forget_folders()


def open_ahead(inputs: Inputs, spec: GradSpec, session: Session) -> None:
    """Have the other processes, if there are any, open a run while this one does."""
    if session.group is not None and session.group.rank == 0 and are_named(inputs):
        session.group.announce(OpeningJob(inputs, spec, session))


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
    if not are_named(run.inputs):
        if not group.opened.get(SAID):
            group.opened[SAID] = True
            session.listener.note(
                "rows from standard input, or in memory, are known to one process: nothing is divided"
            )
        return None
    require_model(run)
    return group


def are_named(inputs: Inputs) -> bool:
    """Whether all that a run is opened from is known by name to every process."""
    parts = (inputs.manifest, inputs.target, inputs.fit_rows)
    named = all(part is None or (isinstance(part, str | Path) and str(part) != "-") for part in parts)
    return named and inputs.task is None


def _opened(group: Group, settings: tuple[Inputs, GradSpec, Runtime], outside: bool) -> Opened:
    """The run of some settings, which a process opens once."""
    known: Opened | None = group.opened.get(PLACE)
    if known is None or known.settings != settings:
        inputs, spec, runtime = settings
        session = Session.open(_here(runtime, group), SILENT, remember=False)
        session.group = group
        with allowing_outside(outside):
            run = open_run(inputs, spec, session)
        known = group.opened[PLACE] = Opened(settings, run, session, Models(run, session))
    return known


def _told(session: Session) -> Runtime:
    """What another process is told of how a run is carried out."""
    store = session.store.called if session.store.at_an_address else str(session.store.root.absolute())
    return replace(session.runtime, store=store)


def _here(runtime: Runtime, group: Group) -> Runtime:
    """The same with an accelerator of this process's own."""
    return replace(runtime, device=group.device(runtime.device))


def _digest(run: Run) -> int:
    return zlib.crc32(run.train.row_keys.tobytes())

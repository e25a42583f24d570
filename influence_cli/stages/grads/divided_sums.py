"""Sums over the fit rows by several processes: each opens the same curvature, and has some of its batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.processes.group import Group, Job
from influence_cli.stages.grads.same_run import SameRun
from influence_cli.stages.run.run import Member, Run, require_model
from influence_cli.stages.run.session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.curvature.curvature import Curvature, SumsOf

PLACE, HELD = "curvature", 4  # among what a process has opened, and how many of them


class DividedSums:
    """How the sums of a curvature at a member are divided."""

    def __init__(self, group: Group, run: Run, session: Session, member: Member) -> None:
        self.group, self.same, self.member = group, SameRun.of(run, session), member

    def __call__(self, curvature: Curvature, of: SumsOf) -> list[Tensor]:
        """What ``of`` sums up over all rows, here where there are fewer batches than processes."""
        if len(curvature.rows) <= curvature.batch_size * (self.group.size - 1):
            return of(curvature)
        job = SumsJob(self.same, self.member, curvature, of)
        job.here = curvature, list[Any]()
        self.group.share(job)
        return job.here[1]


class SumsJob(Job):
    """Sums over the rows of a curvature, which every process has in the end."""

    def __init__(self, same: SameRun, member: Member, curvature: Curvature, of: SumsOf) -> None:
        self.same, self.member, self.of = same, member, of
        self.rows, self.batch_size = curvature.rows.index, curvature.batch_size
        self.precision, self.without = curvature.precision, tuple(curvature.outside)
        self.behind_head = curvature.given_head is not None

    def part(self, group: Group) -> None:
        """Sum over the batches of this process, and add up."""
        whole = self._opened(group) if group.rank else self.here[0]
        found = self.of(whole.part(group.rank, group.size))
        group.add_up(found)
        if group.rank == 0:
            self.here[1][:] = found

    def _opened(self, group: Group) -> Curvature:
        from influence_cli.curvature.curvature import Curvature

        same, held = group.opened.get(PLACE, (None, {}))
        if same != self.same:
            held = {}
            group.opened[PLACE] = self.same, held
        key = self.member.name, self.rows.tobytes(), self.precision, self.without, self.batch_size, self.behind_head
        if key in held:
            return held[key]
        while len(held) >= HELD:
            held.pop(next(iter(held)))
        opened = self.same.open(group)
        run, session = opened.run, opened.session
        assert run.fit is not None
        rows = run.fit.rows.take(np.isin(run.fit.rows.index, self.rows))
        # what lies before the head is run in its own precision, as the leader does
        head = opened.models.at(self.member).head if self.behind_head else None
        held[key] = Curvature(
            opened.models.weights(self.member.checkpoint), require_model(run)[0], rows, run.spec.params,
            self.member.dropout, session.device, self.batch_size, session.runtime.workers, precision=self.precision,
            without=self.without, loss=run.row_loss, head=head,
        )  # fmt: skip
        return held[key]

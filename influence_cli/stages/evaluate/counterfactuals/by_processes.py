"""Trainings that several processes take by turn; each is kept in the store by the one that has run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from influence_cli.data.outside import allowing_outside, outside_allowed
from influence_cli.events import Progress
from influence_cli.processes.group import Group, Job
from influence_cli.processes.lead import current
from influence_cli.stages.evaluate.counterfactuals.pool import Refit
from influence_cli.stages.evaluate.counterfactuals.refitter import Refitter
from influence_cli.stages.evaluate.request import CounterfactualRequest

PLACE = "refitter"  # among what a process has opened
Open = Callable[[CounterfactualRequest], Refitter]


class Trainings(Job):
    """Trainings on parts of the rows, for so many minutes."""

    def __init__(self, request: CounterfactualRequest, open: Open, refits: list[Refit], minutes: float | None) -> None:
        self.request, self.open, self.refits, self.minutes = request, open, refits, minutes
        self.outside = outside_allowed()

    def part(self, group: Group) -> int:
        """Run those of this process; returns how many."""
        progress = Progress()
        if group.rank == 0:
            refitter, progress = self.here
        elif group.opened.get(PLACE, (None,))[0] == self.request:
            refitter = group.opened[PLACE][1]
        else:
            training = replace(self.request.training, device=group.device(self.request.training.device))
            with allowing_outside(self.outside):
                refitter = self.open(replace(self.request, training=training))
            group.opened[PLACE] = self.request, refitter
        refitter.stop_after(self.minutes)
        done, last = 0, -1
        for k in group.units(len(self.refits)):
            if refitter.time_is_over():
                break
            refitter.train_one(self.refits[k])
            progress.advance(k - last)  # with those that others have taken meanwhile
            done, last = done + 1, k
        return done


def divide(refitter: Refitter, request: CounterfactualRequest, open: Open) -> None:
    """Let all processes of the run train, where there are several and all can open what is asked for."""
    group = current()
    if group is None or not isinstance(request.scores.scores, str) or request.scores.scores == "-":
        return
    same = replace(request, store=str(refitter.folder.path.parent.absolute()))

    def by_all(refits: list[Refit], minutes: float | None, progress: Progress) -> int:
        job = Trainings(same, open, refits, minutes)
        job.here = refitter, progress
        before = refitter.trained
        found = sum(group.share(job))
        refitter.trained = before
        return found

    refitter.divide = by_all

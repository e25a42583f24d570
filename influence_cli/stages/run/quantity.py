"""What a quantity is: something that the store holds of rows, in one folder for each of its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from influence_cli.data.manifest import Rows
from influence_cli.methods.stored import Member
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.store import Keys, ShardFolder, fingerprint

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.engines.point import Point

Key = Literal["payload", "row"]
OfRows = Callable[["Tensor", "Tensor"], "dict[str, Tensor]"]  # inputs and labels of b rows to arrays [b, ...] by name


@dataclass(frozen=True)
class Part:
    """What one folder holds for a run."""

    quantity: str
    name: str  # the folder's
    member: Member
    of: str = ""  # of a value the method that needs it, of half of the target rows the objective
    half: bool = False  # of half of the target rows, and so of a sample of the training rows alone


class Quantity:
    """A quantity that is computed by a pass of its own; others override what they do otherwise."""

    name: ClassVar[str]
    key: ClassVar[Key]  # payload: the same for every label
    revision: ClassVar[int] = 1  # raise it when its numbers change
    mapped: ClassVar[bool] = False  # whether a row has so many values that they are not all held in memory
    computed_in: ClassVar[str] = "own"  # the pass that computes it, see ``stages.grads.fill``

    def about(self, run: Run) -> dict[str, Any]:
        """What of a run but the member changes its numbers; part of its name."""
        return {"params": run.spec.params}

    def of_rows(self, run: Run, point: Point) -> OfRows:
        """What maps a batch to its arrays at a point."""
        raise NotImplementedError

    def row_bytes(self, run: Run) -> int:
        """Bytes of a row in the store, about."""
        raise NotImplementedError

    def parts(self, run: Run, member: Member) -> list[Part]:
        """The folders that the run needs at a member."""
        if not any(run.methods[n].needs == self.name and member in ms for n, ms in run.members_of.items()):
            return []
        name = fingerprint(self.name, self.revision, member=member.name, **self.about(run))
        return [Part(self.name, name, member)]

    def folder(self, run: Run, session: Session, part: Part) -> ShardFolder:
        """Where a part is stored."""
        return session.folder(
            self.name, part.name, {**self.about(run), **session.about(run, part.member)}, mapped=self.mapped
        )

    def rows(self, run: Run, part: Part) -> Rows:
        """The rows that a part is about."""
        return run.train

    def check(self, run: Run, point: Point) -> None:
        """Refuse, before any row is run, a model that has no such quantity."""

    def lacking(self, run: Run, session: Session, part: Part) -> Keys:
        """Keys [n, 16] of its rows that a part lacks."""
        wanted = self.wanted(run, part)
        missing = self.folder(run, session, part).missing(wanted)
        return wanted if missing.all() else wanted[missing]  # the same array where it is all of them

    def wanted(self, run: Run, part: Part) -> Keys:
        """Keys [n, 16] of the distinct rows that a part is to have."""
        return run.payload_keys if self.key == "payload" else run.row_keys

"""What the store holds of a run's training rows, as a method reads it to score them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.errors import UsageError
from influence_cli.events import Progress
from influence_cli.methods.stored import Chain, Index
from influence_cli.model.checkpoints import Trajectory
from influence_cli.model.training_records import EpochRecords, FoldRecords
from influence_cli.stages.run import names
from influence_cli.stages.run.quantities import QUANTITIES, chain_parts
from influence_cli.stages.run.row_values import values_of
from influence_cli.stages.run.run import Member, Run
from influence_cli.stages.run.session import Session
from influence_cli.store import BlockFolder
from influence_cli.store.blocks import StoredArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StoredRows:
    """The rows of a run as far as one method needs them: see ``methods.protocol.Stored``."""

    run: Run
    session: Session
    method: str
    of_another: bool = field(default=False, kw_only=True)  # whether features are of another model than the scored one
    _arrays: dict[Path, StoredArray] = field(default_factory=dict, init=False, repr=False)  # by folder

    @property
    def members(self) -> tuple[Member, ...]:
        """The method's members."""
        return self.run.members_of.get(self.method, ())

    @property
    def objectives(self) -> list[str]:
        """The run's."""
        return list(self.run.objectives)

    @property
    def seed(self) -> int:
        """The run's."""
        return self.run.spec.seed

    def blocks(self) -> Iterator[Index]:
        """The places [b] of all rows, some at a time: as the logits of the first member are stored."""
        return self._array(self.session.outputs(self.run, self.members[0]), "logits").blocks()

    def logits(self, member: Member, some: Index | None = None) -> NDArray[np.floating]:
        """Logits [n, C] at a member, or [b, C] of some of the rows."""
        return self._of(self.session.outputs(self.run, member), "logits", some)

    def tangents(self, member: Member, objective: str, some: Index | None = None) -> NDArray[np.floating]:
        """Derivatives of the logits [n, C] along the method's direction for an objective, or those of some rows."""
        direction = names.along(self.run, self.method, member, objective)
        return self._of(self.session.tangents(self.run, direction), "tangent", some)

    def _of(self, folder: BlockFolder, name: str, some: Index | None) -> NDArray[np.floating]:
        array = self._array(folder, name)
        return array.whole() if some is None else array[some]

    def _array(self, folder: BlockFolder, name: str) -> StoredArray:
        """An array by class of the run's rows, whose places are looked up once."""
        if folder.path not in self._arrays:
            self._arrays[folder.path] = folder.array(self.run.train.payload_keys, name)
        return self._arrays[folder.path]

    def values(self, member: Member) -> Floats | None:
        """The value [n] of rows' own gradients that the method needs; None where it needs none."""
        if self.method not in self.run.values:
            return None
        return values_of(self.run, self.session, self.method, member, self.run.train.row_keys)

    def length(self, member: Member, objective: str) -> float | None:
        """|q| at a member."""
        at = names.query(self.run, self.method, member)
        meta = self.session.store.directions.meta(names.direction(self.run, at, objective))
        assert meta is not None
        return float(meta["norm"])

    def phi(self, member: Member, objective: str) -> float:
        """The objective's value at a member."""
        found = self.session.store.chains.read(names.phi(self.run, member, objective))
        assert found is not None
        return float(found["phi"][0])

    def chains(self, objective: str) -> list[Chain]:
        """The method's chains, with one objective beside the rows' losses."""
        found: list[Chain] = []
        for part in chain_parts(self.run, self.method, objective):
            rows = QUANTITIES[part.quantity].folder(self.run, self.session, part).read(self.run.train.row_keys)
            kept, meta = self.session.store.chains.read(part.name), self.session.store.chains.meta(part.name)
            assert kept is not None
            assert meta is not None
            found.append(Chain(rows["mean"], rows["squares"], rows["products"], kept["phi"], meta["facts"]))
        return found

    @property
    def target(self) -> Rows:
        """The run's."""
        return self.run.target

    def progress(self, what: str, total: int) -> AbstractContextManager[Progress]:
        """By the session's listener."""
        return self.session.listener.progress(what, total)

    def read(self, quantity: str, member: Member, rows: Rows | None = None) -> dict[str, NDArray[Any]]:
        """The arrays [n, ...] of another quantity at a member, of the training rows or of others that were filled."""
        kind, rows = QUANTITIES[quantity], self.run.train if rows is None else rows
        part = kind.parts(self.run, member)[0]
        keys = rows.payload_keys if kind.key == "payload" else rows.row_keys
        return kind.folder(self.run, self.session, part).read(keys)

    def by_epoch(self, value: str) -> EpochRecords:
        """What training noted of its rows at every epoch, ``value`` among it."""
        return self._trajectory().by_epoch(self.method, value)

    def own_logits(self) -> NDArray[np.floating] | None:
        """Logits [n, C] of the model whose features they are, where that is the one that is scored; else None."""
        return None if self.of_another else self.logits(self.run.plain_member())

    def own_epochs(self, value: str) -> EpochRecords | None:
        """What its training noted of its rows at every epoch, ``value`` among it; None where there is none."""
        if self.of_another or self.run.checkpoint is None:
            return None
        try:
            return self.by_epoch(value)
        except UsageError:  # no run folder, none of its last weights, or nothing noted
            return None

    def out_of_fold(self) -> FoldRecords:
        """Logits of train rows by models that were trained without them."""
        return self._trajectory().out_of_fold(self.method)

    def _trajectory(self) -> Trajectory:
        assert self.run.checkpoint is not None
        return Trajectory(self.run.checkpoint)


@dataclass(frozen=True, eq=False)
class Blend(StoredRows):
    """The same with one direction in place of the objectives': sum_j share_j q_j / |q_j| at each member.

    A tangent is linear in its direction, so the blend's tangent is the same sum of tangents.  Its own length is the
    same for all rows, and no score is divided by it.
    """

    rule: str
    shares: Floats

    @property
    def objectives(self) -> list[str]:
        """The blend alone."""
        return [self.rule]

    def tangents(self, member: Member, objective: str, some: Index | None = None) -> Floats:
        """Tangents [n, C] along the blend, or [b, C] of some of the rows, in float64.

        Raises:
            UsageError: a direction is zero.
        """
        total: Floats | None = None
        for share, blended in zip(self.shares.tolist(), self.run.objectives, strict=True):
            norm = super().length(member, blended)
            if norm is None or not norm > 0:
                raise UsageError(f"the direction of {blended} is zero: there is nothing to blend", fix="leave it out")
            part = share / norm * super().tangents(member, blended, some).astype(np.float64)
            total = part if total is None else total + part
        assert total is not None
        return total

    def length(self, member: Member, objective: str) -> float | None:
        """None."""
        return None

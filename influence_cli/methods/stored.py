"""Where a method takes gradients, and what the store holds of the rows for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from influence_cli.events import Progress

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.model.checkpoints import Checkpoint
    from influence_cli.model.dropout import Dropout
    from influence_cli.model.training_records import EpochRecords, FoldRecords
    from influence_cli.model.walk import Walk

Floats = NDArray[np.float64]
Logits = NDArray[np.floating]
Index = NDArray[np.int64]  # places of some of the rows
Facts = dict[str, Any]  # plain values for metadata, provenance and a line of the summary


@dataclass(frozen=True)
class Place:
    """Where a member's gradients are taken, and its weight in the mean over members."""

    checkpoint: Checkpoint
    dropout: Dropout | None = None
    weight: float = 1.0
    walk: Walk | None = None  # how training went on from there


@dataclass(frozen=True)
class Member:
    """A place where gradients are taken, under the fingerprint of all that defines it."""

    name: str
    checkpoint: Checkpoint = field(compare=False)
    dropout: Dropout | None = field(compare=False)
    weight: float = field(default=1.0, compare=False)
    walk: Walk | None = field(default=None, compare=False)

    @property
    def plain(self) -> bool:
        """Whether it is a checkpoint as it is."""
        return self.dropout is None and self.walk is None

    def as_dict(self) -> Facts:
        """Plain values, for people who look into the store."""
        walk = {} if self.walk is None else {"walk": self.walk.describe()}
        dropout = None if self.dropout is None else dataclasses.asdict(self.dropout)
        return {"name": self.name, "dropout": dropout, **walk}


@dataclass(frozen=True, eq=False)
class Chain:
    """Draws of the parameters around a checkpoint: moments of the losses of n rows over T draws, and Phi at each.

    ``squares`` are sums over draws of (l_i - mean l_i)^2, ``products`` those of (l_i - mean l_i)(Phi - mean Phi).
    """

    mean: Floats  # [n]
    squares: Floats  # [n]
    products: Floats  # [n]
    phi: Floats  # [T]
    facts: Facts  # how it was drawn


class Stored(Protocol):
    """What the store holds of the rows [n] that are scored, as far as one method needs it."""

    @property
    def members(self) -> Sequence[Member]:
        """The method's members; none where it needs no model."""
        ...

    @property
    def objectives(self) -> Sequence[str]:
        """What a method with directions is asked for."""
        ...

    @property
    def seed(self) -> int:
        """The run's seed."""
        ...

    def blocks(self) -> Iterator[Index]:
        """The places [b] of all rows, some at a time, so few that arrays [b, C] of theirs are small."""
        ...

    def logits(self, member: Member, some: Index | None = None) -> Logits:
        """Logits [n, C] at a member, or [b, C] of some of the rows: of all they may be more than there is memory."""
        ...

    def tangents(self, member: Member, objective: str, some: Index | None = None) -> NDArray[np.floating]:
        """Derivatives of the logits [n, C] along the method's direction for an objective, or those of some rows."""
        ...

    def values(self, member: Member) -> Floats | None:
        """The value [n] of rows' own gradients that the method needs; None where it needs none."""
        ...

    def length(self, member: Member, objective: str) -> float | None:
        """|q| at a member; None where the direction is a blend of unit directions."""
        ...

    def phi(self, member: Member, objective: str) -> float:
        """The objective's value at a member, for methods that ask for it (``phi_at_members``)."""
        ...

    def chains(self, objective: str) -> list[Chain]:
        """The chains of draws of a method that needs traces."""
        ...

    @property
    def target(self) -> Rows:
        """The target rows."""
        ...

    def read(self, quantity: str, member: Member, rows: Rows | None = None) -> dict[str, NDArray[Any]]:
        """The arrays [n, ...] of any other quantity that the method needs, or those of rows such as the target's."""
        ...

    def progress(self, what: str, total: int) -> AbstractContextManager[Progress]:
        """Tell people of work that takes long."""
        ...

    def by_epoch(self, value: str) -> EpochRecords:
        """What training noted of its rows at every epoch, ``value`` among it."""
        ...

    def own_logits(self) -> Logits | None:
        """Logits [n, C] of the model whose features they are, where that is the one that is scored; else None."""
        ...

    def own_epochs(self, value: str) -> EpochRecords | None:
        """What its training noted of its rows at every epoch, ``value`` among it; None where there is none."""
        ...

    def out_of_fold(self) -> FoldRecords:
        """Logits of train rows by models that were trained without them."""
        ...

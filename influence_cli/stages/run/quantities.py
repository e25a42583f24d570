"""What the store holds of rows: one table of quantities, over which planning and filling loop.

A quantity has one folder for each of its parts: outputs for every member, tangents for every direction, and so on.  A
new quantity is one class and one row (``register``); methods take it by naming it in ``needs``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from influence_cli.data.manifest import Rows
from influence_cli.stages.run import names
from influence_cli.stages.run.row_values import ROW_VALUE_BYTES, lacking_values, values_at
from influence_cli.stages.run.run import Member, Run
from influence_cli.stages.run.session import Session
from influence_cli.store import Keys, ShardFolder, fingerprint
from influence_cli.store.keys import KEY_BYTES
from influence_cli.store.layout import add_sharded
from influence_cli.store.shards import unique

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
        return session.folder(self.name, part.name, {**self.about(run), **session.about(run, part.member)})

    def lacking(self, run: Run, session: Session, part: Part) -> Keys:
        """Keys [n, 16] of the training rows that a part lacks."""
        wanted = self.wanted(run, part)
        return wanted[self.folder(run, session, part).missing(wanted)]

    def wanted(self, run: Run, part: Part) -> Keys:
        """Keys [n, 16] of the distinct training rows that a part is to have."""
        return run.payload_keys if self.key == "payload" else run.row_keys


class Outputs(Quantity):
    """Logits at every member."""

    name, key, computed_in = "outputs", "payload", "forward"

    def row_bytes(self, run: Run) -> int:
        """Key and logits."""
        assert run.model is not None
        return KEY_BYTES + run.model.num_classes * (8 if run.spec.precision == "fp64" else 4)

    def parts(self, run: Run, member: Member) -> list[Part]:
        """One."""
        return [Part(self.name, names.outputs(member), member)]

    def folder(self, run: Run, session: Session, part: Part) -> ShardFolder:
        """By member."""
        return session.outputs(run, part.member)


class Tangents(Outputs):
    """Derivatives of the logits along directions, and on a sample of rows along those of half of the target."""

    name = "tangents"

    def parts(self, run: Run, member: Member) -> list[Part]:
        """One for every direction; methods and objectives that share a direction share its tangents."""
        methods = run.methods_at(member)
        whole = [names.along(run, name, member, objective) for objective in run.objectives for name in methods]
        found = [Part(self.name, name, member) for name in dict.fromkeys(whole)]
        half_of = run.half_method()
        if half_of is not None and member == run.half_member():
            halves = {o: names.along(run, half_of, member, o, half=True) for o in run.objectives}
            found += [Part(self.name, name, member, of=objective, half=True) for objective, name in halves.items()]
        return found

    def folder(self, run: Run, session: Session, part: Part) -> ShardFolder:
        """By direction."""
        return session.tangents(run, part.name)

    def wanted(self, run: Run, part: Part) -> Keys:
        """All, or the sample on which halves are compared."""
        return run.half_sample() if part.half else run.payload_keys


class RowValues(Quantity):
    """A number of each row's own gradient, for methods that need one."""

    name, key, computed_in = "row_values", "row", "values"

    def row_bytes(self, run: Run) -> int:
        """Keys of row and payload, and the value."""
        return ROW_VALUE_BYTES

    def parts(self, run: Run, member: Member) -> list[Part]:
        """One for every value, under the first of the methods that share it."""
        found: dict[str, Part] = {}
        for method in values_at(run, member):
            name = names.row_value(run, method, member)[0]
            found.setdefault(name, Part(self.name, name, member, of=method))
        return list(found.values())

    def folder(self, run: Run, session: Session, part: Part) -> ShardFolder:
        """By what the value is of."""
        return session.row_values(run, part.of, part.member)

    def lacking(self, run: Run, session: Session, part: Part) -> Keys:
        """Those that are not stored.

        Raises:
            UsageError: they are more than the method can compute it of.
        """
        return lacking_values(run, session, part.of, part.member)


@dataclass(frozen=True)
class ChainPart(Part):
    """Moments of rows' losses over the draws of one chain, with one objective beside them."""

    method: str = ""
    number: int = 0  # of the chain
    objective: str = ""


def chain_parts(run: Run, method: str, objective: str) -> list[ChainPart]:
    """The chains of a method, with one objective beside the rows' losses."""
    (member,) = run.members_of[method]
    return [
        ChainPart(
            "traces", names.chain(run, method, member, k, objective), member, f"{method} chain {k + 1}, {objective}",
            method=method, number=k, objective=objective,
        )
        for k in run.samplers[method].numbers
    ]  # fmt: skip


class Traces(Quantity):
    """Moments of rows' losses over draws of the parameters, and of their products with Phi at the draws.

    There is one part for each chain and objective.  Phi at every draw, and how a chain was drawn, are in a file of the
    same name (``Store.chains``): without it the rows' moments are worth nothing.
    """

    name, key, computed_in = "traces", "row", "chains"

    def row_bytes(self, run: Run) -> int:
        """Keys of row and payload, a mean and two sums."""
        return 2 * KEY_BYTES + 3 * 8

    def parts(self, run: Run, member: Member) -> list[Part]:
        """One for every chain and objective of every method that draws from around the member."""
        drawing = [name for name in run.samplers if member in run.members_of[name]]
        return [part for name in drawing for objective in run.objectives for part in chain_parts(run, name, objective)]

    def lacking(self, run: Run, session: Session, part: Part) -> Keys:
        """Those that are not stored; all of them where nothing is known of the chain."""
        known = session.store.chains.meta(part.name) is not None
        return super().lacking(run, session, part) if known else self.wanted(run, part)


class RowGradients(Quantity):
    """Rows' own gradients, of training and target rows, where a run asks for them (``gradient_plan``)."""

    name, key, computed_in = "gradients", "row", "gradients"

    def parts(self, run: Run, member: Member) -> list[Part]:
        """None at a method's members: they are asked for by themselves."""
        return []


QUANTITIES: dict[str, Quantity] = {q.name: q for q in (Outputs(), Tangents(), RowValues(), Traces(), RowGradients())}


def register(quantity: Quantity) -> None:
    """Add a quantity to the table, and its folder to those that the store looks after."""
    add_sharded(quantity.name)
    QUANTITIES[quantity.name] = quantity


def first_rows(rows: Rows, keys: Keys) -> dict[int, int]:
    """The first manifest row of every distinct key [n, 16] of rows, and where it stands among them."""
    return {int(rows.index[k]): int(k) for k in unique(keys)}

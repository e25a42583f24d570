"""What the store holds of rows: one table of quantities, over which planning and filling loop.

A quantity has one folder for each of its parts: outputs for every member, tangents for every direction, and so on.  A
new quantity is one class and one row (``register``); methods take it by naming it in ``needs``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from influence_cli.data.manifest import Rows
from influence_cli.stages.run import names
from influence_cli.stages.run.quantity import OfRows, Part, Quantity
from influence_cli.stages.run.row_values import ROW_VALUE_BYTES, lacking_values, values_at
from influence_cli.stages.run.run import Member, Run
from influence_cli.stages.run.session import Session
from influence_cli.store import Keys, ShardFolder
from influence_cli.store.keys import KEY_BYTES, taken
from influence_cli.store.layout import add_sharded
from influence_cli.store.shards import positions, unique

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.engines.point import Point

OF_TARGET = "features of target rows"


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
        known = session.store.chains.read(part.name) is not None  # with its values: damaged ones are drawn again
        return super().lacking(run, session, part) if known else self.wanted(run, part)


class Features(Quantity):
    """What the layer that makes the logits is given: of training rows, and of target rows that they are held against.

    Of images at another model than the one that is scored, the means of its last maps, and the deviations from these,
    stand in its place.

    Parameters that gradients are taken in change nothing of it, nor does bf16: such runs have it in float32.
    """

    name, key, mapped = "features", "payload", True

    def about(self, run: Run) -> dict[str, Any]:
        """What is taken in place of the features that make the logits at one size: sizes, and maps."""
        about = {"smaller": list(run.smaller), "maps": [run.maps, "means and deviations"] if run.maps else 0}
        return {k: v for k, v in about.items() if v}

    def of_rows(self, run: Run, point: Point) -> OfRows:
        """One forward pass for each size."""
        from influence_cli.engines.features import Features as FeaturesOf

        features = FeaturesOf(point, run.smaller, run.maps)
        return lambda x, y: {"features": features.of(x)}

    def check(self, run: Run, point: Point) -> None:
        """Look for the layer on a few rows.

        Raises:
            NoFeatures: there is none, or a method cannot work with so many features as it has.
        """
        from influence_cli.engines.features import ROWS
        from influence_cli.engines.features import Features as FeaturesOf

        if point.few is not None:
            self._check_width(run, FeaturesOf(point, run.smaller, run.maps).of(point.few[:ROWS]).shape[1])

    def row_bytes(self, run: Run) -> int:
        """Key and features.

        Raises:
            NoFeatures: the model has none, or a method cannot work with so many.
        """
        from influence_cli.engines.features import width_of

        assert run.model is not None
        width = (1 + len(run.smaller)) * width_of(run.model, run.maps)
        self._check_width(run, width)
        return KEY_BYTES + width * (8 if run.spec.precision == "fp64" else 4)

    def _check_width(self, run: Run, width: int) -> None:
        for name, method in run.methods.items():
            if method.needs == self.name:
                method.check_width(name, width)

    def parts(self, run: Run, member: Member) -> list[Part]:
        """One folder: its training rows, and its target rows where a method asks for them."""
        if run.backbone is not None:  # they are of another model than the member's (``backbone_run``)
            return []
        found = super().parts(run, member)
        asking = [m for n, m in run.methods.items() if m.needs == self.name and member in run.members_of.get(n, ())]
        if any(m.needs_target() for m in asking):
            found += [Part(self.name, part.name, member, of=OF_TARGET) for part in found]
        return found

    def rows(self, run: Run, part: Part) -> Rows:
        """Training or target rows."""
        return run.target if part.of == OF_TARGET else run.train

    def wanted(self, run: Run, part: Part) -> Keys:
        """All; target rows that are training rows are those."""
        if part.of != OF_TARGET:
            return run.payload_keys
        keys = run.target.payload_keys
        keys = taken(keys, unique(keys))
        return keys[positions(keys, run.payload_keys) < 0]


class RowGradients(Quantity):
    """Rows' own gradients, of training and target rows, where a run asks for them (``gradient_plan``)."""

    name, key, computed_in = "gradients", "row", "gradients"

    def parts(self, run: Run, member: Member) -> list[Part]:
        """None at a method's members: they are asked for by themselves."""
        return []


class TokenScores(Quantity):
    """Losses and scores of the tokens of texts along a direction, where a run asks for them (``score.tokens``).

    Ragged by token: where it stands in the text, its number, its loss, and the derivative of that along the direction.
    """

    name, key, computed_in = "tokens", "payload", "tokens"

    def parts(self, run: Run, member: Member) -> list[Part]:
        """None at a method's members: they are asked for by themselves, and of few rows."""
        return []

    def folder(self, run: Run, session: Session, part: Part) -> ShardFolder:
        """By direction."""
        about = {"params": run.spec.params, "objectives": list(run.objectives), "direction": part.name}
        return session.folder(self.name, part.name, about)


class PositionScores(TokenScores):
    """The same, with the part of the row's score that enters at the token's position in place of that derivative."""

    name = "positions"


class TunedHead(Quantity):
    """A value of each row's gradient in the last layer, tuned on half of the target rows (``curvature.tuned_head``)."""

    name, key = "tuned_head", "row"

    def about(self, run: Run) -> dict[str, Any]:
        """The target rows, and how the layer is tuned."""
        method = next(m for m in run.methods.values() if m.needs == self.name)
        return {"target": run.target.fingerprint(), "loss": run.loss_name, **asdict(method)}

    def of_rows(self, run: Run, point: Point) -> OfRows:
        """The layer is tuned with the first rows."""
        made: list[Any] = []

        def values(x: Tensor, y: Tensor) -> dict[str, Tensor]:
            if not made:
                from influence_cli.curvature import tuned_head

                assert run.model is not None
                about = self.about(run)
                made.append(
                    tuned_head.TunedHead(point, run.model, run.target, run.row_loss, about["seed"], about["l2"], len(y))
                )
            return {"value": made[0].values(x, y)}

        return values

    def row_bytes(self, run: Run) -> int:
        """Keys of row and payload, and the value."""
        return ROW_VALUE_BYTES


EVERY = (
    *(Outputs(), Tangents(), RowValues(), Traces(), RowGradients(), Features(), TunedHead()),
    *(TokenScores(), PositionScores()),
)
QUANTITIES: dict[str, Quantity] = {q.name: q for q in EVERY}


def register(quantity: Quantity) -> None:
    """Add a quantity to the table, and its folder to those that the store looks after."""
    add_sharded(quantity.name)
    QUANTITIES[quantity.name] = quantity

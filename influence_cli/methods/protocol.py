"""What a method is.  Letters used everywhere: n rows, k objectives, d parameters, C classes, M members, m target rows.

A method turns what the store holds of the rows into scores (``score``).  ``needs`` names the quantity (see
``stages.run.quantities``) that it takes, or ``nothing``.

A **linear** method maps a direction q to a direction u = P q at each of its members; the score of a row is the mean
over members of ``<grad l_i, u>``, which the engine returns as logit tangents.  An **output** method is a value of
a row's logits and label; a **row** method one of a row's own gradient.  Linear methods whose scores are divided by the
size of a row's own gradient need such a **row value** too.  Positive scores always mean: the row helps.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.classes import class_count
from influence_cli.errors import UsageError
from influence_cli.methods.stored import Facts, Floats, Index, Logits, Place, Stored
from influence_cli.model.losses import CROSS_ENTROPY, RowLoss

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.data.manifest import Rows
    from influence_cli.engines.layerwise.blocks import Block
    from influence_cli.model.checkpoints import Trajectory

Kind = Literal["signed", "ranking"]
Labels = NDArray[np.int64]
Columns = Floats  # [d, k]: k directions, flat in the order of the curvature's layout
OfBlocks = Callable[["list[Block]"], "Tensor"]  # the blocks of a batch of b rows to a value of each, float64 [b]


@dataclass(frozen=True, eq=False)
class BestLabel:
    """The label with which each of n rows would score highest, and that score."""

    labels: Labels  # [n]
    scores: Floats  # [n]

    @staticmethod
    def of(rows: int) -> BestLabel:
        """Room for so many rows."""
        return BestLabel(np.zeros(rows, dtype=np.int64), np.full(rows, np.nan))

    def put(self, some: Index, by_label: Floats) -> None:
        """Take the scores [b, C] of some rows with each label."""
        self.labels[some], self.scores[some] = by_label.argmax(axis=1), by_label.max(axis=1)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of n rows, positive where the row helps, with what they are the mean of."""

    values: Floats  # [n]
    objective: str | None = None  # what they are for; None: a value of the row itself
    by_member: Floats | None = None  # [M, n]
    weights: tuple[float, ...] = ()  # of the members
    best: BestLabel | None = None  # the label with which each row would score highest
    effect: bool = False  # whether values / n estimate the rise of Phi on removal
    facts: Facts = field(default_factory=dict)  # what else the method found, for provenance
    logits: Floats | None = None  # [n, C]: of models that have not seen the rows, better to relabel by than the model's
    no_score: str = ""  # why rows may have none, where that is no trouble: it follows "12 of 400 rows"
    excused: NDArray[np.bool_] | None = None  # the rows [n] of which that is so; None: all that have none
    also: dict[str, NDArray[Any]] = field(default_factory=dict)  # more columns [n]: labels (-1: none) or texts
    times: float = 1.0  # values are so many times the mean over members: where they are a sum, the weights' sum


@dataclass(frozen=True)
class Growth:
    """When an ensemble has enough members: its lowest rows are, in all likelihood, those of endlessly many members.

    ``share`` of the rows are the lowest; ``stability`` is the Jaccard similarity that its set is to have, with 95%
    confidence, with the set of an ensemble without end.
    """

    share: float
    stability: float
    least: int
    most: int


@dataclass(frozen=True)
class RowValue:
    """A value of every row's own gradient g_i, stored by payload and label; methods whose ``about`` is equal share it.

    A sum over blocks of ``of_block``, or g_i^T P g_i with P of the method named ``solver``: it has the options of that
    method in the run, but for ``options``.  ``quadratic``: of c g_i it is c^2 times that of g_i, as g_i^T P g_i is.
    """

    about: Facts  # what it is, for its fingerprint
    of_block: Callable[[Block], Tensor] | None = None
    solver: str | None = None
    options: Facts = field(default_factory=dict)
    quadratic: bool = False


@dataclass(frozen=True)
class Method:
    """One scoring method, whose options are its dataclass fields; what it does unless it says otherwise."""

    needs: ClassVar[str]
    kind: ClassVar[Kind]
    effect: ClassVar[bool] = False  # whether score/n estimates the rise of Phi on removal
    of_training: ClassVar[str] = ""  # what `retrain` must have noted of the rows: epochs, or folds
    fitted_curvature: ClassVar[bool] = False  # whether its directions are u = P q with P fitted on the fit rows
    measures: ClassVar[bool] = False  # whether it is asked for objectives, which are measured on target rows
    trains: ClassVar[bool] = False  # whether it goes on training, on the fit rows
    phi_at_members: ClassVar[bool] = False  # whether it needs the objective's value at each of its members

    def places(self, trajectory: Trajectory, seed: int, params: str) -> list[Place]:
        """Where its members take gradients, with their weights: one member, the final checkpoint."""
        return [Place(trajectory.final)]

    def growth(self) -> Growth | None:
        """When to stop adding members, where their number is decided by what they say; None: it is known."""
        return None

    def row_value(self, relative: bool = False) -> RowValue | None:
        """The value of every row's own gradient that it needs, if any."""
        return None

    def needs_target(self) -> bool:
        """Whether it takes anything of the target rows."""
        return self.measures

    def depends_on_others(self) -> bool:
        """Whether a row's score depends on which other training rows are scored with it."""
        return False

    def pairs(self, train: int, target: int) -> int:
        """Of how many pairs of rows ``score`` takes a distance, which a plan counts."""
        return 0

    def check_run(self, name: str, loss: RowLoss, train: int, target: int) -> None:
        """Refuse, before any work, a run of so many rows that it cannot score; ``name`` is its own."""

    def check_width(self, name: str, width: int) -> None:
        """Refuse, before any row is run, so many features of a row that it cannot work with them."""

    def check_rows(self, rows: int) -> None:
        """Refuse more rows than it can be computed for; any number will do."""

    def check_loss(self, loss: RowLoss, precision: str) -> None:
        """Refuse a row loss or a precision that it cannot take; any will do."""

    def of_unit_direction(self) -> bool:
        """Whether scores are divided by the length of q too."""
        return False

    def divided(self, scores: Floats, values: Floats | None, length: float | None) -> Floats:
        """Scores [n] over the root of the values [n] of the rows' own gradients and, for the cosine, over |q|.

        Without |q| they are relative scores: 0/0 where a row's own gradient is zero, which is no score (NaN).
        """
        if values is None:
            return scores
        found = over_own_size(scores, values)
        if length is None:
            return np.where(values == 0.0, np.nan, found)
        return found / length if length > 0 else 0.0 * found

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        """Scores of the rows from what is stored, for each objective or once."""
        raise NotImplementedError


@dataclass(frozen=True)
class Linear(Method):
    """A method of the form ``<grad l_i, P q>`` with P the identity unless overridden."""

    needs: ClassVar[str] = "tangents"
    kind: ClassVar[Kind] = "signed"
    measures: ClassVar[bool] = True
    relative: ClassVar[bool] = False  # whether it has g_i^T P g_i, by whose root --relative divides
    with_self_influence: ClassVar[str] = "--method ip"  # what to use in place of one that has none

    def row_value(self, relative: bool = False) -> RowValue | None:
        """The value by whose root every row's score is divided, or None; ``relative``: g_i^T P g_i is asked for.

        Raises:
            UsageError: the method has none.
        """
        if relative:
            what = "--relative needs g^T P g of every row, which this method does not have"
            raise UsageError(what, fix=f"use {self.with_self_influence}")
        return None

    def summed(self) -> bool:
        """Whether scores are the weighted sum over members, not their weighted mean."""
        return False

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        """For each objective the weighted mean, or sum, over members of ``< dl_i / dz_i, t_i >``."""
        return [self._score_for(objective, stored, rows, loss) for objective in stored.objectives]

    def _score_for(self, objective: str, stored: Stored, rows: Rows, loss: RowLoss) -> Scores:
        members, values = stored.members, [stored.values(member) for member in stored.members]
        weights, plain = tuple(member.weight for member in members), all(own is None for own in values)
        times, own = times_the_mean(self, weights), np.empty((len(members), len(rows)))
        best = BestLabel.of(len(rows)) if plain and loss.by_class else None
        classes = class_count(rows.manifest.classes, rows.labels) if loss.by_class else 0

        def by_label_at(k: int, some: Index) -> Floats | None:
            at = stored.logits(members[k], some), stored.tangents(members[k], objective, some)
            with np.errstate(invalid="ignore", over="ignore"):
                own[k, some], by_label = loss.scores(*at, rows.labels[some])
            return by_label

        for some in stored.blocks():
            each = (by_label for k in range(len(members)) if (by_label := by_label_at(k, some)) is not None)
            if best is None:
                collections.deque(each, maxlen=0)
            else:
                best.put(some, times * weighted_mean(each, weights)[:, :classes])
        for k, member in enumerate(members):
            length = stored.length(member, objective) if self.of_unit_direction() else None
            own[k] = self.divided(own[k], values[k], length)
        mean = times * weighted_mean(own, weights)
        return Scores(mean, objective, own, weights, best, self.effect and plain, times=times)


def is_summed(method: Method) -> bool:
    """Whether a method's scores are the weighted sum over members, not their weighted mean."""
    return isinstance(method, Linear) and method.summed()


def times_the_mean(method: Method, weights: Sequence[float]) -> float:
    """How many times their weighted mean over members a method's scores are: 1, or the sum of weights where summed."""
    return sum(weights) if is_summed(method) else 1.0


def weighted_mean(members: Iterable[Floats], weights: Sequence[float]) -> Floats:
    """The mean over members, exact where they are equal (a plain mean of equal floats is off by an ulp)."""
    each = iter(members)
    first = next(each)
    with np.errstate(invalid="ignore"):
        return first + sum(w * (m - first) for w, m in zip(weights[1:], each, strict=True)) / sum(weights)


def over_own_size(scores: Floats, values: Floats) -> Floats:
    """Scores s / sqrt(v); 0 where v is 0, NaN where it is negative, not finite, or too small to be divided by.

    >>> over_own_size(np.array([3.0, 0.0, 1.0, 1e-200]), np.array([4.0, 0.0, -1.0, 5e-324])).tolist()
    [1.5, 0.0, nan, nan]
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        known = values >= np.finfo(np.float64).tiny  # below, most digits are lost
        return np.where(values == 0.0, 0.0 * scores, np.where(known, scores / np.sqrt(values), np.nan))


@dataclass(frozen=True)
class OutputMethod(Method):
    """A ranking-only value of a row's logits [n, C] and label [n]; suspicious rows have the lowest scores."""

    needs: ClassVar[str] = "outputs"
    kind: ClassVar[Kind] = "ranking"

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        """The value of each row at the first member."""
        found = np.empty(len(rows))
        for some in stored.blocks():
            found[some] = self.of_outputs(stored.logits(stored.members[0], some), rows.labels[some], loss)
        return [Scores(found)]

    def of_outputs(self, logits: Logits, labels: Labels, loss: RowLoss = CROSS_ENTROPY) -> Floats:
        """Scores [n], under the run's row loss."""
        raise NotImplementedError


@dataclass(frozen=True)
class RowMethod(Method):
    """A ranking-only value of a row's own loss gradient: minus its ``row_value``, summed over members by weight."""

    needs: ClassVar[str] = "rows"
    kind: ClassVar[Kind] = "ranking"

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        """Minus the value of each row."""
        total: Floats | None = None
        for member in stored.members:
            values = stored.values(member)
            assert values is not None
            total = member.weight * values if total is None else total + member.weight * values
        assert total is not None
        return [Scores(-total)]

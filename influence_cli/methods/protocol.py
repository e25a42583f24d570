"""What a method is.  Letters used everywhere: n rows, k objectives, d parameters, C classes, M members, m target rows.

A **linear** method maps a direction q to a direction u = P q at each of its members; the score of a row is the mean
over members of ``<grad l_i, u>``, which the engine returns as logit tangents.  An **output** method is a value of
a row's logits and label; a **row** method one of a row's own gradient.  A **free** method needs none of them.
Linear methods whose scores are divided by the size of a row's own gradient need such a **row value** too.
Positive scores always mean: the row helps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.model.dropout import Dropout
from influence_cli.model.losses import CROSS_ENTROPY, RowLoss

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.engines.layerwise.layers import Block

Needs = Literal["tangents", "outputs", "rows", "nothing"]
Kind = Literal["signed", "ranking"]
Columns = NDArray[np.float64]  # [d, k]: k directions, flat in the order of the curvature's layout
Facts = dict[str, Any]  # plain values for metadata, provenance and a line of the summary
OfBlocks = Callable[["list[Block]"], "Tensor"]  # the blocks of a batch of b rows to a value of each, float64 [b]


class Method(Protocol):
    """One scoring method; its options are its dataclass fields."""

    needs: ClassVar[Needs]
    kind: ClassVar[Kind]
    effect: ClassVar[bool]  # whether score/n estimates the rise of Phi on removal


@dataclass(frozen=True)
class Growth:
    """When an ensemble has enough members: its lowest rows are, in all likelihood, those of endlessly many members.

    ``share`` of the rows are the lowest; ``stability`` is the Jaccard similarity that its set is to have, with 95 %
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
    method in the run, but for ``options``.
    """

    about: Facts  # what it is, for its fingerprint
    of_block: Callable[[Block], Tensor] | None = None
    solver: str | None = None
    options: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Linear:
    """A method of the form ``<grad l_i, P q>`` with P the identity unless overridden."""

    needs: ClassVar[Needs] = "tangents"
    kind: ClassVar[Kind] = "signed"
    effect: ClassVar[bool] = False
    relative: ClassVar[bool] = False  # whether it has g_i^T P g_i, by whose root --relative divides

    def points(self, seed: int, params: str) -> list[Dropout | None]:
        """The members, as points where gradients are taken: None is the checkpoint itself."""
        return [None]

    def growth(self) -> Growth | None:
        """When to stop adding members, where their number is decided by what they say; ``points`` are then the most."""
        return None

    def row_value(self, relative: bool) -> RowValue | None:
        """The value by whose root every row's score is divided, or None; ``relative``: g_i^T P g_i is asked for.

        Raises:
            UsageError: the method has none.
        """
        if relative:
            raise no_self_influence("--method ip")
        return None

    def of_unit_direction(self) -> bool:
        """Whether scores are divided by the length of q too."""
        return False


def no_self_influence(instead: str) -> UsageError:
    """What is said where scores cannot be divided by the root of self-influence."""
    return UsageError("--relative needs g^T P g of every row, which this method does not have", fix=f"use {instead}")


@dataclass(frozen=True)
class OutputMethod:
    """A ranking-only value of a row's logits [n, C] and label [n]; suspicious rows have the lowest scores."""

    needs: ClassVar[Needs] = "outputs"
    kind: ClassVar[Kind] = "ranking"
    effect: ClassVar[bool] = False

    def score(
        self, logits: NDArray[np.floating], labels: NDArray[np.int64], loss: RowLoss = CROSS_ENTROPY
    ) -> NDArray[np.float64]:
        """Scores [n], under the run's row loss."""
        raise NotImplementedError


@dataclass(frozen=True)
class RowMethod:
    """A ranking-only value of a row's own loss gradient."""

    needs: ClassVar[Needs] = "rows"
    kind: ClassVar[Kind] = "ranking"
    effect: ClassVar[bool] = False

    def row_value(self) -> RowValue:
        """The value."""
        raise NotImplementedError

    def check_rows(self, rows: int) -> None:
        """Refuse more rows than their values can be computed of.

        Raises:
            UsageError: they are too many; says what to do.
        """

    def score(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores [n] of stored values [n]."""
        return -values


@dataclass(frozen=True)
class FreeMethod:
    """A value that needs no model."""

    needs: ClassVar[Needs] = "nothing"
    kind: ClassVar[Kind] = "ranking"
    effect: ClassVar[bool] = False

    def score(self, ids: list[str], seed: int) -> NDArray[np.float64]:
        """Scores [n]."""
        raise NotImplementedError

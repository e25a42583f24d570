"""What a method is.  Letters used everywhere: n rows, k objectives, d parameters, C classes, M members, m target rows.

A **linear** method maps a direction q to a direction u = P q at each of its members; the score of a row is the mean
over members of ``<grad l_i, u>``, which the engine returns as logit tangents.  An **output** method is a value of
a row's logits and label.  A **free** method needs neither.  Positive scores always mean: the row helps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from influence_cli.model.dropout import Dropout
from influence_cli.model.losses import CrossEntropy, RowLoss

CROSS_ENTROPY = CrossEntropy()

Needs = Literal["tangents", "outputs", "nothing"]
Kind = Literal["signed", "ranking"]


class Method(Protocol):
    """One scoring method; its options are its dataclass fields."""

    needs: ClassVar[Needs]
    kind: ClassVar[Kind]
    effect: ClassVar[bool]  # whether score/n estimates the rise of Phi on removal


@dataclass(frozen=True)
class Linear:
    """A method of the form ``<grad l_i, P q>`` with P the identity unless overridden."""

    needs: ClassVar[Needs] = "tangents"
    kind: ClassVar[Kind] = "signed"
    effect: ClassVar[bool] = False

    def points(self, seed: int, params: str) -> list[Dropout | None]:
        """The members, as points where gradients are taken: None is the checkpoint itself."""
        return [None]


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
class FreeMethod:
    """A value that needs no model."""

    needs: ClassVar[Needs] = "nothing"
    kind: ClassVar[Kind] = "ranking"
    effect: ClassVar[bool] = False

    def score(self, ids: list[str], seed: int) -> NDArray[np.float64]:
        """Scores [n]."""
        raise NotImplementedError

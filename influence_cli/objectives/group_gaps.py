"""Fairness: how far the groups of the target rows are apart in what the model gives them.

With a term a set of rows and a class c, and mu_a the mean over those rows of group a of the soft prediction p(c | x),

    fairness           one term: all rows                                     (demographic parity)
    equal-opportunity  one term: the rows with label c
    equalised-odds     two terms: the rows with label c, and those with another; their sum (or the larger)
    eo-loss            mean loss of the rows of group 0 with label c less that of group 1: signed, two groups

and the gap of a term as in ``maths.fairness.smooth_gap``; Phi is their mean over the classes c: class 1 of two, all of
more, or the favourable one that is named.  Phi is a function of sums over cells (group, label), so that its gradient
is that of one weighted sum of row values (methods.md 3.2): ``phi`` gives the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from influence_cli.errors import UsageError, nearest
from influence_cli.maths.fairness import AGGREGATES, Floats, classes_of, smooth_gap
from influence_cli.objectives.protocol import Need
from influence_cli.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.model.losses import RowLoss


@dataclass(frozen=True)
class Term:
    """One gap: the labels whose rows it is among, and the column of the row values that is averaged."""

    name: str
    labels: tuple[int, ...]
    column: int


@dataclass(frozen=True)
class GroupGap:
    """What the objectives about groups share."""

    needs: ClassVar[frozenset[Need]] = frozenset({"groups"})
    by_label: ClassVar[bool] = False  # whether cells are of a group and a label, or of a group
    sign: ClassVar[float] = 1.0  # of the gap D that is reported: the second group's mean less the first's, or -1

    column: str | None = setting(None, "column with the groups; without one the column that --group names")
    favourable: int | str | None = setting(
        None, "the class that is good to get, by name or number; without one class 1 of two, the mean over all of more"
    )
    tau: float = setting(1e-3, "smoothing of the absolute value, and what counts as parity")
    signed: bool = setting(False, "group 1 less group 0, in the order of their names")
    aggregate: str = setting("pairs", "more than two groups: pairs, variance or max")

    def __post_init__(self) -> None:
        if self.aggregate not in AGGREGATES:
            raise ValueError(f"aggregate {self.aggregate!r} is unknown: one of {', '.join(AGGREGATES)}")
        if not self.tau > 0:
            raise ValueError(f"tau is {self.tau:g} and must be positive")

    def of_classes(self, name: str, classes: Sequence[str] | None) -> Self:
        """The same, with the number of the favourable class where it is named.  Raises UsageError: no class is so."""
        if not isinstance(self.favourable, str):
            return self
        if self.favourable not in (classes or ()):
            fix = nearest(self.favourable, list(classes)) if classes else "name it by its number: classes have no names"
            raise UsageError(f"{name}.favourable={self.favourable} is no class of the manifest", fix=fix)
        return replace(self, favourable=list(classes or ()).index(self.favourable))

    @property
    def _favourable(self) -> int | None:
        assert not isinstance(self.favourable, str)  # see ``of_classes``
        return self.favourable

    def check_groups(self, name: str, column: str, groups: tuple[str, ...], classes: int, where: str) -> None:
        """Refuse groups of the target rows, or a number of classes, that the options do not fit.

        Raises:
            UsageError: a favourable class that is none, or a signed gap between other than two groups.
        """
        if self._favourable is not None and not 0 <= self._favourable < classes:
            fix = f"name one of 0 to {classes - 1}"
            raise UsageError(f"{name}.favourable={self.favourable} is no class of the model", fix=fix)
        if self.signed and len(groups) != 2:
            raise UsageError(
                f"{name} is signed, which is between two groups, and column {column} has {len(groups)}: "
                f"{', '.join(groups[:10])}",
                where=where,
                fix=self._fix_of_signed(name),
            )

    def _fix_of_signed(self, name: str) -> str:
        return f"name a column with two groups, or leave {name}.signed out"

    def terms(self, classes: int) -> list[Term]:
        """The gaps of a model with so many classes."""
        every = tuple(range(classes))
        return [Term(f"class {c}", every, c) for c in classes_of(classes, self._favourable)]

    def values(self, logits: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
        """What is averaged of every row [m, C]: its probabilities."""
        return logits.softmax(1)

    def gap(self, means: Floats, counts: Floats) -> tuple[float, Floats]:
        """One term's gap and its slope in the group means [G]."""
        return smooth_gap(means, counts, self.tau, self.aggregate, self.signed)

    def join(self, gaps: Floats) -> tuple[float, Floats]:
        """Phi of the terms' gaps, and its slope in each: their mean."""
        return float(gaps.mean()), np.full(len(gaps), 1.0 / len(gaps))

    def phi(self, sums: Floats, counts: Floats) -> tuple[float, Floats]:
        """Phi of the sums of values [G, C, V] over cells (group, label) of ``counts`` [G, C], and its slope in them."""
        terms = self.terms(counts.shape[1])
        gaps, slopes = np.zeros(len(terms)), np.zeros((len(terms), *sums.shape))
        for k, term in enumerate(terms):
            labels = list(term.labels)
            m = counts[:, labels].sum(axis=1)
            gaps[k], slope = self.gap(sums[:, labels, term.column].sum(axis=1) / m, m)
            slopes[k][:, labels, term.column] = (slope / m)[:, None]
        value, weights = self.join(gaps)
        return value, np.tensordot(weights, slopes, 1)


@dataclass(frozen=True)
class Fairness(GroupGap):
    """Demographic parity with soft predictions."""


@dataclass(frozen=True)
class EqualOpportunity(GroupGap):
    """Demographic parity among the rows of the favourable class."""

    by_label: ClassVar[bool] = True

    def terms(self, classes: int) -> list[Term]:
        """The gaps of a model with so many classes."""
        return [Term(f"class {c}, label {c}", (c,), c) for c in classes_of(classes, self._favourable)]


@dataclass(frozen=True)
class EqualisedOdds(GroupGap):
    """Demographic parity among the rows of the favourable class, and among all others."""

    worst: bool = setting(False, "the larger of the two, not their sum")

    by_label: ClassVar[bool] = True

    def terms(self, classes: int) -> list[Term]:
        """The gaps of a model with so many classes, two for each class in turn."""
        out: list[Term] = []
        for c in classes_of(classes, self._favourable):
            others = tuple(k for k in range(classes) if k != c)
            name = f"label {others[0]}" if len(others) == 1 else f"label not {c}"
            out += [Term(f"class {c}, label {c}", (c,), c), Term(f"class {c}, {name}", others, c)]
        return out

    def join(self, gaps: Floats) -> tuple[float, Floats]:
        """The mean over classes of the sum, or of the larger, of the two gaps."""
        pairs = gaps.reshape(-1, 2)
        chosen = np.ones_like(pairs)
        if self.worst:
            chosen = np.eye(2)[pairs.argmax(axis=1)]
        return float((chosen * pairs).sum(axis=1).mean()), (chosen / len(pairs)).ravel()


@dataclass(frozen=True)
class LossGap(EqualOpportunity):
    """The gap in mean loss among the rows of the favourable class, group 0 less group 1 (Chhabra et al. 2024, code)."""

    sign: ClassVar[float] = -1.0

    signed: bool = setting(True, "it has no other form")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.signed:
            raise ValueError("the loss gap is signed")

    def _fix_of_signed(self, name: str) -> str:
        return "name a column with two groups"

    def terms(self, classes: int) -> list[Term]:
        """The gaps of a model with so many classes."""
        return [Term(f"loss, label {t.column}", t.labels, 0) for t in super().terms(classes)]

    def values(self, logits: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
        """Every row's loss [m, 1]."""
        return loss.rows(logits, labels)[:, None]

    def gap(self, means: Floats, counts: Floats) -> tuple[float, Floats]:
        """Group 0 less group 1, and its slope."""
        value, slope = super().gap(means, counts)
        return -value, -slope

"""What an action is: (rows, scores, budget) -> edits.  Only train rows are edited; ties break by row key."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.store.keys import Keys, nearly_ordered, taken, words_of

BLOCK = 8192  # rows whose places are Python's numbers at once
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

PROPOSAL = "influence_proposal"  # column of a relabelled manifest: the label each row would be given


@dataclass(frozen=True)
class Parity:
    """The gap between groups that the scores are about, as far as it can be foreseen."""

    objective: str
    room: float  # what Phi can fall by, to first order, until there is no gap
    divisor: float | None  # what makes a weighted score an effect on Phi; None: the method estimates none


@dataclass(frozen=True, eq=False)
class Scored:
    """The scored train rows [n]: scores (NaN where null), labels, weights, and what a relabel proposes from."""

    score: Floats
    kind: str  # "signed" or "ranking"
    labels: Any  # int64 classes [n], or as the task of the rows has them
    weights: Floats
    keys: Keys  # of the rows [n, 16]
    groups: Ints | None = None  # sensitive group of every row, -1 where it has none
    more_groups: tuple[Ints, ...] = ()  # the same by further columns
    best_label: Ints | None = None  # of the highest label-counterfactual score; -1 where null
    best_label_gain: Floats | None = None
    model_label: Ints | None = None  # most probable other label: column other_label
    model_probability: Floats | None = None
    parity: Parity | None = None  # where the scores are about groups
    classes: tuple[str, ...] | None = None  # their names, for reasons
    parts: Ints | None = None  # whose sizes edits are to keep; None: the labels, which are classes

    @property
    def strata(self) -> Ints:
        """The class of every row [n], or one number for all where labels are no classes."""
        return self.labels if self.parts is None else self.parts

    def ascending(self) -> Ints:
        """Rows from the most harmful on, ties by row key; rows without a score are left out."""
        return self._ascending

    @functools.cached_property
    def counts(self) -> NDArray[np.bool_]:
        """Which rows [n] are trained on: to edit one of weight 0 would change nothing, and no class rests on it."""
        return self.weights > 0

    def candidates(self) -> Ints:
        """Rows that may be edited: those of ``ascending`` that are trained on."""
        order = self.ascending()
        return order[self.counts[order]]

    @functools.cached_property
    def _ascending(self) -> Ints:
        finite = np.flatnonzero(np.isfinite(self.score))
        score = self.score[finite]
        order, alike = nearly_ordered(_words(score))
        if len(alike):
            some = order[alike]
            keys = words_of(taken(self.keys, finite[some]))
            order[alike] = some[np.lexsort((*reversed(keys), score[some]))]
        return finite[order]


@dataclass(frozen=True, eq=False)
class Edits:
    """What happens to each row [n]: its new label and weight; ``reason`` is empty where nothing does."""

    action: str
    labels: Any
    weights: Floats
    reason: list[str]
    notes: list[str] = field(default_factory=list)
    proposal: Ints | None = None  # relabel: the label proposed for each row, admissible or not; -1 for none
    actions: list[str] | None = None  # what happens to each row [n], where not the same happens to all

    def action_of(self, row: int) -> str:
        """What happens to a row that is edited."""
        return self.action if self.actions is None else self.actions[row]

    @functools.cached_property
    def edited(self) -> Ints:
        """Positions of the edited rows."""
        return np.fromiter(itertools.compress(range(len(self.reason)), self.reason), np.int64)


def _words(values: Floats) -> NDArray[np.uint64]:
    """Whole numbers [n] in the order of real ones.

    >>> np.argsort(_words(np.array([0.5, -2.0, 3.0, -0.1]))).tolist(), len(set(_words(np.array([0.0, -0.0])).tolist()))
    ([1, 3, 0, 2], 1)
    """
    bits = (values + 0.0).view(np.uint64)  # of which -0.0 is none
    sign = np.uint64(1 << 63)
    return bits ^ np.where(bits & sign, ~np.uint64(0), sign)


def each(rows: Ints) -> Iterator[int]:
    """The places of rows in order, for loops that seldom come to the end of them."""
    for first in range(0, len(rows), BLOCK):
        yield from rows[first : first + BLOCK].tolist()


def require_signed(scored: Scored, what: str) -> None:
    """Refuse ranking-only scores where zero has to mean something (UsageError)."""
    if scored.kind != "signed":
        why = f"{what} needs scores whose sign means something; this column is ranking-only"
        raise UsageError(why, fix="use a signed method such as ip")

"""Trim: take out the rows with the smallest scores, up to the budget, guarded by class and group (methods.md 5.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from influence_cli.actions.parity import HELP, check_parity, closing
from influence_cli.actions.protocol import BLOCK, Edits, Ints, Scored, require_signed


@dataclass(frozen=True, eq=False)
class Limit:
    """How many rows a trim may take of every part of the data: ``part`` [n] numbers them, -1 for no part."""

    name: str
    part: Ints
    most: list[int]  # [number of parts]


@dataclass(frozen=True)
class Trim:
    """The k = budget lowest rows get weight 0; rows that have it already are passed over, and are counted nowhere.

    Class guard: no class loses more than max(2 q, q + 0.05) of its rows, where q = k/n, and none falls below
    max(5, a tenth of its size); a blocked row's place goes to the next lowest admissible one.  Where rows have a
    ``group``, or the scores were made by another column of groups, the group guard is the same for groups, and every
    class that a group has keeps a row in it.
    """

    only_negative: bool = field(default=False, metadata={"help": "take out rows with a negative score only"})
    per_class: bool = field(default=False, metadata={"help": "floor(q n_c) rows of every class"})
    guard: bool = field(default=True, metadata={"help": "limit what any class may lose"})
    group_guard: bool = field(default=True, metadata={"help": "limit what any sensitive group may lose"})
    parity: str = field(default="stop", metadata={"help": HELP})

    def __post_init__(self) -> None:
        check_parity(self.parity)

    def propose(self, scored: Scored, budget: int, before: NDArray[np.bool_] | None = None) -> Edits:
        """Edits for up to ``budget`` rows more than those that went ``before`` [n], which have no score any more."""
        if self.only_negative:
            require_signed(scored, "only_negative")
        before = np.zeros(len(scored.labels), dtype=bool) if before is None else before
        limits = self.limits(scored, budget + int(before.sum()))
        left = [_left(limit, before) for limit in limits]
        taken, notes = list[int](), list[str]()
        gap = closing(scored, self.parity, -scored.weights * scored.score, notes)
        blocked = dict.fromkeys((limit.name for limit in limits), 0)
        for i, *parts in _with_parts(scored.candidates(), limits):
            if len(taken) == budget or gap.done or (self.only_negative and scored.score[i] >= 0):
                break
            full = [k for k, part in enumerate(parts) if part >= 0 and left[k][part] <= 0]
            if full:
                blocked[limits[full[0]].name] += 1
                continue
            for k, part in enumerate(parts):
                if part >= 0:
                    left[k][part] -= 1
            taken.append(i)
            gap.take(i)
        said = {name: rows for name, rows in blocked.items() if rows and not (self.per_class and name == "class")}
        notes += [f"the {name} guard passed over {rows} lower rows" for name, rows in said.items()]
        notes += gap.notes(len(taken), budget)
        if len(taken) < budget and not gap.done:
            lift = " (--set trim.guard=false lifts the class guard; --action relabel keeps rows)"
            notes.append(f"{len(taken)} of a budget of {budget} rows could be taken out{lift if said else ''}")
        return self.take(scored, taken, notes)

    def take(self, scored: Scored, taken: list[int], notes: list[str], reason: dict[int, str] | None = None) -> Edits:
        """The edits that take out these rows, with the rank of each by score as its reason."""
        n = len(scored.labels)
        order, rank = scored.ascending(), np.zeros(n, dtype=np.int32 if n < 1 << 31 else np.int64)
        rank[order] = np.arange(1, len(order) + 1, dtype=rank.dtype)
        weights, reasons = scored.weights.copy(), [""] * n
        for i in taken:
            weights[i] = 0.0
            reasons[i] = f"rank {rank[i]} of {n} by score" if reason is None else reason[i]
        return Edits("trim", scored.labels, weights, reasons, notes)

    def limits(self, scored: Scored, budget: int) -> list[Limit]:
        """What every class, every group, and every class within a group may lose."""
        counts = scored.counts
        q = budget / max(1, int(counts.sum()))
        classes = int(scored.strata.max(initial=0)) + 1
        sizes = np.bincount(scored.strata[counts], minlength=classes)
        made: list[Limit] = []
        if self.per_class:
            made.append(Limit("class", scored.strata, [math.floor(q * s + 1e-9) for s in sizes.tolist()]))
        elif self.guard:
            made.append(Limit("class", scored.strata, _allowance(sizes, q)))
        for groups in (scored.groups, *scored.more_groups):
            if groups is None or not self.group_guard or not (groups >= 0).any():
                continue
            inside, many = (groups >= 0) & counts, int(groups.max()) + 1
            made.append(Limit("group", groups, _allowance(np.bincount(groups[inside], minlength=many), q)))
            cell = np.where(groups >= 0, groups * classes + scored.strata, -1)
            most = np.bincount(cell[inside], minlength=many * classes) - 1  # every class that a group has keeps one
            made.append(Limit("class in a group", cell.astype(np.int64), most.tolist()))
        return made


def _with_parts(rows: Ints, limits: Sequence[Limit]) -> Iterator[tuple[int, ...]]:
    """Each row's place with its part by every limit, for a loop that seldom comes to the end of the rows."""
    for first in range(0, len(rows), BLOCK):
        some = rows[first : first + BLOCK]
        yield from zip(some.tolist(), *(limit.part[some].tolist() for limit in limits), strict=True)


def _left(limit: Limit, before: NDArray[np.bool_]) -> list[int]:
    """What is left of a limit after the rows that went before."""
    gone = np.bincount(limit.part[before & (limit.part >= 0)], minlength=len(limit.most))
    return (np.array(limit.most) - gone).tolist()


def _allowance(sizes: np.ndarray, q: float) -> list[int]:
    """How many rows each part may lose."""
    share = max(2 * q, q + 0.05)
    floors = [max(5, math.ceil(s / 10)) for s in sizes.tolist()]
    return [max(0, min(math.floor(share * s + 1e-9), s - f)) for s, f in zip(sizes.tolist(), floors, strict=True)]

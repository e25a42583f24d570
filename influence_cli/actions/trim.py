"""Trim: take out the rows with the smallest scores, up to the budget, guarded by class (methods.md 5.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from influence_cli.actions.protocol import Edits, Scored, require_signed


@dataclass(frozen=True)
class Trim:
    """The k = budget lowest rows get weight 0.

    Class guard: no class loses more than max(2 q, q + 0.05) of its rows, where q = k/n, and none falls below
    max(5, a tenth of its size); a blocked row's place goes to the next lowest admissible one.
    """

    only_negative: bool = field(default=False, metadata={"help": "take out rows with a negative score only"})
    per_class: bool = field(default=False, metadata={"help": "floor(q n_c) rows of every class"})
    guard: bool = field(default=True, metadata={"help": "limit what any class may lose"})

    def propose(self, scored: Scored, budget: int) -> Edits:
        """Edits for up to ``budget`` rows."""
        n = len(scored.labels)
        if self.only_negative:
            require_signed(scored, "only_negative")
        sizes = np.bincount(scored.labels, minlength=1)
        allowed = self._allowance(sizes, budget, n)
        taken: list[tuple[int, int]] = []  # (rank, row)
        blocked = 0
        for rank, i in enumerate(scored.ascending().tolist()):
            if len(taken) == budget or (self.only_negative and scored.score[i] >= 0):
                break
            c = int(scored.labels[i])
            if allowed[c] <= 0:
                blocked += 1
                continue
            allowed[c] -= 1
            taken.append((rank + 1, i))
        weights, reason = scored.weights.copy(), [""] * n
        for rank, i in taken:
            weights[i] = 0.0
            reason[i] = f"rank {rank} of {n} by score"
        notes = [f"the class guard passed over {blocked} lower rows"] if blocked and not self.per_class else []
        if len(taken) < budget:
            notes.append(f"{len(taken)} of a budget of {budget} rows could be taken out")
        return Edits("trim", scored.labels.copy(), weights, reason, notes)

    def _allowance(self, sizes: np.ndarray, budget: int, n: int) -> list[int]:
        """How many rows each class may lose."""
        q = budget / n
        if self.per_class:
            return [math.floor(q * s + 1e-9) for s in sizes.tolist()]
        if not self.guard:
            return sizes.tolist()
        share = max(2 * q, q + 0.05)
        floors = [max(5, math.ceil(s / 10)) for s in sizes.tolist()]
        return [max(0, min(math.floor(share * s + 1e-9), s - f)) for s, f in zip(sizes.tolist(), floors, strict=True)]

"""Parity: an edit by a score about groups goes no further than where it is predicted to have closed the gap.

A score is local: it says what moves the gap D now, and goes on saying so after D is zero.  To first order an edit that
gives a row of weight w the score s' for s and the weight w' for w lowers Phi by (w' s' - w s) / n, in the objective's
own unit, where the method estimates an effect; the edit stops once the sum of these reaches ``room``, what Phi can
fall by until there is no gap (methods.md 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from influence_cli.actions.protocol import Floats, Scored

CHOICES = ("stop", "ignore")
HELP = "scores about groups: stop where the gap is predicted to be closed, or ignore that"


def check_parity(choice: str) -> None:
    """Refuse another choice than there is (ValueError)."""
    if choice not in CHOICES:
        raise ValueError(f"parity {choice!r} is unknown; use {' or '.join(CHOICES)}")


@dataclass
class Closing:
    """The gap as an edit closes it, row by row; without end where there is no gap or no way to foresee it."""

    room: float
    fall: Floats  # [n], of Phi by the edit of each row
    objective: str = ""
    closed: float = 0.0

    @property
    def done(self) -> bool:
        """Whether the edits so far are predicted to close the gap."""
        return self.closed >= self.room

    def take(self, row: int) -> None:
        """Count a row's edit."""
        self.closed += float(self.fall[row])

    def notes(self, rows: int, budget: int) -> list[str]:
        """What to say where the edit stopped."""
        if not self.done:
            return []
        if self.room <= 0:
            return [f"nothing to close: {self.objective} is at parity already, or its signed gap is reversed"]
        of = f"{rows:,} of the budget's {budget:,} rows are predicted to close the gap of {self.objective}"
        return [f"stopped at parity: {of} ({self.room:.4g})"]


def closing(scored: Scored, choice: str, gain: Floats | None, notes: list[str]) -> Closing:
    """How the gap closes as rows of which each raises the weighted score by ``gain`` [n] are edited.

    Where the scores are about groups and nothing can be foreseen (the method estimates no effect, or the gain of this
    edit is unknown: None), a note says so.
    """
    parity = scored.parity
    if parity is None or choice == "ignore":
        return Closing(np.inf, np.zeros(len(scored.score)))
    if parity.divisor is None or gain is None:
        why = "these scores estimate no effect" if parity.divisor is None else "the effect of these labels is unknown"
        notes.append(
            f"{why}: how many rows close the gap of {parity.objective} cannot be foreseen, and more than that open it "
            f"the other way; score by --method exact, or trim by `influence retrain --rounds 5`"
        )
        return Closing(np.inf, np.zeros(len(scored.score)))
    return Closing(parity.room, np.nan_to_num(gain) / parity.divisor, parity.objective)

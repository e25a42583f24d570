"""What canaries say of the column that is acted on, and where they cut it: what ``curate`` needs to know of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class CanaryCut:
    """Where a column is cut, and what is expected of the rows at or below the cut.

    ``threshold`` is infinite where only ``budget`` cuts.  ``scores`` [U] are the column's scores without repeats,
    ascending; a row of score ``scores[u]`` is wrong with probability ``wrong_at[u]``, between ``wrong_low[u]`` and
    ``wrong_high[u]``.
    """

    column: str
    why: str  # why this column
    canaries: int
    threshold: float
    rows: int  # that are no canaries, at or below the threshold
    recall: float
    recall_interval: Interval
    fine: float | None  # share of these rows; None where there is none
    fine_interval: Interval | None
    wrong_rows: float  # of all rows that are no canaries
    wrong_interval: Interval
    capped: str | None = None  # the budget, where it takes fewer rows than were asked for
    scores: Floats = field(default_factory=lambda: np.empty(0))
    wrong_at: Floats = field(default_factory=lambda: np.empty(0))
    wrong_low: Floats = field(default_factory=lambda: np.empty(0))
    wrong_high: Floats = field(default_factory=lambda: np.empty(0))

    def probabilities(self, score: Floats) -> tuple[Floats, Floats, Floats]:
        """The probability that each row [n] is wrong, and its interval's ends; nan where it has no score."""
        finite = np.isfinite(score)
        place = np.clip(np.searchsorted(self.scores, np.where(finite, score, self.scores[0])), 0, len(self.scores) - 1)
        value, low, high = (
            np.where(finite, values[place], np.nan) for values in (self.wrong_at, self.wrong_low, self.wrong_high)
        )
        return value, low, high

    def as_dict(self) -> dict[str, Any]:
        """What provenance keeps of it."""
        return {
            "column": self.column,
            "canaries": self.canaries,
            "threshold": self.threshold if np.isfinite(self.threshold) else None,
            "rows": self.rows,
            "recall": self.recall,
            "recall_interval": list(self.recall_interval),
            "fine": self.fine,
            "fine_interval": None if self.fine_interval is None else list(self.fine_interval),
            "wrong_rows": self.wrong_rows,
            "wrong_interval": list(self.wrong_interval),
        }

"""Where a long computation leaves its state, so that a run that was stopped goes on from there.

``offer`` is cheap and called after every step; whoever keeps states decides which of them to write down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

State = dict[str, NDArray[Any]]  # arrays by name that are never changed in place once offered


class Interim:
    """The state of one computation; this one keeps none."""

    def load(self) -> State | None:
        """The last state that was written, or None."""
        return None

    def offer(self, state: Callable[[], State]) -> None:
        """The computation is at a state that it can go on from."""


FORGETFUL = Interim()

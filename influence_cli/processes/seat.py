"""Which process of a run this is, as ``torchrun`` says in the environment, and whether there is something to divide."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

DIVIDED = ("grads", "score", "retrain", "evaluate")  # commands with something to divide
LOOKS = frozenset({"-n", "--dry-run", "-h", "--help", "--show-settings"})  # nothing is computed
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


class Seat(NamedTuple):
    """Which of how many processes this is, and which on its machine."""

    rank: int
    size: int
    local: int


def seat(environment: Any = os.environ) -> Seat | None:
    """The place of this process among those that ``torchrun`` has started; None where it is alone."""
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return Seat(rank, size, int(environment.get("LOCAL_RANK", 0))) if size > 1 else None


def count() -> int:
    """How many processes ``torchrun`` has started."""
    found = seat()
    return 1 if found is None else found.size


def divides(arguments: list[str]) -> bool:
    """Whether a command line has something to divide: every process must come to the same answer before it is read."""
    return bool(arguments) and arguments[0] in DIVIDED and LOOKS.isdisjoint(arguments)


def apart() -> dict[str, str]:
    """The environment for a program of the user's, which is no process of this run."""
    ours = {*OURS, *(name for name in os.environ if name.startswith("TORCHELASTIC_"))}
    return {name: value for name, value in os.environ.items() if name not in ours}

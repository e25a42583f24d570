"""What a logger is told of a result, and what it must be able to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from influence_cli.report.text_table import TextTable

Parameters = dict[str, str | int | float | bool]
Metrics = dict[str, float]


@dataclass(frozen=True)
class LoggedTraining:
    """One training of an arm with a seed; ``key`` stays the same however often its result is compared."""

    key: str
    arm: str
    seed: int
    parameters: Parameters
    metrics: Metrics

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Logged:
    """The result of one command."""

    command: str
    name: str
    parameters: Parameters
    metrics: Metrics
    tables: dict[str, TextTable] = field(default_factory=dict)  # by file name without a suffix
    files: dict[str, bytes] = field(default_factory=dict)  # by name: results as JSON, the page, figures
    trainings: tuple[LoggedTraining, ...] = ()


class Logger(Protocol):
    """Tells one tracker.  It is made with the folder to write to, which only some need."""

    def check(self) -> None:
        """Refuse (UsageError), before any work, a tracker that cannot be logged to."""
        ...

    def log(self, logged: Logged) -> str:
        """Log a result, each of its trainings once, and say where it is."""
        ...

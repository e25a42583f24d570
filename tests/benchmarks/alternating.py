"""Two things timed by turns, so that a machine that slows down slows both; and rows of a table of such ratios."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

Run = Callable[[], float | None]  # seconds, or None: to be timed from outside


@dataclass(frozen=True)
class Ratio:
    """Ratios of two times [rounds], a / b, round by round, and the times themselves."""

    a: list[float]
    b: list[float]

    @property
    def every(self) -> list[float]:
        """The ratio of each round."""
        return [x / y for x, y in zip(self.a, self.b, strict=True)]

    @property
    def median(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.every)


def seconds(run: Run) -> float:
    """How long ``run`` takes; what it measured itself, where it did."""
    started = time.perf_counter()
    measured = run()
    return time.perf_counter() - started if measured is None else measured


def alternate(runs: list[Run], rounds: int, warm: bool = True) -> list[list[float]]:
    """Seconds [len(runs), rounds] of every run, one after the other, each first by turns, after a round to warm up."""
    if warm:
        for run in runs:
            run()
    times: list[list[float]] = [[] for _ in runs]
    for k in range(rounds):
        for step in range(len(runs)):
            which = (k + step) % len(runs)
            times[which].append(seconds(runs[which]))
        say(f"  round {k + 1} of {rounds}: " + " / ".join(f"{t[-1]:.3g} s" for t in times))
    return times


def best(candidates: list[int], run: Callable[[int], float]) -> int:
    """The candidate that takes the fewest seconds; one that fails (out of memory, say) is passed by."""
    found: dict[int, float] = {}
    for candidate in candidates:
        try:
            found[candidate] = run(candidate)
        except RuntimeError as error:
            say(f"  {candidate}: {error}")
    if not found:
        raise RuntimeError("no batch size works")
    say("  " + ", ".join(f"{c}: {s:.3g} s" for c, s in found.items()))
    return min(found, key=lambda c: found[c])


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)

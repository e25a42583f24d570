"""Seconds per row as they were measured, by kind of pass, and what they are called in the store.

A rate is that of batches after the first, which sets things up and costs more: a few rows say next to nothing of many.
One of few rows neither replaces one of many, nor is called measured.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from influence_cli.stages.run.quantities import QUANTITIES
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session

Rates = dict[str, float]  # seconds per row, by kind of pass
ENOUGH_ROWS, ENOUGH_SECONDS = 256, 2.0  # either makes a rate a measured one
START = "start-up"  # torch, the model and its weights, all that is set up once: seconds a run, whatever the rows
STEP, LOSS = "further step", "further loss"  # a row's gradient in a step of further training, its loss at other weights
FIT, SOLVE = "fit ", "solve "  # before the name of a method: seconds a fit row and pass
PAIRS, MANY_PAIRS = "neighbours: a pair of rows", 1_000_000
USUAL_PAIR = 2e-7  # seconds, of 512 features on one core
FIXED = "fixed "  # before the name of a method: seconds of its fit whatever the rows


@dataclass
class Stopwatch:
    """Rows and seconds of batches, the first of them apart."""

    batches: list[tuple[int, float]] = field(default_factory=list)
    last: float = field(default_factory=time.perf_counter)

    def lap(self, rows: int) -> None:
        """Another batch of so many rows is done."""
        now = time.perf_counter()
        self.batches.append((rows, now - self.last))
        self.last = now

    def add(self, rows: int, seconds: float) -> None:
        """The same with seconds that were measured elsewhere."""
        self.batches.append((rows, seconds))

    def flushed(self) -> None:
        """What is written at the end belongs to the last batch."""
        if self.batches:
            rows, seconds = self.batches[-1]
            self.batches[-1] = (rows, seconds + time.perf_counter() - self.last)

    def remember(self, session: Session, key: str) -> None:
        """Keep the seconds a row for the next plan."""
        rest = self.batches[1:] or self.batches
        rows, seconds = sum(r for r, _ in rest), sum(s for _, s in rest)
        remember_rate(session, key, rows, seconds, alone=len(self.batches) == 1)
        if len(self.batches) > 1:
            session.timed += self.batches[0][0] * seconds / max(1, rows)  # beyond that it set things up


def remember_rate(session: Session, key: str, rows: int, seconds: float, alone: bool = False) -> None:
    """Keep the seconds a row of some rows, unless those known are of more, and enough, rows.

    ``alone``: they are of a first batch, which says little however large it is.
    """
    if rows <= 0:
        return
    session.timed += 0.0 if alone else seconds
    weight = rows if seconds < ENOUGH_SECONDS else max(rows, ENOUGH_ROWS)
    weight = min(weight, ENOUGH_ROWS - 1) if alone and seconds < ENOUGH_SECONDS else weight
    if session.store.timing(key) is None or weight >= min(session.store.timed_rows(key), ENOUGH_ROWS):
        session.store.write_timing(key, seconds / rows, weight)


def is_measured(session: Session, key: str) -> bool:
    """Whether a rate that is known was measured on enough rows, or for long enough."""
    return session.store.timing(key) is not None and session.store.timed_rows(key) >= ENOUGH_ROWS


def timing_key(run: Run, session: Session, kind: str) -> str:
    """Under what name a kind of work's measured seconds per row are kept."""
    model, _ = require_model(run)
    shape = "x".join(str(s) for s in model.shape)
    return f"{model.name} {shape} {kind} {run.spec.precision} {session.runtime.device}"


def pass_key(run: Run, session: Session, kind: str) -> str:
    """The same of a pass over rows: outputs, tangents (with them), target, values, or another quantity's name."""
    if kind == "outputs":
        return timing_key(run, session, kind)
    if kind == "values":
        solvers = {f"{run.values[n].solver} {p.describe()}" for n, p in run.solvers.items() if n in run.values}
        return timing_key(run, session, " ".join(["values", *sorted(solvers), run.spec.params]))
    return timing_key(run, session, run.spec.params if kind == "tangents" else f"{kind} {run.spec.params}")


def known_rates(run: Run, session: Session, enough: bool = True) -> Rates:
    """What earlier runs measured on enough rows; without ``enough`` on however few."""
    if run.model is None:
        return {}
    own = [quantity.name for quantity in QUANTITIES.values() if quantity.computed_in == "own"]
    keys = {
        kind: pass_key(run, session, kind) for kind in ("outputs", "tangents", "target", "values", STEP, LOSS, *own)
    }
    found = {k: session.store.timing(key) for k, key in keys.items() if not enough or is_measured(session, key)}
    return {kind: rate for kind, rate in found.items() if rate is not None}


def note_pairs(session: Session, pairs: int, seconds: float) -> None:
    """Keep the seconds that a distance takes, where they are of many."""
    if pairs >= MANY_PAIRS:
        session.store.write_timing(PAIRS, seconds / pairs, pairs)


def seconds_of_pairs(run: Run, session: Session) -> float:
    """Seconds of the distances that the run's methods take, by what they took before, or usually take."""
    pairs = sum(method.pairs(len(run.train), len(run.target)) for method in run.methods.values())
    known = session.store.timing(PAIRS) if pairs else None
    return pairs * (USUAL_PAIR if known is None else known)


def start_key(run: Run, session: Session) -> str:
    """Under what name the seconds are kept that a run takes before its first row."""
    return timing_key(run, session, START)

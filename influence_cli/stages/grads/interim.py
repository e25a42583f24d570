"""The state of a computation that takes long, in the store: what a run that was stopped goes on from."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from influence_cli.maths.iterative import Interim, State
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.store import fingerprint

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature

EVERY_SECONDS = 120.0  # between two states of one computation that are written down
WRITING_SHARE = 20.0  # times as long as writing one took, at least


class KeptInterim(Interim):
    """Writes states down: every two minutes, less often where writing takes long, and on Ctrl-C."""

    def __init__(self, run: Run, session: Session, *names: str) -> None:
        assert run.fit is not None
        self.store, self.fit = session.store, run.fit.fingerprint
        self.name = fingerprint("interim", 1, of=sorted(names))
        self.resumed, self.written, self.spent = False, time.monotonic(), 0.0
        self.latest: Callable[[], State] | None = None

    def load(self) -> State | None:
        """What a run before this one left, or None."""
        state = self.store.interims.read(self.name)
        self.resumed = state is not None
        return None if state is None else {name: array.copy() for name, array in state.items()}

    def offer(self, state: Callable[[], State]) -> None:
        """Write it down if the last one was long ago."""
        self.latest = state
        if time.monotonic() - self.written >= max(EVERY_SECONDS, WRITING_SHARE * self.spent):
            self.flush()

    def flush(self) -> None:
        """Write the last state down."""
        if self.latest is not None:
            started = time.monotonic()
            self.store.interims.write(self.name, self.latest(), {"fit": self.fit})
            self.latest, self.written = None, time.monotonic()
            self.spent = self.written - started

    @contextlib.contextmanager
    def kept(self, curvature: Curvature) -> Iterator[None]:
        """While the computation runs; what it left is dropped once its result is stored."""
        curvature.interim = self
        try:
            yield
        except KeyboardInterrupt:
            self.flush()
            raise
        self.store.interims.drop(self.name)

"""What a stage tells whoever runs it: progress, warnings, notes.  ``cli`` renders it; the default is silence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """A counter of rows done; the stage calls ``advance``, whoever listens shows it."""

    def advance(self, rows: int) -> None:
        """Count ``rows`` more as done and kept."""


class Listener:
    """Receives what a stage has to say.  Every method may be overridden; the base says nothing."""

    def note(self, text: str) -> None:
        """A fact for the summary."""

    def detail(self, text: str) -> None:
        """A fact that only ``-v`` shows."""

    def warn(self, text: str) -> None:
        """Something the user should act on."""

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "rows", done: int = 0) -> Iterator[Progress]:
        """A span of work over ``total`` units, ``done`` of which are there already."""
        yield Progress()


SILENT = Listener()

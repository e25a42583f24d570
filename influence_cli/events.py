"""What a stage tells whoever runs it: progress, warnings, notes.  ``cli`` renders it; the default is silence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from influence_cli.arguments import as_arguments
from influence_cli.errors import InfluenceWarning


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


class Warnings(Listener):
    """Warnings as Python's own, at the line that called the library, each once."""

    def __init__(self, caller: FrameType, switches: frozenset[str]) -> None:
        self._caller, self._switches = caller, switches
        self._line = caller.f_lineno
        self._said = set[str]()

    def warn(self, text: str) -> None:
        """Something the user should act on."""
        if text in self._said:
            return
        self._said.add(text)
        names, file = self._caller.f_globals, self._caller.f_code.co_filename
        registry = names.setdefault("__warningregistry__", {})
        said = as_arguments(text, self._switches)
        warnings.warn_explicit(said, InfluenceWarning, file, self._line, names.get("__name__"), registry)


SILENT = Listener()

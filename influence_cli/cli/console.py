"""The terminal: notes, warnings and progress on standard error, as styled as its stream allows."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from influence_cli.cli.streams import write_line
from influence_cli.errors import printable
from influence_cli.events import Listener, Progress

PLAIN_EVERY_S, PLAIN_EVERY_SHARE = 30.0, 0.1  # a line each 10% or 30 s...
PLAIN_AT_LEAST_S = 2.0  # ... but none for work that is over at once


class Terminal(Listener):
    """Renders a stage's events: a bar on a terminal, elsewhere a line each 10% or 30 s, at most one in 2 s."""

    def __init__(self, quiet: bool = False, verbose: bool = False, color: str = "auto") -> None:
        self.quiet, self.verbose, self.color = quiet, verbose, color
        self._held: list[str] | None = None
        self.span: tuple[str, int, int, str] | None = None  # what, done, total, unit of the span in progress

    def note(self, text: str) -> None:
        """A fact for the summary."""
        if self._held is not None:
            self._held.append(text)
        elif not self.quiet:
            self._line(text)

    @contextmanager
    def answer_first(self) -> Iterator[None]:
        """Keep facts until ``release``, or until something fails: the answer is said before them."""
        self._held = []
        try:
            yield
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Say the facts that were kept."""
        held, self._held = self._held or [], None
        for text in held:
            self.note(text)

    def detail(self, text: str) -> None:
        """A fact that only -v shows."""
        if self.verbose and not self.quiet:
            self._line(text)

    def warn(self, text: str) -> None:
        """Something to act on."""
        if not self.quiet:
            self._line(f"warning: {text}")

    def say(self, text: str) -> None:
        """A line at once, whatever waits."""
        self._line(text)

    def _line(self, text: str) -> None:
        write_line(printable(text))

    def styled(self, stream: IO[Any]) -> bool:
        """Whether to colour what goes to ``stream``."""
        if self.color != "auto":
            return self.color == "always"
        if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return False
        return stream.isatty() or bool(os.environ.get("FORCE_COLOR"))

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "rows", done: int = 0) -> Iterator[Progress]:
        """A bar on a terminal, lines elsewhere, nothing with -q."""
        self.span = (what, done, total, unit)
        live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not self.quiet
        with self._bar(what, total, unit) if live else contextlib.nullcontext(_Plain(self, what, total, unit)) as bar:
            bar.terminal = self
            yield bar
            bar.finish()
        self.span = None

    @contextmanager
    def _bar(self, what: str, total: int, unit: str) -> Iterator[_Bar]:
        from rich import progress as rich_progress
        from rich.console import Console

        columns = (
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.fields[rate]}"),
            rich_progress.TimeRemainingColumn(),
        )
        console = Console(stderr=True, no_color=not self.styled(sys.stderr))
        with rich_progress.Progress(*columns, console=console, transient=True) as shown:
            yield _Bar(shown, shown.add_task(what, total=total, rate=""), unit)


class _Counting(Progress):
    terminal: Terminal | None = None

    def finish(self) -> None:
        """All is done."""

    def advance(self, rows: int) -> None:
        if self.terminal is not None and self.terminal.span is not None:
            what, done, total, unit = self.terminal.span
            self.terminal.span = (what, done + rows, total, unit)


class _Bar(_Counting):
    def __init__(self, shown: Any, task: Any, unit: str) -> None:
        self.shown, self.task, self.unit, self.started, self.done = shown, task, unit, time.monotonic(), 0

    def advance(self, rows: int) -> None:
        super().advance(rows)
        self.done += rows
        rate = self.done / max(time.monotonic() - self.started, 1e-9)
        self.shown.update(self.task, advance=rows, rate=f"{rate:,.3g} {self.unit}/s")


class _Plain(_Counting):
    def __init__(self, terminal: Terminal, what: str, total: int, unit: str) -> None:
        self.terminal, self.what, self.total, self.unit = terminal, what, total, unit
        self.done, self.shown, self.time = 0, 0, time.monotonic()

    def advance(self, rows: int) -> None:
        super().advance(rows)
        self.done += rows
        waited = time.monotonic() - self.time
        step = max(1, self.total) * PLAIN_EVERY_SHARE
        passed = self.done // step > self.shown // step and waited >= PLAIN_AT_LEAST_S
        if passed or waited >= PLAIN_EVERY_S:
            self._show()

    def finish(self) -> None:
        """Where lines were shown, the last one says where it ended."""
        if 0 < self.shown < self.done:
            self._show()

    def _show(self) -> None:
        if self.terminal is not None:
            self.terminal.note(f"{self.what}: {self.done:,} of {self.total:,} {self.unit}")
            self.shown, self.time = self.done, time.monotonic()


@functools.cache
def terminal() -> Terminal:
    """Where this process shows things."""
    return Terminal()

"""What people see: notes, warnings and progress on standard error; tables and data on standard output."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from influence_cli.cli.streams import say
from influence_cli.errors import printable
from influence_cli.events import Listener, Progress, plain_facts

PLAIN_EVERY_S, PLAIN_EVERY_SHARE = 30.0, 0.1  # a line each 10 % or 30 s...
WIDEST_TEXT = 120  # columns; longer lines are hard to read
PLAIN_AT_LEAST_S = 2.0  # ... but none for work that is over at once


class Terminal(Listener):
    """Renders a stage's events: a bar on a terminal, elsewhere a line each 10 % or 30 s, at most one in 2 s."""

    def __init__(
        self,
        quiet: bool = False,
        verbose: bool = False,
        color: str = "auto",
        curvature_sentence: Callable[[Mapping[str, Any], Mapping[str, Any]], str] = lambda facts, _: plain_facts(facts),
    ) -> None:
        self.curvature_sentence = curvature_sentence
        self.quiet, self.verbose, self.color = quiet, verbose, color
        self.span: tuple[str, int, int, str] | None = None  # what, done, total, unit of the span in progress

    def note(self, text: str) -> None:
        """A fact for the summary."""
        if not self.quiet:
            self._line(text)

    def detail(self, text: str) -> None:
        """A fact that only -v shows."""
        if self.verbose and not self.quiet:
            self._line(text)

    def curvature(self, method: str, facts: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """What a method found of its curvature, in a sentence."""
        self.note(f"{method}: {self.curvature_sentence(facts, options)}")

    def warn(self, text: str) -> None:
        """Something to act on."""
        if not self.quiet:
            self._line(f"warning: {text}")

    def _line(self, text: str) -> None:
        say(printable(text))

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
        if self.terminal is not None and (passed or waited >= PLAIN_EVERY_S):
            self.terminal.note(f"{self.what}: {self.done:,} of {self.total:,} {self.unit}")
            self.shown, self.time = self.done, time.monotonic()


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], terminal: Terminal, stream: IO[str], left: int = 1
) -> None:
    """A table for people, as wide as it needs to be; the first ``left`` columns are text, the others figures."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for k, name in enumerate(header):
        table.add_column(Text(name), justify="left" if k < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    styled = terminal.styled(stream)
    width = shutil.get_terminal_size().columns if stream.isatty() else 10_000
    drawn = io.StringIO()  # Rich would end the process where the stream is a closed pipe
    console = Console(file=drawn, no_color=not styled, force_terminal=styled, width=width, highlight=False)
    if title:
        console.print(Text(title, style="bold"))
    console.print(table)
    stream.write("".join(line.rstrip() + "\n" for line in drawn.getvalue().splitlines()))
    stream.flush()


def print_markdown(text: str, terminal: Terminal, stream: IO[str]) -> None:
    """Markdown, laid out on a terminal; anywhere else it stays as it is."""
    if stream.isatty():
        from rich.console import Console
        from rich.markdown import Markdown
        from rich.theme import Theme

        styled = terminal.styled(stream)
        theme = Theme({"markdown.code": "cyan", "markdown.h1": "bold", "markdown.h2": "bold", "markdown.h3": "bold"})
        drawn, width = io.StringIO(), min(shutil.get_terminal_size().columns, WIDEST_TEXT)
        console = Console(file=drawn, no_color=not styled, force_terminal=styled, width=width, theme=theme)
        console.print(Markdown(text, code_theme="ansi_dark", hyperlinks=False))
        text = "".join(line.rstrip() + "\n" for line in drawn.getvalue().splitlines())
    code = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(code, "replace").decode(code))  # a sign that it cannot write is no error
    stream.flush()


def print_json(value: Any) -> None:
    """JSON on standard output: indented on a terminal, one line in a pipe."""
    indent = 2 if sys.stdout.isatty() else None
    sys.stdout.write(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def cell(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)

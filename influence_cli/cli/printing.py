"""Tables, Markdown and JSON on standard output or error: laid out on a terminal, plain in a pipe."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any

from influence_cli.cli.console import Terminal, terminal
from influence_cli.errors import printable

if TYPE_CHECKING:
    from influence_cli.report.text_table import TextTable

WIDEST_TEXT = 120  # columns; longer lines are hard to read
Line = Sequence[str]


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], stream: IO[str], left: int = 1
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
    styled = terminal().styled(stream)
    width = shutil.get_terminal_size().columns if stream.isatty() else 10_000
    drawn = io.StringIO()  # Rich would end the process where the stream is a closed pipe
    console = Console(file=drawn, no_color=not styled, force_terminal=styled, width=width, highlight=False)
    if title:
        console.print(Text(title, style="bold"))
    console.print(table)
    stream.write("".join(line.rstrip() + "\n" for line in drawn.getvalue().splitlines()))
    stream.flush()


def print_text_table(table: TextTable, stream: IO[str], note: Callable[[str], None]) -> None:
    """A table of a report; ``note`` takes its notes."""
    print_table(table.title, table.header, table.rows, stream)
    for text in table.notes:
        note(text)


def print_markdown(text: str, out: Terminal, stream: IO[str]) -> None:
    """Markdown, laid out on a terminal; anywhere else it stays as it is."""
    if stream.isatty():
        from rich.console import Console
        from rich.markdown import Markdown
        from rich.theme import Theme

        styled = out.styled(stream)
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

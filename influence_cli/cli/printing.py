"""Tables, Markdown and JSON on standard output or error: laid out on a terminal, plain in a pipe."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any

from influence_cli.cli.console import Terminal, terminal
from influence_cli.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

    from influence_cli.report.text_table import TextTable

WIDEST_TEXT = 120  # columns; longer lines are hard to read
PIPED, ENDLESS = 100, 10_000  # columns of what is no terminal: a log that people read, lines that programs read
GAP = 2  # columns between two of a table
SHORT = 28  # a cell up to here is not broken over lines
Line = Sequence[str]


def print_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    stream: IO[str],
    left: int = 1,
    whole: bool = False,
) -> None:
    """A table for people, no wider than the terminal; the first ``left`` columns are text, the others figures.

    Where there is no room for all columns, the others follow below, each part with the first column.  ``whole``: in a
    pipe every row is a line, however long, since programs read it.
    """
    from rich.console import Console
    from rich.text import Text

    cells = [[printable(cell) for cell in row] for row in rows]
    styled, width = terminal().styled(stream), width_of(stream, ENDLESS if whole else PIPED)
    drawn = io.StringIO()  # Rich would end the process where the stream is a closed pipe
    console = Console(file=drawn, no_color=not styled, force_terminal=styled, width=width, highlight=False)
    if title:
        console.print(Text(title, style="bold"))
    for k, part in enumerate(parts_of(header, cells, width)):
        console.print(*([""] if k else []), _laid_out([header, *cells], part, width, left), sep="\n")
    stream.write("".join(line.rstrip() + "\n" for line in drawn.getvalue().splitlines()))
    stream.flush()


def width_of(stream: IO[str], piped: int = PIPED) -> int:
    """Columns that there are: of the terminal, or of an exported COLUMNS; a fixed number elsewhere."""
    if stream.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size().columns
    return piped


def parts_of(header: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The columns of every part, by number, so that each part fits; the first column is in all of them.

    >>> parts_of(["name", "a", "b"], [["x", "1" * 10, "2" * 10]], 20)
    [[0, 1], [0, 2]]
    """
    need = [_needed([name, *(row[k] for row in cells)]) for k, name in enumerate(header)]
    parts: list[list[int]] = [[0]]
    for k in range(1, len(header)):
        if sum(need[c] + GAP for c in [*parts[-1], k]) - GAP > width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(k)
    return parts


def _needed(texts: Sequence[str]) -> int:
    """The least columns that a column is legible in: of its longest word, and of whole cells that are short."""
    words = max(len(word) for text in texts for word in [*text.split(), ""])
    return max(words, min(SHORT, max(map(len, texts[1:]), default=0)))


def _laid_out(lines: Sequence[Sequence[str]], part: list[int], width: int, left: int) -> Table:
    """Some columns as a table, the longest of them narrower where they do not fit as they are."""
    from rich.table import Table
    from rich.text import Text

    header, *rows = ([line[k] for k in part] for line in lines)
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    least = [_needed(column) for column in columns]
    while sum(widths) + GAP * (len(widths) - 1) > width and (wide := [k for k, w in enumerate(widths) if w > least[k]]):
        widths[max(wide, key=lambda k: widths[k] - least[k])] -= 1
    fits = sum(widths) + GAP * (len(widths) - 1) <= width
    table = Table(box=None, pad_edge=False, header_style="bold")
    for k, (number, name) in enumerate(zip(part, header, strict=True)):
        justify, fixed = ("left" if number < left else "right"), (widths[k] if fits else None)
        table.add_column(Text(name), justify=justify, overflow="fold", width=fixed)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


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

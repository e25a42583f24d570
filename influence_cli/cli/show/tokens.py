"""Scores by token on a terminal: the texts of a few rows in two colours, their strongest tokens named below them."""

from __future__ import annotations

import io
import sys
from typing import IO, TYPE_CHECKING

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import width_of
from influence_cli.report.token_pieces import Piece, quoted, visible
from influence_cli.report.token_rows import HOW, RowTokens, TokenRows, plain, signed, token_rows

if TYPE_CHECKING:
    from rich.text import Text

    from influence_cli.stages.score.tokens.table import TokenScores

SHOWN_ROWS, SHOWN_LINES, TARGET_LINES = 3, 12, 6  # of a side, of a row's text, and of a target's
# From the weakest to the strongest, each with the share of full colour from which it is taken.  Blue and orange are
# told apart by every kind of colour vision; the letters' own colour makes them legible on any background.
HELPS = ((0.75, "color(231) on color(25)"), (0.35, "color(16) on color(74)"), (0.1, "color(16) on color(153)"))
HARMS = ((0.75, "color(231) on color(130)"), (0.35, "color(16) on color(215)"), (0.1, "color(16) on color(223)"))


def show_tokens(found: TokenScores, stream: IO[str] | None = None) -> None:
    """The first target text, and the first rows of each side."""
    from rich.text import Text

    shown = token_rows(found.table, found.texts)
    lines: list[Text] = []
    for name, text in found.targets[:1]:
        lines.append(Text(f"target {quoted(name)}", style="bold"))
        lines += _cut(Text(visible(text)), TARGET_LINES)
    sides = {side: shown.of_side(side) for side in ("helpful", "harmful", "neither")}
    for side, rows in sides.items():
        for row in rows[:SHOWN_ROWS]:
            lines += [Text(""), _head(side, row), *_cut(_coloured(shown, row), SHOWN_LINES), _strongest(row)]
    _draw(lines, stream or sys.stdout)
    out = terminal()
    out.note(f"split {HOW[shown.decomposition]}; full colour from {plain(shown.full)} on either side")
    more = sum(max(0, len(rows) - SHOWN_ROWS) for rows in sides.values())
    what = f"{more} more rows, and texts to their end" if more else "texts to their end"
    out.note(f"{what}: as a page with --report FILE, as a table with -o")


def _head(side: str, row: RowTokens) -> Text:
    from rich.text import Text

    loss = "" if row.loss is None else f", {row.loss:.3g} nats a token"
    what = {"helpful": "helps", "harmful": "harms"}.get(side, "does neither")
    return Text(
        f"{what} {row.rank}: {quoted(row.id)}, score {signed(row.score)}, {row.tokens:,} tokens{loss}", style="bold"
    )


def _coloured(shown: TokenRows, row: RowTokens) -> Text:
    """The text of a row with its pieces in the colours of their scores."""
    from rich.text import Text

    made = Text()
    for piece in row.pieces:
        if not piece.added:
            style = "dim italic" if piece.cut else style_of(shown.share(piece))
            made.append(visible(piece.text), style=style)
    return made


def style_of(share: float) -> str:
    """The style of a piece whose score is such a share of the one with full colour, -1 to 1."""
    return next((style for least, style in (HELPS if share > 0 else HARMS) if abs(share) >= least), "")


def _cut(text: Text, most: int) -> list[Text]:
    """The first lines of a text, set in, and how many more there are."""
    from rich.text import Text

    lines = list(text.split("\n", allow_blank=True))
    kept = [Text("  ").append_text(line) for line in lines[:most]]
    return kept if len(lines) <= most else [*kept, Text(f"  … {len(lines) - most} more lines", style="dim")]


def _strongest(row: RowTokens) -> Text:
    from rich.text import Text

    def said(pieces: list[Piece]) -> str:
        return ", ".join(f"“{quoted(p.text)}” {signed(p.score or 0.0)}" for p in pieces)

    parts = [
        f"{what} most: {said(some)}" for sign, what in ((1, "helps"), (-1, "harms")) if (some := row.strongest(sign))
    ]
    return Text("  " + "; ".join(parts))


def _draw(lines: list[Text], stream: IO[str]) -> None:
    from rich.console import Console

    styled, drawn = terminal().styled(stream), io.StringIO()  # Rich would end the process where the stream is closed
    console = Console(
        file=drawn, no_color=not styled, force_terminal=styled, width=width_of(stream), highlight=False, emoji=False,
        color_system="256" if styled else None,
    )  # fmt: skip
    for line in lines:
        console.print(line, soft_wrap=False, overflow="fold")
    stream.write("".join(line.rstrip() + "\n" for line in drawn.getvalue().splitlines()))
    stream.flush()

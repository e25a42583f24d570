"""The page of scores by token: the target above, then the most helpful and harmful rows as text in two colours.

Self-contained as every page of ours.  Colours are told apart by every kind of colour vision, and the strongest tokens
are underlined and named with their scores, for those who see or print none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from influence_cli.data.earlier import GENERATOR, PAGE
from influence_cli.data.outputs import write_output
from influence_cli.data.tables import provenance
from influence_cli.report.origin import Origin, inputs_of
from influence_cli.report.page import environment
from influence_cli.report.token_pieces import Piece, quoted, visible
from influence_cli.report.token_rows import HOW, RowTokens, TokenRows, plain, signed, token_rows

TITLE = "Which tokens of the train rows help the target, and which harm it?"
MOST = 50  # rows of a side on the page
LEVELS = 8  # of colour, on each side of 0
SIDES = {
    "helpful": "Most helpful rows",
    "harmful": "Most harmful rows",
    "neither": "Rows that neither help nor harm",
}
SIGNS = ((1, "helps most"), (-1, "harms most"))


def token_page(
    table: pa.Table, texts: Mapping[str, str], targets: Sequence[tuple[str, str]], made_by: Origin | None = None
) -> str:
    """The page of a table of ``score --tokens``, with texts by id and the first target rows' (id, text)."""
    shown, origin = token_rows(table, texts), provenance(table.schema)
    count = int(origin.get("target", {}).get("rows", len(targets)))
    made = environment()
    made.filters |= {"visible": visible, "quoted": quoted}
    sides = [
        (heading, [_row(shown, row) for row in shown.of_side(side)[:MOST]])
        for side, heading in SIDES.items()
        if shown.of_side(side)
    ]
    targets_title = "Target text" if count == 1 else f"Target: {count:,} texts"
    return made.get_template("tokens.html.j2").render(
        generator=GENERATOR,
        title=TITLE,
        answer=_answer(shown),
        contents=[("target", targets_title), *((f"side{k}", heading) for k, (heading, _) in enumerate(sides, 1))],
        origin=made_by,
        levels=LEVELS,
        summary=_summary(shown, origin, count),
        targets=targets,
        targets_title=targets_title,
        more_targets=f"and {count - len(targets):,} more target texts" if count > len(targets) else "",
        full=plain(shown.full),
        legend=_legend(shown),
        sides=sides,
    )


def write_token_page(
    table: pa.Table, texts: Mapping[str, str], targets: Sequence[tuple[str, str]], path: str | Path, command: str = ""
) -> None:
    """Write the page whole or not at all; ``command`` made it."""
    made_by = Origin.now(command, inputs_of(provenance(table.schema)))
    write_output(path, PAGE, token_page(table, texts, targets, made_by).encode())


def _answer(shown: TokenRows) -> str | None:
    """The token that helps most, and the one that harms most, of all rows."""
    scored = [(p.score, p, row) for row in shown.rows for p in row.pieces if p.score is not None]
    said: list[str] = []
    for (sign, what), best in zip(SIGNS, (max, min), strict=True):
        score, piece, row = best(scored, key=lambda s: s[0], default=(0.0, None, None))
        if piece is not None and row is not None and sign * score > 0:
            said.append(f"“{quoted(piece.text)}” of {quoted(row.id)} {what} ({_signed(score)})")
    return "; ".join(said) or None


def _summary(shown: TokenRows, origin: dict[str, Any], targets: int) -> list[str]:
    spec = origin.get("spec", {})
    method, objective = (", ".join(spec.get(name, [])) for name in ("methods", "objectives"))
    others = [n for n in spec.get("objectives", [])[1:]] + [n for n in spec.get("methods", [])[1:]]
    on = "one target text" if targets == 1 else f"{targets:,} target texts"
    lines = [
        f"{len(shown.rows):,} train rows, scored by {method} for {objective} on {on}. Positive: training on the row "
        "lowers the target's loss.",
        f"Split {HOW[shown.decomposition]}. The parts of a row sum to its score.",
    ]
    if any(len(shown.of_side(side)) > MOST for side in SIDES):
        lines.append(f"The first {MOST} of each side are shown; the table has all.")
    if others:
        lines.append(f"Shown is {shown.method}; the others are in the table.")
    return lines


def _legend(shown: TokenRows) -> str:
    return (
        f"The colour of a token is its part of the row's score, in units of the score: full from {plain(shown.full)} "
        "on either side, the same for all rows. Blue helps the target, orange harms it; the strongest tokens of a row "
        "are underlined, dotted where they harm. · is a space, ↵ a new line."
    )


def _row(shown: TokenRows, row: RowTokens) -> dict[str, Any]:
    loss = "" if row.loss is None else f", {row.loss:.3g} nats a token"
    strongest = {sign: row.strongest(sign) for sign, _ in SIGNS}
    marks = {id(p): "top" for p in strongest[1]} | {id(p): "low" for p in strongest[-1]}
    named = [(what, [(quoted(p.text), _signed(p.score)) for p in strongest[sign]]) for sign, what in SIGNS]
    return {
        "id": quoted(row.id),
        "rank": row.rank,
        "score": _signed(row.score),
        "about": f"{row.tokens:,} tokens{loss}",
        "pieces": [_piece(shown, piece, marks.get(id(piece))) for piece in row.pieces],
        "named": [(what, some) for what, some in named if some],
    }


def _piece(shown: TokenRows, piece: Piece, mark: str | None) -> dict[str, Any]:
    share = shown.share(piece)
    level = round(abs(share) * LEVELS)
    colour = f"{'p' if share > 0 else 'n'}{level}" if level else ""
    kind = "added" if piece.added else "cut" if piece.cut else ""
    names = " ".join(filter(None, (colour, mark, kind)))
    title = "not given to the model" if piece.cut else "" if piece.score is None else _signed(piece.score)
    if title and piece.loss is not None:
        title += f", loss {piece.loss:.3g}"
    text = piece.text if piece.added else visible(piece.text)
    return {"text": text, "name": names, "title": title, "added": piece.added, "plain": not names and not title}


def _signed(score: float | None) -> str:
    """A score with its sign, and a minus as wide as a plus."""
    return "-" if score is None else signed(score).replace("-", "−")

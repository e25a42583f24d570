"""Texts on the review page with their tokens in two colours: what the colours say, and the pieces that are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from influence_cli.data.kinds.protocol import SHOWN
from influence_cli.report.token_pieces import Piece, Token, pieces_of, quoted
from influence_cli.report.token_rows import FULL, plain, signed

LEVELS = 8  # of colour, on each side of 0, as shades.css has them
STRONGEST = 3  # tokens of each sign that are named
SCORE_PARTS, TOKEN_LOSSES, SLOPES = "score", "loss", "gradient"  # what the numbers of tokens are


@dataclass(frozen=True)
class Meaning:
    """What numbers of tokens say: in a sentence, and of those above and below 0."""

    sentence: str
    above: str
    below: str


MEANINGS = {
    SCORE_PARTS: Meaning(
        "A token's colour is its part of the row's score, and the parts of a row sum to it: blue helps the target, "
        "orange harms it.",
        "helps most", "harms most",
    ),
    TOKEN_LOSSES: Meaning(
        "A token's colour is its own loss, in nats: the deeper the orange, the less the model expected the token.",
        "", "least expected",
    ),
    SLOPES: Meaning(
        "A token's colour says what the loss of the row depends on, by gradient times embedding: orange raises the "
        "loss and speaks against the row's label, blue lowers it and speaks for it. These are no parts of the score.",
        "speaks for the label", "speaks against it",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class RowTokens:
    """The tokens of a row by column of text, and what their scores are: one of ``MEANINGS``."""

    what: str
    columns: Mapping[str, Sequence[Token]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """What the colours of a page mean, and from which size of a number on they are full."""

    meaning: Meaning
    full: float

    @property
    def ends(self) -> tuple[str, str]:
        """What stands at both ends of the legend."""
        return f"−{plain(self.full)}", f"+{plain(self.full)}"


def scale_of(rows: Iterable[RowTokens]) -> Scale | None:
    """One scale for all rows of a page; None where no token has a number but 0.

    A few extreme tokens do not make all others pale: colour is full from the 99th percentile of sizes on.
    """
    some = list(rows)
    sizes = [abs(t.score) for row in some for tokens in row.columns.values() for t in tokens if t.score]
    return Scale(MEANINGS[some[0].what], float(np.quantile(sizes, FULL))) if sizes else None


def shaded(text: str, tokens: Sequence[Token], scale: Scale) -> dict[str, Any]:
    """A text as JSON has it: ``pieces`` [text, classes, title], and ``named``, its strongest tokens in words.

    The text is cut as that of a plain card is.  A token that was added stands there by its name, where it has one.
    """
    pieces = [p for p in pieces_of(text, tokens) if p.text]
    strongest = {sign: _strongest(pieces, sign) for sign in (1, -1)}
    marks = {id(p): "top" for p in strongest[1]} | {id(p): "low" for p in strongest[-1]}
    said = ((1, scale.meaning.above), (-1, scale.meaning.below))
    named = [[what, [[quoted(p.text.strip()), _signed(p)] for p in strongest[sign]]] for sign, what in said if what]
    return {
        "pieces": [[p.text, _classes(p, scale, marks.get(id(p), "")), _title(p)] for p in _cut_short(pieces)],
        "named": [entry for entry in named if entry[1]],
    }


def _strongest(pieces: Sequence[Piece], sign: int) -> list[Piece]:
    some = [p for p in pieces if p.score is not None and sign * p.score > 0 and not p.added and not p.text.isspace()]
    return sorted(some, key=lambda p: -sign * (p.score or 0.0))[:STRONGEST]


def _classes(piece: Piece, scale: Scale, mark: str) -> str:
    share = 0.0 if piece.score is None else float(np.clip(piece.score / scale.full, -1.0, 1.0))
    level = round(abs(share) * LEVELS)
    kind = "added" if piece.added else "cut" if piece.cut else ""
    return " ".join(filter(None, (f"{'p' if share > 0 else 'n'}{level}" if level else "", mark, kind)))


def _title(piece: Piece) -> str:
    return "not given to the model" if piece.cut else "" if piece.score is None else _signed(piece)


def _signed(piece: Piece) -> str:
    return signed(piece.score or 0.0).replace("-", "−")


def _cut_short(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces up to ``SHOWN`` characters of the text, and how many more there are."""
    made, left = list[Piece](), SHOWN
    for k, piece in enumerate(pieces):
        own = 0 if piece.added else len(piece.text)
        if own > left:
            rest = sum(len(p.text) for p in pieces[k:] if not p.added)
            return [*made, Piece(f" ... ({rest:,} more characters)")]
        left -= own
        made.append(piece)
    return made

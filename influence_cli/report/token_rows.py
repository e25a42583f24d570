"""A table of scores by token as rows of pieces, for a page and a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from influence_cli.data.tables import provenance
from influence_cli.data.write_tables import rows_of
from influence_cli.report.token_pieces import Piece, Token, pieces_of

STRONGEST = 3  # tokens of each sign that are named
FULL = 0.99  # the share of pieces below the size that has full colour
HOW = {
    "loss": "by loss: a token has the part of the score that is about its own loss",
    "position": "by position: a token has the part of the gradient that enters where it stands",
}


def plain(value: float) -> str:
    """A score with three digits, and no power of ten where people read it without.

    >>> plain(0.012345), plain(-1843.2), plain(2.5e9)
    ('0.0123', '-1,843', '2.5e+09')
    """
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def signed(value: float) -> str:
    """The same with its sign.

    >>> signed(1843.2), signed(-0.5)
    ('+1,843', '-0.5')
    """
    return f"+{plain(value)}" if value >= 0 else plain(value)


@dataclass(frozen=True)
class RowTokens:
    """One row's score in pieces."""

    id: str
    side: str  # helpful, harmful or neither
    rank: int
    score: float
    tokens: int
    loss: float | None  # the mean over the tokens that have one, in nats
    pieces: list[Piece]

    def strongest(self, sign: int, most: int = STRONGEST) -> list[Piece]:
        """The pieces with the largest scores of a sign, the largest first."""
        scored = [p for p in self.pieces if p.score is not None and sign * p.score > 0]
        return sorted(scored, key=lambda p: -sign * (p.score or 0.0))[:most]


@dataclass(frozen=True)
class TokenRows:
    """All rows of a table, with what their pieces are drawn by."""

    rows: list[RowTokens]
    full: float  # the size of a score that has full colour
    method: str  # the column that is shown
    decomposition: str

    def share(self, piece: Piece) -> float:
        """How strong a piece's colour is, from -1 to 1."""
        if piece.score is None or not self.full > 0:
            return 0.0
        return float(np.clip(piece.score / self.full, -1.0, 1.0))

    def of_side(self, side: str) -> list[RowTokens]:
        """The rows of a side, in order."""
        return [row for row in self.rows if row.side == side]


def token_rows(table: pa.Table, texts: Mapping[str, str]) -> TokenRows:
    """The rows of a table of ``score --tokens``, whose texts these are by id."""
    found: list[RowTokens] = []
    entries: dict[str, list[dict[str, Any]]] = {}
    for entry in rows_of(table):
        entries.setdefault(entry["id"], []).append(entry)
    for name, own in entries.items():
        tokens = [Token(e["start"], e["end"], e["token"], e["score"], e["loss"]) for e in own]
        losses, first = [e["loss"] for e in own if e["loss"] is not None], own[0]
        mean = float(np.mean(losses)) if losses else None
        pieces = pieces_of(texts[name], tokens)
        found.append(RowTokens(name, first["side"], first["rank"], first["row_score"], len(own), mean, pieces))
    sizes = [abs(p.score) for row in found for p in row.pieces if p.score is not None]
    about = provenance(table.schema).get("tokens", {})
    full = float(np.quantile(sizes, FULL)) if sizes else 0.0
    return TokenRows(found, full, about.get("score_is", "score"), about.get("decomposition", "loss"))

"""What is shown of a text for its tokens: pieces of whole characters, and signs for what cannot be seen.

Tokens that are parts of a character, or of what is drawn as one sign (accents, joined emoji, flags), are one piece,
whose score is the sum of theirs: nothing is garbled, and the pieces of a text sum to its score.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

JOINER = "\u200d"
KEPT = (JOINER, "\u200c")  # what joins letters and emoji is needed to draw them
BREAKS = {"\n": "↵\n", "\r": "␍", "\t": "⇥\t", "\u2028": "↵\n", "\u2029": "↵\n"}  # with what they do to the line
GAP, SPACE = "·", "␣"  # a space by itself, and one at the edge of a token that is quoted


@dataclass(frozen=True)
class Token:
    """A token of a text: its characters from ``start`` up to ``end``, none of one that was added."""

    start: int
    end: int
    name: str  # its characters, or what it is called
    score: float | None
    loss: float | None


@dataclass(frozen=True)
class Piece:
    """A part of a text with the sums over its tokens; None where no token has any."""

    text: str
    score: float | None = None
    loss: float | None = None
    added: bool = False  # a token that stands for no character: ``text`` is its name
    cut: bool = False  # the rest of a text of which the model was given the beginning


def pieces_of(text: str, tokens: Iterable[Token]) -> list[Piece]:
    """The pieces of a text in order; without those that were added they are the text.

    >>> [(p.text, p.score) for p in pieces_of("日本", [Token(0, 1, "日", 1.0, 2.0), Token(0, 2, "日本", 0.5, 1.0)])]
    [('日本', 1.5)]
    """
    found: list[Piece] = []
    at = 0
    for token in tokens:
        if token.end <= token.start:
            found.append(Piece(token.name, token.score, token.loss, added=True))
            continue
        if token.start > at:
            found.append(Piece(text[at : token.start]))
            at = token.start
        part = text[at : token.end]
        last = found[-1] if found and not found[-1].added else None
        if last is not None and (token.start < at or joins(last.text, part)):
            found[-1] = Piece(last.text + part, _sum(last.score, token.score), _sum(last.loss, token.loss))
        else:
            found.append(Piece(part, token.score, token.loss))
        at = max(at, token.end)
    if at < len(text):
        found.append(Piece(text[at:], cut=True))
    return found


def _sum(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else a + b


def joins(before: str, after: str) -> bool:
    """Whether two parts of a text meet within what is drawn as one sign."""
    if not before or not after:
        return False
    last, first = before[-1], after[0]
    if last == JOINER or first == JOINER or unicodedata.category(first) in ("Mn", "Me", "Mc"):
        return True
    if "\U0001f3fb" <= first <= "\U0001f3ff" or (last, first) == ("\r", "\n"):  # the colour of a skin
        return True
    flags = len(before) - len(before.rstrip("".join(chr(0x1F1E6 + k) for k in range(26))))
    return "\U0001f1e6" <= first <= "\U0001f1ff" and flags % 2 == 1


def visible(text: str) -> str:
    r"""The text with signs for what cannot be seen: breaks, control characters, and spaces where there is nothing else.

    >>> visible("a\tb"), visible("  "), visible("\u202eabc")
    ('a⇥\tb', '··', '⟨U+202E⟩abc')
    """
    text = text.replace("\r\n", "\n")
    if text.isspace():
        text = "".join(c if c in BREAKS else GAP for c in text)
    return "".join(_seen(c) for c in text)


def quoted(text: str) -> str:
    r"""The text on one line, spaces at its edges as signs.

    >>> quoted(" love"), quoted("\n\n")
    ('␣love', '↵↵')
    """
    inner = text.strip(" ")
    if not inner:
        return SPACE * len(text)
    before, after = text[: len(text) - len(text.lstrip(" "))], text[len(text.rstrip(" ")) :]
    return SPACE * len(before) + "".join(_seen(c)[0] if c in BREAKS else _seen(c) for c in inner) + SPACE * len(after)


def _seen(c: str) -> str:
    if c in BREAKS:
        return BREAKS[c]
    odd = unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and c not in KEPT
    return f"⟨U+{ord(c):04X}⟩" if odd else c

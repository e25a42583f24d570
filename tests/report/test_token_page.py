"""Scores by token as people see them: pieces of whole characters, a page that hostile texts do not break, a terminal.

python -m pytest tests/report/test_token_page.py
"""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa
import pytest

from influence_cli.cli.console import terminal
from influence_cli.cli.show.tokens import HARMS, HELPS, show_tokens, style_of
from influence_cli.data.tables import with_provenance
from influence_cli.report.token_page import token_page
from influence_cli.report.token_pieces import Piece, Token, pieces_of, quoted, visible
from influence_cli.report.token_rows import token_rows

HOSTILE = '</span><script>alert("x")</script> \u202eevil & <b>'
TEXTS = {"r1": "To be,\n or not", "<i>\u202e": HOSTILE, "rtl": "שלום עולם"}


def tokens_of(text: str, *parts: str, scores: list[float] | None = None) -> list[Token]:
    """Tokens that follow each other in a text."""
    found, at = list[Token](), 0
    for k, part in enumerate(parts):
        found.append(Token(at, at + len(part), part, float(k + 1) if scores is None else scores[k], 1.0))
        at += len(part)
    assert text.startswith("".join(parts))
    return found


# ---- pieces -----------------------------------------------------------------------------------------------------


def test_tokens_that_are_parts_of_a_character_are_one_piece_with_their_sum() -> None:
    shared = [Token(0, 1, "日", 0.5, 1.0), Token(0, 1, "日", 0.25, 2.0), Token(0, 2, "日本", 1.0, 4.0)]
    assert pieces_of("日本!", [*shared, Token(2, 3, "!", -1.0, 1.0)]) == [
        Piece("日本", 1.75, 7.0),
        Piece("!", -1.0, 1.0),
    ]


@pytest.mark.parametrize(
    ("parts", "seen"),
    [
        (("cafe", "\u0301", "s"), ["cafe\u0301", "s"]),  # an accent
        (("👩", "\u200d", "👩", " a"), ["👩\u200d👩", " a"]),  # people joined
        (("👍", "🏽"), ["👍🏽"]),  # a skin's colour
        (("🇩", "🇪", "🇫", "🇷"), ["🇩🇪", "🇫🇷"]),  # flags
        (("❤", "\ufe0f", "x"), ["❤\ufe0f", "x"]),
        (("a\r", "\nb"), ["a\r\nb"]),
    ],
)
def test_what_is_drawn_as_one_sign_is_one_piece(parts: tuple[str, ...], seen: list[str]) -> None:
    text = "".join(parts)
    found = pieces_of(text, tokens_of(text, *parts))
    assert [p.text for p in found] == seen
    assert sum(p.score or 0.0 for p in found) == sum(range(1, len(parts) + 1))


def test_pieces_are_the_text_whatever_tokens_leave_out() -> None:
    tokens = [Token(0, 0, "<s>", None, None), Token(1, 3, "bc", 1.0, 1.0), Token(5, 6, "f", 2.0, 1.0)]
    found = pieces_of("abcdefgh", tokens)
    assert "".join(p.text for p in found if not p.added) == "abcdefgh"
    assert [(p.text, p.score, p.added, p.cut) for p in found] == [
        ("<s>", None, True, False), ("a", None, False, False), ("bc", 1.0, False, False), ("de", None, False, False),
        ("f", 2.0, False, False), ("gh", None, False, True),
    ]  # fmt: skip


def test_what_cannot_be_seen_has_a_sign() -> None:
    assert visible("a\n\nb\tc") == "a↵\n↵\nb⇥\tc"
    assert visible("   ") == "···"
    assert visible(" x") == " x"  # its colour shows it
    assert visible("\x1b[31m\u202e\u2066") == "⟨U+001B⟩[31m⟨U+202E⟩⟨U+2066⟩"
    assert visible("👩\u200d👩") == "👩\u200d👩"
    assert (quoted("  a b \n"), quoted("\t"), quoted("   ")) == ("␣␣a b ↵", "⇥", "␣␣␣")


# ---- the page ---------------------------------------------------------------------------------------------------


def made() -> pa.Table:
    """A table of three rows."""
    columns: dict[str, list[Any]] = {n: [] for n in ("id", "side", "rank", "row_score", "token", "start", "end")}
    columns |= {"score": [], "loss": []}
    for (name, text), side in zip(TEXTS.items(), ("helpful", "harmful", "harmful"), strict=True):
        spans = [(0, 0), *(match.span() for match in re.finditer(r"\s*\w+|\s*\W", text))]
        for k, (a, b) in enumerate(spans):
            score = None if k == 0 else 0.01 * k if side == "helpful" else -0.02 * k
            row = (name, side, 1, 0.5, text[a:b] or "<begin>", a, b, score, None if k == 0 else 2.0)
            for column, value in zip(columns, row, strict=True):
                columns[column].append(value)
    spec = {"methods": ["ip"], "objectives": ["utility"]}
    about = {"manifest": {}, "target": {"rows": 5}, "spec": spec, "stage": "tokens"}
    return with_provenance(
        pa.table(columns), {**about, "tokens": {"decomposition": "loss", "score_is": "score_utility"}}
    )


class Page(HTMLParser):
    """Tags, and the text in the boxes of the rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.titles: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if ("class", "text") in attrs:
            self._inside = True
            self.texts.append("")
        self.titles += [value or "" for name, value in attrs if name == "title"]

    def handle_endtag(self, tag: str) -> None:
        if tag == "div":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[-1] += data


def test_texts_stand_on_the_page_as_they_are_and_are_no_markup() -> None:
    page = Page(token_page(made(), TEXTS, [("t<b>", HOSTILE)]))
    assert not {"script", "i"} & set(page.tags[page.tags.index("article") :])
    assert page.texts == [visible(HOSTILE), *("<begin>" + visible(text) for text in TEXTS.values())]
    assert "\u202e" not in token_page(made(), TEXTS, [("t", HOSTILE)])
    assert "+0.01, loss 2" in page.titles


def test_the_page_fetches_nothing_runs_nothing_and_is_replaced_as_ours() -> None:
    text = token_page(made(), TEXTS, [("t", "To be")])
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert '<meta name="generator" content="influence">' in text
    assert "prefers-color-scheme: dark" in text


def test_colours_are_by_sign_and_size_and_the_strongest_are_named() -> None:
    text = token_page(made(), TEXTS, [("t", "To be")])
    assert re.search(r'<span class="p8 top" title="\+0\.0[56][^"]*">', text) is None  # weaker than those of other rows
    assert '<span class="n8 low"' in text
    assert re.search(r'<span class="p\d top"', text)
    assert "full from" in text
    assert "and 4 more target texts" in text
    assert text.index("Most helpful rows") < text.index("Most harmful rows")


# ---- a terminal -------------------------------------------------------------------------------------------------


class Found:
    """What a stage hands to a terminal."""

    def __init__(self) -> None:
        self.table, self.texts, self.targets = made(), TEXTS, [("t1", "Whether 'tis nobler")]


@pytest.mark.parametrize("color", ["always", "never"])
def test_a_terminal_shows_texts_in_colour_and_names_the_strongest(color: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal(), "color", color)
    monkeypatch.setattr(terminal(), "quiet", True)
    stream = io.StringIO()
    show_tokens(Found(), stream)  # type: ignore[arg-type]
    shown = stream.getvalue()
    assert ("\x1b[" in shown) == (color == "always")
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "helps most: “␣not” +0.05" in plain.replace("\n", " ")
    assert "To be,↵" in plain
    assert "⟨U+202E⟩" in plain
    assert "\u202e" not in plain
    assert plain.startswith("target t1\n  Whether 'tis nobler\n")


def test_styles_are_by_share() -> None:
    assert style_of(1.0) == HELPS[0][1]
    assert style_of(-0.4) == HARMS[1][1]
    assert style_of(0.05) == style_of(0.0) == ""


def test_rows_know_their_strongest_pieces_and_the_scale_leaves_out_the_very_largest() -> None:
    shown = token_rows(made(), TEXTS)
    first = shown.of_side("helpful")[0]
    assert [p.score for p in first.strongest(1, 2)] == sorted((p.score for p in first.pieces if p.score), reverse=True)[
        :2
    ]
    assert first.strongest(-1) == []
    assert shown.share(Piece("x", 10.0)) == 1.0
    assert shown.share(Piece("x", -10.0)) == -1.0

"""The review page in a browser: filters, decisions by keyboard, undo, what is saved; hostile text; no request; axe.

python -m pytest tests/report/review/test_review_page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from influence_cli.report.review.histogram import BINS, HEIGHT, histogram
from influence_cli.report.review.page import as_json, review_page
from influence_cli.report.review.rows import Review, ReviewRow, Value, Why, together
from influence_cli.report.review.shades import RowTokens, scale_of, shaded
from influence_cli.report.token_pieces import Token
from tests.browser import chromium

HOSTILE = "</script><script>window.hit=1</script><img src=http://127.0.0.1:9/x onerror=window.hit=2>\"'&\0\u2028\u202e"
CLASSES = ("cat", "dog", HOSTILE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def row(k: int, **more: Any) -> ReviewRow:
    """A row whose label is class k % 3 and whose proposal is the next one."""
    label, proposed = k % 3, (k + 1) % 3
    about: dict[str, Any] = {
        "id": f"r{k:03d}", "row_key": f"{k:032x}", "label": CLASSES[label], "number": label, "score": -1.0 / (k + 1),
        "rank": k + 1, "reason": "low", "proposed": CLASSES[proposed], "proposed_number": proposed, "gain": "1.5 more",
        "agreement": 0.8, "slices": {"source": "left" if k % 2 else "right"}, "card": {"texts": {"text": f"text {k}"}},
    }  # fmt: skip
    return ReviewRow(**{**about, **more})


def review(rows: list[ReviewRow], **more: Any) -> Review:
    scores = np.linspace(-1.0, 1.0, 100)
    about: dict[str, Any] = {
        "title": f"Trim rows of {HOSTILE}?", "answer": "Some rows.", "command": "influence curate 'a b'",
        "apply": "influence curate s.parquet --decisions decisions.json -o decided.parquet", "fingerprint": "f" * 32,
        "rows": rows, "scores": scores, "flagged": scores < -0.5, "cut": -0.5, "column": "score",
        "decisions": ("keep", "drop", "relabel"), "classes": CLASSES, "by_class": [("cat", 40, 10), (HOSTILE, 0, 0)],
        "by_slice": {"source": [("left", 50, 5)]}, "pairs": [("cat", HOSTILE, 3)], "facts": [("manifest", HOSTILE)],
    }  # fmt: skip
    return Review(**{**about, **more})


class Opened:
    """The page in a context of its own, with what it asked for and what went wrong in it."""

    def __init__(self, browser: Any, place: Path, made: Review, **context: Any) -> None:
        place.write_text(review_page(made), encoding="utf-8")
        self.url, self.requests, self.problems = place.as_uri(), list[str](), list[str]()
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **context)
        self.page = self.open()

    def open(self) -> Any:
        page = self.context.new_page()
        page.on("request", lambda r: None if r.url.startswith("data:") else self.requests.append(r.url))
        page.on("pageerror", lambda e: self.problems.append(str(e)))
        page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        page.goto(self.url)
        return page

    def ids(self) -> list[str]:
        """The rows that are shown, once their cards are all made."""
        while self.page.evaluate("waiting.length"):
            self.page.wait_for_timeout(10)
        return self.page.locator(".card .id").all_text_contents()

    def said(self) -> str:
        return self.page.inner_text("#said")

    def saved(self) -> dict[str, Any]:
        with self.page.expect_download() as found:
            self.page.click("#save")
        return json.loads(Path(found.value.path()).read_text())


def test_ten_rows_are_decided_by_keyboard_and_saved(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "page.html", review([row(k) for k in range(12)]))
    for key in "kdrdkrrddku":  # the eleventh takes the tenth back
        opened.page.keyboard.press(key)
    assert opened.said() == "9 of 12 rows decided: keep 2, drop 4, relabel 3"
    opened.page.keyboard.press("ArrowRight")
    opened.page.keyboard.press("ArrowLeft")
    opened.page.keyboard.press("d")
    found = opened.saved()
    names = {"k": "keep", "d": "drop", "r": "relabel"}
    assert [(d["id"], d["decision"]) for d in found["decisions"]] == [
        (f"r{k:03d}", names[key]) for k, key in enumerate("kdrdkrrddd")
    ]
    relabelled = {d["id"]: (d["label"], d["label_name"]) for d in found["decisions"] if d["decision"] == "relabel"}
    assert relabelled == {"r002": (0, "cat"), "r005": (0, "cat"), "r006": (1, "dog")}
    assert [d["row_key"] for d in found["decisions"]] == [f"{k:032x}" for k in range(10)]
    assert (found["rows"], found["undecided"]) == (12, 2)
    opened.page.close()  # the browser keeps what was decided
    opened.page = opened.open()
    assert opened.said().startswith("10 of 12 rows decided")
    assert opened.saved() == found
    other = Opened(browser, tmp_path / "other.html", review([row(k) for k in range(12)], fingerprint="e" * 32))
    assert other.said() == "0 of 12 rows decided"


def test_filters_search_and_order(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "page.html", review([row(k, agreement=1.0 - k / 20) for k in range(12)]))
    page = opened.page
    page.select_option("#by-label", label="cat (4)")
    assert opened.ids() == ["r000", "r003", "r006", "r009"]
    page.select_option("select[data-slice=source]", label="left (6)")
    assert opened.ids() == ["r003", "r009"]
    page.select_option("#by-label", "")
    page.select_option("select[data-slice=source]", "")
    page.select_option("#by-proposed", label="cat (4)")
    assert opened.ids() == ["r002", "r005", "r008", "r011"]
    page.select_option("#by-proposed", "")
    page.fill("#search", "TEXT 7")
    assert opened.ids() == ["r007"]
    page.keyboard.press("d")  # a letter of the search, and no decision
    assert opened.said() == "0 of 12 rows decided"
    page.fill("#search", "")
    page.select_option("#sort", "agreement")
    assert opened.ids()[0] == "r011"
    page.select_option("#sort", "high")
    page.locator(".card", has_text="r004").get_by_role("button", name="drop").click()
    page.check("#undecided")
    assert opened.ids() == [f"r{k:03d}" for k in range(11, -1, -1) if k != 4]
    assert page.inner_text("#count") == "11 of 12 rows shown"


def test_another_label_is_chosen_from_the_list(browser: Any, tmp_path: Path) -> None:
    lone = [row(0, proposed=None, proposed_number=None), row(1)]
    opened = Opened(browser, tmp_path / "page.html", review(lone))
    opened.page.keyboard.press("r")  # nothing is proposed: the list of labels is next
    assert opened.page.evaluate("document.activeElement.className") == "other"
    opened.page.locator("#row-0 select.other").select_option("1")
    assert opened.saved()["decisions"] == [
        {"id": "r000", "row_key": f"{0:032x}", "decision": "relabel", "label": 1, "label_name": "dog"}
    ]
    plain = Opened(browser, tmp_path / "plain.html", review(lone, decisions=("keep", "drop"), classes=None))
    assert plain.page.locator("#row-0 button").all_text_contents() == ["keep", "drop"]


def test_hostile_text_changes_nothing_and_nothing_is_fetched(browser: Any, tmp_path: Path) -> None:
    why = Why(hurts=[(HOSTILE, HOSTILE, -2.0)], helped_by=[(HOSTILE, "cat", 0.9)])
    bad = row(
        0, id=HOSTILE, label=HOSTILE, reason=HOSTILE, slices={HOSTILE: HOSTILE}, why=why,
        card={"texts": {HOSTILE: HOSTILE}}, values=[Value(HOSTILE, "1", "0 to 2", True)],
        copies=[(HOSTILE + "2", "a" * 32)],
    )  # fmt: skip
    opened = Opened(browser, tmp_path / "page.html", review([bad, row(1)], notes=[HOSTILE], not_shown=[HOSTILE]))
    assert opened.page.evaluate("window.hit") is None
    assert opened.page.locator(".card img, script").count() == 2  # the data and the script of the page
    assert "<img src=http://127.0.0.1:9/x" in opened.page.text_content("#row-0 .id")
    assert "⟨U+0000⟩" in opened.page.text_content("#row-0 .id")
    assert "⟨U+0000⟩" in opened.page.inner_text("h1")
    opened.page.keyboard.press("d")
    assert [d["id"] for d in opened.saved()["decisions"]] == [HOSTILE, HOSTILE + "2"]
    assert opened.requests == [opened.url]
    assert opened.problems == []
    opened.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.hit=3>')")
    assert opened.page.evaluate("fetch('http://127.0.0.1:9').then(() => 'sent', () => 'refused')") == "refused"
    assert opened.page.evaluate("window.hit") is None


TEXT = f"no good {HOSTILE}"
TOKENS = [Token(0, 0, "[CLS]", 0.1, None), Token(0, 2, "no", -2.0, None), Token(3, 7, "good", 1.0, None)]


def with_tokens(what: str = "gradient") -> Review:
    """A page of two rows, the tokens of one of which have numbers: 2 is the size of the full colour."""
    tokens = RowTokens(what, {"text": TOKENS})
    scale = scale_of([tokens])
    assert scale is not None
    scale = replace(scale, full=2.0)
    shades = {"text": shaded(TEXT, TOKENS, scale)}
    return review([row(0, card={"texts": {"text": TEXT}}, shades=shades), row(1)], scale=scale)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_are_shaded_by_their_numbers_and_named(browser: Any, tmp_path: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    opened = Opened(browser, tmp_path / "page.html", with_tokens(), color_scheme=scheme)
    page = opened.page
    pieces = page.locator("#row-0 .text > *")
    assert [(p.text_content(), p.get_attribute("title")) for p in pieces.all()[:3]] == [
        ("[CLS]", "+0.1"), ("no", "−2"), ("good", "+1"),
    ]  # fmt: skip
    assert [p.get_attribute("class") for p in pieces.all()[:3]] == ["added", "n8 low", "p4 top"]
    colours = [p.evaluate("e => getComputedStyle(e).backgroundColor") for p in pieces.all()[1:3]]
    most = {"light": 0.62, "dark": 0.65}[scheme]
    assert colours[0].startswith("rgba(")
    assert float(colours[0].rstrip(")").split(",")[-1]) == pytest.approx(most, abs=0.01)
    assert float(colours[1].rstrip(")").split(",")[-1]) == pytest.approx(most / 2, abs=0.01)
    assert page.locator("#row-0 .named").all_text_contents() == [
        "speaks for the label: good +1",
        "speaks against it: no −2",
    ]
    assert page.locator("#row-1 .named").count() == 0
    assert page.text_content("#row-1 .text") == "text 1"
    assert "⟨U+0000⟩" in page.text_content("#row-0 .text")
    assert "by gradient times embedding" in page.inner_text("main")
    assert page.locator(".legend .scale i").count() == 17
    found = axe.Axe().run(page)
    assert [v["id"] for v in found.response["violations"] if v["impact"] in ("serious", "critical")] == []
    assert (page.evaluate("window.hit"), opened.requests, opened.problems) == (None, [opened.url], [])
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_pieces_of_a_long_text_are_cut_as_a_card_is() -> None:
    scale = scale_of([RowTokens("loss", {"text": [Token(0, 1, "a", -3.0, None)]})])
    assert scale is not None
    words = [Token(4 * k, 4 * k + 3, "abc", -1.0, None) for k in range(500)]
    made = shaded("abc " * 500, words, scale)
    assert made["pieces"][-1] == [" ... (500 more characters)", "", ""]
    assert sum(len(p[0]) for p in made["pieces"][:-1]) == 1500
    assert [what for what, _ in made["named"]] == ["least expected"]
    assert scale_of([RowTokens("loss", {"text": [Token(0, 1, "a", 0.0, None)]})]) is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_a_phone_scrolls_one_way(browser: Any, tmp_path: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    rows = [row(k, values=[Value("age", "99", "20 to 70", True)], why=Why([("t1", "cat", -1.0)])) for k in range(6)]
    rows[1] = row(1, id="x" * 300, label="y" * 200)
    opened = Opened(browser, tmp_path / "page.html", review(rows), color_scheme=scheme)
    for key in "kdr":
        opened.page.keyboard.press(key)
    found = axe.Axe().run(opened.page)
    assert [v["id"] for v in found.response["violations"] if v["impact"] in ("serious", "critical")] == []
    opened.page.set_viewport_size({"width": 390, "height": 844})
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390


def test_many_rows_are_shown_a_page_at_a_time(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "page.html", review([row(k) for k in range(130)]))
    assert len(opened.ids()) == 60
    opened.page.locator(".pager .next").first.click()
    assert opened.ids()[0] == "r060"
    opened.page.keyboard.press("ArrowLeft")  # back over the edge of the page
    opened.page.keyboard.press("d")
    assert opened.saved()["decisions"][0]["id"] == "r059"


def test_duplicates_of_one_label_are_shown_once() -> None:
    rows = [row(0), row(3), row(1), row(6, why=Why(duplicates=["r009", "r001", "gone"])), row(9)]
    made = together(rows, [b"a", b"a", b"a", b"b", b"c"])
    assert [(r.id, [name for name, _ in r.copies]) for r in made] == [
        ("r000", ["r003"]), ("r001", []), ("r006", ["r009"]),  # r001 has another label
    ]  # fmt: skip


def test_the_histogram_counts_every_row_once() -> None:
    scores = np.array([np.nan, *np.linspace(0.0, 1.0, 1000), -50.0])
    made = histogram(scores, np.isfinite(scores) & (scores < 0.1), 0.1)
    assert made is not None
    assert len(made.bars) == BINS
    assert max(b.flagged + b.others for b in made.bars) == pytest.approx(HEIGHT, abs=0.01)
    first, last = made.bars[0], made.bars[-1]
    assert first.flagged > 0 == last.flagged
    assert made.cut == pytest.approx((0.1 - made.low) / (made.high - made.low))
    assert made.words == "1,001 scores, from -50 to 1, median 0.499; 101 are flagged, up to 0.1"
    assert histogram(np.array([np.nan]), np.array([False]), None) is None


def test_json_in_a_page_ends_no_element() -> None:
    text = as_json({"a": HOSTILE})
    assert not set("<>&\u2028\0") & set(text)
    assert json.loads(text) == {"a": HOSTILE}

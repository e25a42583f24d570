"""Pages in a browser: nothing is cut off or fetched, text is legible, and who sees no picture is told what is in it.

python -m pytest tests/report/test_pages_in_browser.py
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from influence_cli.report.origin import Origin
from influence_cli.report.page import page
from influence_cli.report.token_page import token_page
from tests.report.test_report import result_of
from tests.report.test_token_page import TEXTS
from tests.report.test_token_page import made as made_tokens
from tests.report.test_verdicts import comparison

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [n for n in ("playwright", "axe_playwright_python") if importlib.util.find_spec(n) is None]
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install 'influence-cli[test]'"),
]
FLAGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
)
LONG = "x" * 300
HOSTILE = (
    f"</td></style><script>document.title='hacked'</script>\"'><img src=https://example.com/a.png>\x00\ud800{LONG}"
)
ORIGIN = Origin.now(f"influence evaluate '{HOSTILE}'", [("Manifest", f"data/{HOSTILE}", "0" * 32)])
LEAST_TEXT = """() => Math.min(...[...document.querySelectorAll('figure svg text')].map(
    t => { const m = t.getScreenCTM(); return parseFloat(getComputedStyle(t).fontSize) * Math.hypot(m.a, m.b) }))"""
CUT_OFF = """() => [...document.querySelectorAll('figure svg text')].filter(t => {
    const r = t.getBoundingClientRect(), f = t.closest('svg').getBoundingClientRect()
    return r.left < f.left - 4 || r.right > f.right + 4 || r.top < f.top - 4 || r.bottom > f.bottom + 4
}).map(t => t.textContent)"""


def refit(name: str) -> dict[str, Any]:
    """A result of retraining, in which a column of this name is held against random numbers."""
    mean = {"mean": 0.4, "half_width": 0.1, "verdict": "better"}
    column = {"lds": 0.5, "interval": [0.2, 0.7], "predicted": [0.1, 0.2, 0.3]}
    flips = {"flipped": {"1": 0.1, "8": 0.6}, "median": 4.0, "margin_drop": mean, "over_random": mean}
    return {
        "refit": {"deterministic": True, "model": name, "recipe": {"optimizer": "sgd"}},
        "train_rows": 90, "trainings": 3, "trainings_done": 3, "trainings_run_now": 3, "partial": True,
        "lds": {
            "columns": {name: column, "random": {**column, "lds": 0.0, "interval": None}},
            "measured": [0.3, 0.2, 0.1], "chance": 0.3, "ceiling": 0.9, "reliability": 0.8, "partial": False,
            "subsets": 3, "subsets_asked": 3, "subset_rows": 45, "seeds": 1, "phi_mean": 0.2, "phi_sd": 0.1,
            "differences": {name: {"random": {"difference": 0.5, "interval": [0.1, 0.9]}}}, "left_out": {name: name},
        },
        "brittleness": {
            "columns": {name: flips, "random": {**flips, "over_random": None}}, "removed_rows": [1, 8],
            "queries": 5, "queries_asked": 5, "partial": False,
        },
    }  # fmt: skip


def pages_of(name: str) -> dict[str, str]:
    """A page of every kind, with a column or an arm of this name."""
    tokens = token_page(made_tokens(), {**TEXTS, "r1": f"To be,\n or not {HOSTILE}"}, [(HOSTILE, HOSTILE)], ORIGIN)
    return {
        "detection": page(result_of(["ip", name, "random"]), origin=ORIGIN),
        "arms": page(comparison(-1, "dp_gap", -1, name), origin=ORIGIN),
        "refit": page(refit(name), origin=ORIGIN),
        "tokens": tokens,
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all pages."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def tab(browser: Any) -> Any:
    """One page for all documents: to open another takes longer than most tests."""
    return browser.new_page()


@pytest.fixture
def shown(tab: Any) -> Any:
    """The page as a new one is: empty, light, and as wide as a small screen."""
    tab.goto("about:blank")
    tab.set_viewport_size({"width": 1280, "height": 720})
    tab.emulate_media(color_scheme="light")
    return tab


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every page, of plain and of hostile names."""
    here = tmp_path_factory.mktemp("pages")
    for of, name in (("plain", "loss"), ("hostile", HOSTILE)):
        for kind, text in pages_of(name).items():
            (here / f"{kind}-{of}.html").write_text(text, encoding="utf-8")
    return here


KINDS = ["detection", "arms", "refit", "tokens"]


PHONE = {"width": 390, "height": 844}
FORMS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
ONLY_VIOLATIONS = {"resultTypes": ["violations"]}


@pytest.mark.parametrize("of", ["plain", "hostile"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_whole_legible_and_alone_on_every_screen(shown: Any, folder: Path, kind: str, of: str) -> None:
    asked = list[str]()
    shown.on("request", hear := lambda request: asked.append(request.url))
    shown.goto(f"file://{folder}/{kind}-{of}.html")
    for width, scheme in FORMS:
        shown.set_viewport_size({"width": width, "height": 844})
        shown.emulate_media(color_scheme=scheme)
        assert shown.evaluate("document.documentElement.scrollWidth") == width
        if kind != "tokens":
            assert shown.evaluate(LEAST_TEXT) >= 10.0
            if of == "plain":
                assert shown.evaluate(CUT_OFF) == []
    assert asked == [f"file://{folder}/{kind}-{of}.html"]
    assert shown.title() != "hacked"
    assert shown.locator("script, img, iframe").count() == 0
    shown.remove_listener("request", hear)


@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing_serious(shown: Any, folder: Path, kind: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    shown.set_viewport_size(PHONE)
    shown.goto(f"file://{folder}/{kind}-plain.html")
    for scheme in ("light", "dark"):
        shown.emulate_media(color_scheme=scheme)
        found = Axe().run(shown, options=ONLY_VIOLATIONS).response["violations"]
        grave = [v for v in found if v["impact"] in ("serious", "critical")]
        assert [(v["id"], [n["html"] for n in v["nodes"]][:3]) for v in grave] == []


def test_the_verdict_is_on_a_phone_s_screen_however_far_the_table_is_scrolled(shown: Any, folder: Path) -> None:
    shown.set_viewport_size(PHONE)
    shown.goto(f"file://{folder}/arms-plain.html")
    frame = shown.locator("div.wide").first
    assert frame.evaluate("f => f.scrollWidth > f.clientWidth")
    frame.evaluate("f => f.scrollTo(f.scrollWidth, 0)")
    box = frame.locator("td.verdict").first.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390


def test_figures_have_words_and_the_page_s_own_colours(shown: Any, folder: Path) -> None:
    colours = []
    for scheme in ("light", "dark"):
        shown.emulate_media(color_scheme=scheme)
        shown.goto(f"file://{folder}/detection-plain.html")
        svg = shown.locator("figure svg").first
        assert svg.get_attribute("role") == "img"
        titled, described = (shown.locator(f"#{i}") for i in svg.get_attribute("aria-labelledby").split())
        assert titled.text_content() == "Finding wrong labels: precision and recall"
        assert described.text_content().startswith("across: recall. up: precision. shown: loss AP ")
        colours.append(svg.locator("text").first.evaluate("t => getComputedStyle(t).fill"))
    assert colours == ["rgb(27, 27, 27)", "rgb(236, 236, 236)"]
    text = (folder / "detection-plain.html").read_text()
    ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
    assert len(set(ids)) == len(ids)


def test_links_of_the_contents_lead_to_what_they_name(shown: Any, folder: Path) -> None:
    shown.set_viewport_size(PHONE)
    shown.goto(f"file://{folder}/refit-plain.html")
    shown.get_by_role("link", name="Figures").click()
    assert shown.locator("#figures").bounding_box()["y"] < 844
    for link in shown.locator("nav a").all():
        assert shown.locator(link.get_attribute("href")).count() == 1

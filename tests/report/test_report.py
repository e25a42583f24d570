"""The page and the pictures: self-contained, escaped, deterministic, and there only where matplotlib is.

python -m pytest tests/report/test_report.py
"""

from __future__ import annotations

import html.parser
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from influence_cli.report.figures import panels_of, write_plot
from influence_cli.report.page import page
from influence_cli.report.tables import tables_of
from influence_cli.report.text_table import Judged
from influence_cli.stages.evaluate.detection import detect
from influence_cli.stages.evaluate.truth import Truth
from tests.cases import call_cli, write

HOSTILE = "<script>alert('x')</script> $\\frac{1}{0}$ \x1b[31m _é漢"


class Elements(html.parser.HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


class Cells(html.parser.HTMLParser):
    """The rows of a page's tables, cell by cell, as they read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            assert tag == "td" or ("scope" in dict(attrs))
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


def as_on_a_page(cell: str) -> str:
    """A cell as a page has it: the verdict before its figure."""
    return f"{cell.verdict} {cell.figure}" if isinstance(cell, Judged) else cell


def holds_every_row(text: str, result: dict[str, Any]) -> bool:
    """Whether a page has the rows of every table, whole; the column of verdicts stands second."""
    rows = [sorted(row) for row in Cells(text).rows]
    for table in tables_of(result):
        for row in table.rows:
            judged = [as_on_a_page(c) if k == table.verdict else str(c) for k, c in enumerate(row)]
            if sorted(judged) not in rows:
                return False
    return True


def result_of(names: list[str]) -> dict[str, Any]:
    """A result of ``evaluate`` with columns of these names, on simulated scores."""
    rng = np.random.default_rng(0)
    wrong = np.arange(80) < 20
    columns = {name: rng.normal(size=80) - k * wrong for k, name in enumerate(names)}
    found = detect(columns, Truth(wrong, np.ones(80, dtype=bool), "x"), 8, 40, 0)
    pairs = [
        {"a": a, "b": b, "spearman": None if i == 0 else 0.5, "rows": 80, "jaccard": 0.1, "sign_agreement": None}
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    return {
        "wrong_rows": 20,
        "known_rows": 80,
        "budget_rows": 8,
        "truth": f"{HOSTILE}.parquet",
        "detection": found.pop("columns"),
        "order": {"columns": names, "pairs": pairs},
        **found,
    }


def test_a_page_escapes_every_name_and_asks_for_nothing() -> None:
    text = page(result_of(["ip", HOSTILE, "random"]), title=HOSTILE)
    elements = Elements(text)
    assert "script" not in elements.tags
    assert "&lt;script&gt;" in text
    assert not {"img", "link", "iframe", "object", "embed", "base", "form"} & set(elements.tags)
    assert not [name for name, _ in elements.attributes if name.startswith("on") or name in ("src", "srcset", "action")]
    links = [value for name, value in elements.attributes if name in ("href", "xlink:href")]
    assert all(value is not None and value.startswith("#") for value in links)
    assert not re.findall(r"url\((?!#)", text.replace("url('#", "url(#"))
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert elements.tags.count("svg") == len(panels_of(result_of(["ip", HOSTILE, "random"])))
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text


def test_the_same_result_gives_the_same_page(tmp_path: Path) -> None:
    result = result_of(["a", "b"])
    assert page(result) == page(result)
    for name in ("1.png", "2.png"):
        write_plot(result, tmp_path / name)
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


def test_many_columns_and_columns_without_figures_still_make_a_page() -> None:
    result = result_of([f"a column with a rather long name, number {k}" for k in range(14)])
    next(iter(result["detection"].values())).update(dict.fromkeys(("auc", "average_precision"), None))
    assert page(result).count("<svg") == 4
    for d in result["detection"].values():
        d.update(dict.fromkeys(("auc", "average_precision"), None))
    assert page({**result, "reference": None}).count("<svg") == 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, scored: Path) -> tuple[Path, Any, str]:
    """A folder with the page and the picture that the command wrote, and what it printed."""
    here = tmp_path_factory.mktemp("made")
    ran = call_cli("evaluate", scored, "--report", "r.html", "--plot", "p.png", "--format", "json", cwd=here)
    assert ran.code == 0, ran.err
    return here, ran.json, ran.err


def test_the_command_writes_a_page_and_a_picture_beside_its_result(made: tuple[Path, Any, str]) -> None:
    here, result, said = made
    assert "report written to r.html" in said
    text = (here / "r.html").read_text()
    assert holds_every_row(text, result)
    with Image.open(io.BytesIO((here / "p.png").read_bytes())) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
        shades = image.convert("RGB").getcolors(1 << 24)
    assert len(shades) > 50  # there is something on it
    assert sorted(p.name for p in here.iterdir()) == ["p.png", "r.html"]


def test_every_kind_of_result_has_a_page(tmp_path: Path, scored: Path, digits_run: Path, digits: Path) -> None:
    table = pq.read_table(scored)
    write(table, tmp_path / "again.parquet")
    run = ["--checkpoint", digits_run, "--no-store"]
    for name, asked in {
        "against": [scored, "--against", "again.parquet"],
        "sentinel": [scored, "--sentinel", "1%", *run],
        "stability": [scored, "again.parquet", "--stability"],
    }.items():
        ran = call_cli("evaluate", *asked, "--report", f"{name}.html", "--draws", "40", cwd=tmp_path)
        assert ran.code == 0, ran.err
        assert "<svg" in (tmp_path / f"{name}.html").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--report", "r.pdf"], "is no .html file"),
        (["--plot", "-"], "is no .png file"),
        (["--report", "r.html", "-o", "r.html"], "two outputs have the same name"),
        (["--plot", "gone/../file/p.png"], "cannot"),
    ],
)
def test_outputs_that_cannot_be_exit_2_before_any_work(
    flags: list[str], said: str, tmp_path: Path, scored: Path
) -> None:
    (tmp_path / "file").touch()
    ran = call_cli("evaluate", scored, *flags, cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert said in ran.err


def test_without_matplotlib_the_error_names_the_command_and_the_rest_works(
    tmp_path: Path, scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    ran = call_cli("evaluate", scored, "--report", "r.html", cwd=tmp_path)
    assert ran.code == 2
    assert "pip install 'influence-cli[report]'" in ran.err
    assert list(tmp_path.iterdir()) == []
    assert call_cli("evaluate", scored, "--draws", "40", cwd=tmp_path).code == 0

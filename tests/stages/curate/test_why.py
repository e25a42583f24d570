"""The reasons on a review page are those of ``score --explain``; or a sentence says why there are none.

python -m pytest tests/stages/curate/test_why.py
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cases import call_cli


def rows_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page.read_text(), re.S)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture
def folder(tabular: Path, tabular_run: Path, tmp_path: Path) -> Path:
    shutil.copy(tabular, tmp_path / "m.parquet")
    asked = ("m.parquet", "--checkpoint", tabular_run, "--method", "ip", "--method", "loss", "-o", "s.parquet", "-q")
    assert call_cli("score", *asked, cwd=tmp_path).code == 0
    return tmp_path


def test_the_page_has_the_reasons_that_explain_says(folder: Path) -> None:
    ran = call_cli("curate", "s.parquet", "--by", "score_ip_utility", "--budget", "3", "--report", "r.html", cwd=folder)
    assert ran.code == 0, ran.err
    data = rows_of(folder / "r.html")
    ids = [row["id"] for row in data["rows"]]
    told = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "s", "--explain", ids[0], cwd=folder)
    assert told.code == 2  # no such checkpoint: the run of the table is what counts
    ran = call_cli("score", "s.parquet", "--explain", ",".join(ids), "--top", "3", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    explained = {row["id"]: row["reasons"] for row in json.loads(ran.out)["rows"]}
    for row in data["rows"]:
        expected = explained[row["id"]]
        assert [(i, v) for i, _, v in row["why"]["hurts"]] == [(t["id"], t["value"]) for t in expected["hurts"]]
        assert [i for i, *_ in row["why"]["other"]] == [n["id"] for n in expected["other_label"]]
        assert all(value < 0 for *_, value in row["why"]["hurts"])


def test_so_many_rows_as_asked_have_reasons_and_without_any_no_model_is_looked_at(folder: Path) -> None:
    asked = (
        "curate",
        "s.parquet",
        "--by",
        "score_ip_utility",
        "--budget",
        "3",
        "-q",
        "--report",
        "r.html",
        "--reasons",
    )
    assert call_cli(*asked, "1", cwd=folder).code == 0
    assert ["why" in row for row in rows_of(folder / "r.html")["rows"]] == [True, False, False]
    assert "The first 1 rows have reasons" in (folder / "r.html").read_text()
    assert call_cli(*asked, "0", cwd=folder).code == 0
    assert not any("why" in row for row in rows_of(folder / "r.html")["rows"])


def test_a_model_that_is_gone_leaves_the_page_with_a_sentence(folder: Path, tabular_run: Path) -> None:
    moved = folder / "run"
    shutil.copytree(tabular_run, moved)
    assert (
        call_cli(
            "score", "--method", "ip", "m.parquet", "--checkpoint", "run", "-o", "t.parquet", "-q", cwd=folder
        ).code
        == 0
    )
    shutil.rmtree(moved)
    ran = call_cli("curate", "t.parquet", "--budget", "3", "--report", "r.html", "-q", cwd=folder)
    assert ran.code == 0, ran.err
    assert "No reasons are shown: " in (folder / "r.html").read_text()
    assert len(rows_of(folder / "r.html")["rows"]) == 3


def test_scores_of_several_columns_have_no_reasons(folder: Path) -> None:
    by = ("--by", "score_ip_utility", "--by", "score_loss")
    assert call_cli("curate", "s.parquet", *by, "--budget", "3", "--report", "r.html", "-q", cwd=folder).code == 0
    assert "is made of several columns" in (folder / "r.html").read_text()

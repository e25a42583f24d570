"""Exports of what stands around a table: a list's brackets, comments before a CSV; Excel is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.exports.test_export import asked, curate, refused, run, scores

ROWS = [{"id": f"r{k}", "x": k * k % 7, "note": "a, [b]", "kind": ["cat", "dog"][k // 6 % 2]} for k in range(24)]
MAKE = ("--label", "kind", "--split", "100/0/0", "-o", "m.parquet")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_of_objects_comes_back_as_one(indent: int | None, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS, indent=indent))
    run("manifest", "rows.json", *MAKE, cwd=tmp_path)
    scores(tmp_path, {"r3": 1, "r5": 1})
    curate(tmp_path, "trim", 2, "--export", "trimmed.json")
    kept = [row for row in ROWS if row["id"] not in ("r3", "r5")]
    assert json.loads((tmp_path / "trimmed.json").read_text()) == kept
    curate(tmp_path, "relabel", 1, "--export", "relabelled.json")
    relabelled = [{**row, "kind": "dog"} if row["id"] == "r3" else row for row in ROWS]
    assert json.loads((tmp_path / "relabelled.json").read_text()) == relabelled
    run("manifest", "trimmed.json", "--label", "kind", "-o", "again.parquet", cwd=tmp_path)


def test_a_new_list_is_asked_for_by_name_since_json_is_label_studios_too(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run("manifest", "rows.jsonl", *MAKE, cwd=tmp_path)
    scores(tmp_path, {"r3": 1})
    curate(tmp_path, "trim", 1, "--export", "rows.json", "--export-as", "json")
    made = json.loads((tmp_path / "rows.json").read_text())
    assert [row["id"] for row in made] == [row["id"] for row in ROWS if row["id"] != "r3"]
    assert {row["label"] for row in made} == {"cat", "dog"}


def test_comments_before_a_csv_are_kept(tmp_path: Path) -> None:
    head, lines = "# by me, 2024\n#\n", [",".join(("id", "x", "kind"))]
    lines += [f"{row['id']},{row['x']},{row['kind']}" for row in ROWS]
    (tmp_path / "rows.csv").write_text(head + "\n".join(lines) + "\n")
    run("manifest", "rows.csv", *MAKE, cwd=tmp_path)
    scores(tmp_path, {"r3": 1})
    curate(tmp_path, "trim", 1, "--export", "out.csv")
    assert (tmp_path / "out.csv").read_text() == head + "\n".join(lines[:4] + lines[5:]) + "\n"


def test_excel_is_refused_with_a_form_that_is_written(tmp_path: Path) -> None:
    pd.DataFrame(ROWS).to_excel(tmp_path / "rows.xlsx", index=False)
    run("manifest", "rows.xlsx", *MAKE, cwd=tmp_path)
    scores(tmp_path, {"r3": 1})
    refused(*asked("trim", 1), "--export", "out.xlsx", cwd=tmp_path, says="Excel is read, and not written")
    refused(*asked("trim", 1), "--export", "out.xlsx", cwd=tmp_path, says="--export out.csv --export-as csv")
    refused(*asked("trim", 1), "-o", "out.xlsx", cwd=tmp_path, says="--export out.xlsx writes rows in the form")
    curate(tmp_path, "trim", 1, "--export", "out.csv", "--export-as", "csv")
    assert len(pd.read_csv(tmp_path / "out.csv")) == len(ROWS) - 1

"""``--skip-bad``: rows that cannot be used are listed with column and reason, and the others are what they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.open import open_manifest
from influence_cli.errors import ManifestError
from tests.cases import Ran, call_cli, column, digits_table, examples, feature_table, run_program, run_python, write

Edit = Callable[[list[dict[str, Any]]], None]


def setting(row: int, name: str, value: Any) -> Edit:
    def edit(rows: list[dict[str, Any]]) -> None:
        rows[row][name] = value

    return edit


def truncated(row: int) -> Edit:
    def edit(rows: list[dict[str, Any]]) -> None:
        rows[row]["image"] = rows[row]["image"][:60]

    return edit


UNKNOWN = "the image cannot be decoded (no known image format)"
CUT = "the image cannot be decoded (image file is truncated)"
# what is done to rows of ``digits``: edit, row, column at fault, reason
BAD: dict[str, tuple[Edit, int, str, str]] = {
    "a null id": (setting(2, "id", None), 2, "id", "an id is null"),
    "an id twice": (setting(11, "id", "d0010"), 11, "id", "an id is there twice"),
    "a null label": (setting(5, "label", None), 5, "label", "a label is null"),
    "a negative label": (setting(6, "label", -3), 6, "label", "a label is negative (-3)"),
    "a label outside the classes": (setting(9, "label", 77), 9, "label", "label 77 is outside the model's 10 classes"),
    "an unknown split": (setting(13, "split", "holdout"), 13, "split", "unknown split 'holdout'"),
    "no image": (setting(17, "image", None), 17, "image", "the payload is empty"),
    "not an image": (
        setting(3, "image", b"no image"),
        3,
        "image",
        "the image cannot be decoded (no known image format)",
    ),
    "a truncated image": (truncated(30), 30, "image", CUT),
    "a target row": (truncated(203), 203, "image", CUT),
    "a target row's label": (setting(204, "label", 10), 204, "label", "label 10 is outside the model's 10 classes"),
}


def spoiled(*names: str) -> pa.Table:
    """``digits`` with these things wrong."""
    table = digits_table()
    rows = table.to_pylist()
    for name in names:
        BAD[name][0](rows)
    return pa.Table.from_pylist(rows, schema=table.schema)


def without(rows: set[int]) -> pa.Table:
    table = digits_table()
    return table.take([k for k in range(table.num_rows) if k not in rows])


def score_cli(folder: Path, run: Path, *more: Any, manifest: str = "m.parquet") -> Ran:
    method = () if "--method" in more else ("--method", "ip")
    return call_cli("score", manifest, "--checkpoint", run, "-o", "s.parquet", *method, *more, cwd=folder)


@pytest.mark.parametrize("case", list(BAD))
def test_a_bad_row_is_refused_by_name_and_left_out_when_asked(case: str, tmp_path: Path, digits_run: Path) -> None:
    _, row, name, reason = BAD[case]
    write(spoiled(case), tmp_path / "m.parquet")
    refused = score_cli(tmp_path, digits_run)
    assert refused.code == 2
    assert reason in refused.err
    assert f"column {name}" in refused.err
    assert "--skip-bad" in refused.err
    assert not (tmp_path / "s.parquet").exists()
    skipped = score_cli(tmp_path, digits_run, "--skip-bad")
    assert skipped.code == 0, skipped.err
    listed = f"d{row:04d}" if case not in ("a null id", "an id twice") else {2: "row 2", 11: "d0010"}[row]
    assert [line.split(maxsplit=1)[0] for line in skipped.err.splitlines() if reason in line] == [listed.split()[0]]
    write(without({row}), tmp_path / "good.parquet")
    assert score_cli(tmp_path, digits_run, "--no-store", manifest="good.parquet").code == 0
    expected = pq.read_table(tmp_path / "s.parquet")
    assert score_cli(tmp_path, digits_run, "--skip-bad").code == 0
    found = pq.read_table(tmp_path / "s.parquet")
    assert found.column("id").to_pylist() == expected.column("id").to_pylist()
    assert np.allclose(column(found), column(expected), rtol=0, atol=1e-6 * np.abs(column(expected)).max())


def test_all_of_them_at_once_and_again_from_the_store_without_torch(tmp_path: Path, digits_run: Path) -> None:
    write(spoiled(*BAD), tmp_path / "m.parquet")
    first = score_cli(tmp_path, digits_run, "--skip-bad")
    assert first.code == 0, first.err
    assert f"{len(BAD)} rows of m.parquet cannot be used and were left out" in first.err
    plan = call_cli(
        "score", "--method", "ip", "m.parquet", "--checkpoint", digits_run, "--skip-bad", "-n", cwd=tmp_path
    )
    assert plan.json["rows_to_compute"] == 0
    before = (tmp_path / "s.parquet").read_bytes()
    code = "import sys; from influence_cli.cli.main import run; code = run(sys.argv[1:]); print('torch' in sys.modules)"
    asked = ["score", "--method", "ip", "m.parquet", "--checkpoint", digits_run, "--skip-bad", "-o", "s.parquet"]
    ran = run_python(code, *asked, cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[2])})
    assert ran.text.strip() == "False", ran.err
    assert (tmp_path / "s.parquet").read_bytes() == before


def test_what_one_run_left_out_is_an_error_again_without_the_flag(tmp_path: Path, digits_run: Path) -> None:
    write(spoiled("not an image"), tmp_path / "m.parquet")
    assert score_cli(tmp_path, digits_run, "--skip-bad").code == 0
    again = score_cli(tmp_path, digits_run)
    assert again.code == 2
    assert "row id=d0003, column image" in again.err


def test_the_row_is_used_once_it_is_repaired(tmp_path: Path, digits_run: Path) -> None:
    write(spoiled("not an image"), tmp_path / "m.parquet")
    assert score_cli(tmp_path, digits_run, "--skip-bad").code == 0
    write(digits_table(), tmp_path / "m.parquet")
    assert score_cli(tmp_path, digits_run, "--skip-bad").code == 0
    assert "d0003" in pq.read_table(tmp_path / "s.parquet").column("id").to_pylist()


def test_later_stages_leave_out_the_same_rows(tmp_path: Path, digits_run: Path) -> None:
    write(spoiled(*BAD), tmp_path / "m.parquet")
    assert score_cli(tmp_path, digits_run, "--skip-bad").code == 0
    scored = set(pq.read_table(tmp_path / "s.parquet").column("id").to_pylist())
    curated = call_cli("curate", "s.parquet", "--budget", "10", "-o", "c.parquet", cwd=tmp_path)
    assert curated.code == 0, curated.err
    kept = pq.read_table(tmp_path / "c.parquet").to_pylist()
    train = {r["id"] for r in kept if r["split"] == "train"}
    assert train < scored
    assert len(train) == len(scored) - 10
    evaluated = call_cli("evaluate", "s.parquet", "--json", cwd=tmp_path)
    assert evaluated.json["train_rows"] == len(scored)
    assert "rows of m.parquet cannot be used and were left out" in evaluated.err
    piped = call_cli(
        "grads",
        "--method",
        "ip",
        "m.parquet",
        "--checkpoint",
        digits_run,
        "--skip-bad",
        "-o",
        "g.parquet",
        cwd=tmp_path,
    )
    assert piped.code == 0, piped.err
    again = call_cli("score", "g.parquet", "-o", "t.parquet", cwd=tmp_path)  # the table says that bad rows are skipped
    assert again.code == 0, again.err
    assert (
        pq.read_table(tmp_path / "t.parquet")
        .column("score")
        .equals(pq.read_table(tmp_path / "s.parquet").column("score"))
    )


def test_retrain_leaves_them_out_too(tmp_path: Path) -> None:
    write(spoiled(*BAD), tmp_path / "m.parquet")
    asked = ("retrain", "m.parquet", "--model", "mlp:8", "--epochs", "1", "--num-classes", "10", "-o", "run")
    assert call_cli(*asked, cwd=tmp_path).code == 2
    ran = call_cli(*asked, "--skip-bad", cwd=tmp_path)
    assert ran.code == 0, ran.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["arms"]["all rows"]["train_rows"] == 200 - sum(row < 200 for _, row, _, _ in BAD.values())


def test_retrain_lists_them_and_no_arm_has_them(tmp_path: Path) -> None:
    write(spoiled(*BAD), tmp_path / "m.parquet")
    asked = ("retrain", "m.parquet", "--against", "m.parquet", "--skip-bad", "--model", "mlp:8", "--epochs", "1")
    ran = call_cli(*asked, "-o", "run", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert f"{len(BAD)} rows of m.parquet cannot be used and were left out" in ran.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {b["row"] for b in metrics["left_out"]["m.parquet"]} == {row for _, row, _, _ in BAD.values()}
    expected = 200 - sum(row < 200 for _, row, _, _ in BAD.values())
    assert [metrics["arms"][name]["train_rows"] for name in ("curated", "no edit")] == [expected, expected]
    assert metrics["arms"]["curated"]["edits"]["trimmed"] == 0


def test_counterfactuals_of_such_scores_leave_out_test_rows_too(tmp_path: Path, digits_run: Path) -> None:
    table = spoiled("not an image")
    rows = table.to_pylist()
    truncated(270)(rows)
    setting(271, "label", 10)(rows)
    write(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "m.parquet")
    assert score_cli(tmp_path, digits_run, "--skip-bad").code == 0
    asked = ("evaluate", "s.parquet", "--lds", "3", "--epochs", "1", "--json")
    ran = call_cli(*asked, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert ran.json["test_rows"] == 58


def test_ragged_features_name_the_row_that_differs_from_most(tmp_path: Path) -> None:
    rows = examples()
    table = feature_table(rows)
    values = table.column("features").to_pylist()
    values[0] = values[0][:3]
    ragged = table.set_column(1, "features", pa.array(values, pa.list_(pa.float32())))
    path = write(ragged, tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="3 features where most rows have 5") as caught:
        open_manifest(path)
    assert "row id=r000, column features" in caught.value.where
    manifest = open_manifest(path, skip_bad=True)
    assert [b.id for b in manifest.bad] == ["r000"]
    assert len(manifest.rows("train")) == 39


def test_a_manifest_without_a_usable_row_is_an_error(tmp_path: Path, digits_run: Path) -> None:
    table = digits_table()
    nothing = table.set_column(1, "image", pa.array([None] * table.num_rows, pa.binary()))
    write(nothing, tmp_path / "m.parquet")
    ran = score_cli(tmp_path, digits_run, "--skip-bad")
    assert ran.code == 2
    assert "no usable row" in ran.err
    broken = table.set_column(1, "image", pa.array([b"x%d" % k for k in range(table.num_rows)], pa.binary()))
    write(broken, tmp_path / "b.parquet")
    ran = score_cli(tmp_path, digits_run, "--skip-bad", manifest="b.parquet")
    assert ran.code == 2
    assert "no target row can be used" in ran.err


def test_the_list_goes_to_standard_error(influence: Path, tmp_path: Path, digits_run: Path) -> None:
    write(spoiled("not an image"), tmp_path / "m.parquet")
    asked = ("score", "--method", "ip", "m.parquet", "--checkpoint", digits_run, "--skip-bad")
    ran = run_program(influence, *asked, cwd=tmp_path)
    assert ran.code == 0
    assert len(ran.rows) == 199
    assert "d0003" in ran.err

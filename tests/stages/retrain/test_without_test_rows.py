"""Where nothing is compared a training needs no test rows; what is not measured is said and not made up."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.cases import call_cli, examples, feature_table, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = feature_table(examples())
    write(table.filter(pc.not_equal(table["split"], "test")), tmp_path / "m.parquet")  # pyright: ignore
    return tmp_path


def test_a_training_alone_needs_no_test_rows(folder: Path) -> None:
    asked = ["retrain", "m.parquet", "--model", "linear", "--epochs", 2, "-o", "run"]
    ran = call_cli(*asked, "--format", "json", cwd=folder)
    assert ran.code == 0, ran.err
    assert "accuracy on test rows is not measured" in ran.err
    assert "there are no test rows to say how good it is" in ran.err
    (arm,) = ran.json["arms"].values()
    assert ran.json["test_rows"] == 0
    assert "accuracy" not in arm["seeds"]["0"]
    assert 0 <= arm["seeds"]["0"]["train_accuracy"] <= 1
    assert call_cli("score", "m.parquet", "--checkpoint", "run", "-o", "s.parquet", cwd=folder).code == 0
    assert pq.read_table(folder / "s.parquet").num_rows > 0
    assert call_cli(*asked, "-v", cwd=folder).code == 0


@pytest.mark.parametrize("more", [["--against", "m.parquet"], ["--attack", "linear"], ["--test", "m.parquet"]])
def test_a_comparison_does(folder: Path, more: list[str]) -> None:
    ran = call_cli("retrain", "m.parquet", "--model", "linear", "--epochs", 2, "-o", "run", *more, cwd=folder)
    assert (ran.code, "no test rows" in ran.err) == ((0, False) if more[0] == "--test" else (2, True)), ran.err

"""From Python a training that compares nothing needs no test rows; what is not measured is not made up."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import influence_cli
from influence_cli.errors import ManifestError
from influence_cli.report.answers import answer_of_retrain
from influence_cli.report.arm_tables import comparison_table
from tests.cases import Heard, call_cli, examples, feature_table, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = feature_table(examples())
    write(table.filter(pc.not_equal(table["split"], "test")), tmp_path / "m.parquet")  # pyright: ignore
    return tmp_path


def test_a_training_alone_needs_no_test_rows(folder: Path) -> None:
    heard = Heard()
    place, run = str(folder / "m.parquet"), str(folder / "run")
    metrics = influence_cli.retrain(place, run, model="linear", epochs=2, listener=heard)
    assert any("accuracy on test rows is not measured" in note for note in heard.notes)
    (arm,) = metrics["arms"].values()
    assert metrics["test_rows"] == 0
    assert "accuracy" not in arm["seeds"]["0"]
    assert 0 <= arm["seeds"]["0"]["train_accuracy"] <= 1
    assert "there are no test rows to say how good it is" in answer_of_retrain(metrics)
    assert comparison_table(metrics).rows[0][-2:] == ["-", "-"]
    assert (
        call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "run", "-o", "s.parquet", cwd=folder).code == 0
    )
    assert pq.read_table(folder / "s.parquet").num_rows > 0


def test_a_comparison_does(folder: Path) -> None:
    place = str(folder / "m.parquet")
    for more in ({"against": place}, {"attack": "linear"}):
        with pytest.raises(ManifestError, match="no test rows"):
            influence_cli.retrain(place, str(folder / "run"), model="linear", epochs=2, **more)
    ran = call_cli("retrain", "m.parquet", "--model", "linear", "-o", "run", cwd=folder)
    assert (ran.code, "no test rows" in ran.err) == (2, True)

"""What ``evaluate`` says of the model that was scored: accuracy, gaps between groups, accuracy under attack.

Reference: the figures of ``retrain`` for the same model, and gaps from logits by hand.

    python -m pytest tests/stages/evaluate/test_checkpoint_quality.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from influence_cli.report.answers import answer_of_evaluate
from tests.cases import call_cli
from tests.stages.curate.test_parity import apart

__all__ = ["apart"]
GAPS = ("dp_gap", "dp_gap_soft", "eo_gap", "eo_gap_soft")


@pytest.fixture(scope="module")
def scored_for_both(apart: Path) -> Path:
    """The rows of two groups, scored for fairness and for robustness."""
    asked = ["--objective", "fairness", "--objective", "robustness", "-o", "both.parquet", "-q"]
    ran = call_cli("score", "m.parquet", "--checkpoint", "RUN", *asked, cwd=apart)
    assert ran.code == 0, ran.err
    return apart


def evaluated(folder: Path, *asked: Any) -> dict[str, Any]:
    ran = call_cli("evaluate", *asked, "--format", "json", cwd=folder)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def test_test_rows_are_measured_as_retrain_measures_them(scored_for_both: Path) -> None:
    (arm,) = json.loads((scored_for_both / "RUN" / "metrics.json").read_text())["arms"].values()
    expected = arm["seeds"]["0"]
    (entry,) = evaluated(scored_for_both, "both.parquet")["at_checkpoint"]
    assert entry["group"] == "group"
    found = entry["rows"]["test"]
    assert found["n"] == 60
    for name in ("accuracy", "balanced_accuracy", "positive_rate", "attacked_static", *GAPS):
        assert found[name] == pytest.approx(expected[name], abs=1e-6), name


def test_target_rows_are_measured_from_their_logits(scored_for_both: Path) -> None:
    table = pq.read_table(scored_for_both / "m.parquet").to_pylist()
    rows = [r for r in table if r["split"] == "val"]
    weights = load_file(scored_for_both / "RUN" / "model.safetensors")
    x = np.array([r["features"] for r in rows], dtype=np.float64)
    logits = x @ weights["head.weight"].T.astype(np.float64) + weights["head.bias"]
    p = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    second = np.array([r["group"] == "b" for r in rows])
    (entry,) = evaluated(scored_for_both, "both.parquet")["at_checkpoint"]
    found = entry["rows"]["target"]
    assert found["n"] == len(rows) == 80
    assert found["dp_gap_soft"] == pytest.approx(abs(p[second].mean() - p[~second].mean()), abs=1e-6)
    assert found["dp_gap"] == pytest.approx(abs((p > 0.5)[second].mean() - (p > 0.5)[~second].mean()))
    assert found["accuracy"] == np.mean((p > 0.5) == np.array([r["label"] for r in rows]))


def test_only_what_a_table_is_about_is_measured(apart: Path, tmp_path: Path) -> None:
    (entry,) = evaluated(apart, "exact.parquet", "ip.parquet")["at_checkpoint"]
    assert entry["tables"] == ["exact.parquet", "ip.parquet"]
    assert "attacked_static" not in entry["rows"]["test"]
    asked = ["--method", "ip", "--method", "loss", "-o", "utility.parquet", "-q"]
    assert call_cli("score", "m.parquet", "--checkpoint", "RUN", *asked, cwd=apart).code == 0
    assert "at_checkpoint" not in evaluated(apart, "utility.parquet")
    page = tmp_path / "page.html"
    assert call_cli("evaluate", "exact.parquet", "--report", page, cwd=apart).code == 0
    assert "demographic-parity gap" in page.read_text()


def test_a_model_that_is_gone_is_noted_and_the_rest_is_said(apart: Path, tmp_path: Path) -> None:
    for name in ("m.parquet", "exact.parquet"):
        shutil.copy(apart / name, tmp_path / name)
    ran = call_cli("evaluate", "exact.parquet", "--format", "json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "exact.parquet: its model is not measured: " in ran.err
    assert "at_checkpoint" not in json.loads(ran.out)
    shutil.copytree(apart / "RUN", tmp_path / "MOVED")
    (entry,) = evaluated(tmp_path, "exact.parquet", "--checkpoint", "MOVED")["at_checkpoint"]
    assert entry["rows"]["test"]["n"] == 60


def test_the_answer_about_a_table_for_groups_is_the_gap_between_them(scored_for_both: Path) -> None:
    ran = call_cli("evaluate", "both.parquet", "--json", cwd=scored_for_both)
    (entry,) = ran.json["at_checkpoint"]
    assert (entry["objectives"], entry["groups"]) == (
        ["fairness", "robustness"],
        {"column": "group", "names": ["a", "b"]},
    )
    target, test = (entry["rows"][split] for split in ("target", "test"))
    answer = next(line for line in ran.err.splitlines() if line.startswith("answer: "))
    assert answer.startswith(
        "answer: of the model that was scored the demographic-parity gap between a and b (column group) is "
        f"{100 * target['dp_gap']:.2f} points on 80 target rows (accuracy {100 * target['accuracy']:.2f}%), "
        f"{100 * test['dp_gap']:.2f} points on 60 test rows"
    )
    entry["objectives"] = ["equalised-odds"]
    assert f"equalised-odds gap between a and b (column group) is {100 * target['eo_gap']:.2f} points" in str(
        answer_of_evaluate({"at_checkpoint": [entry]})
    )
    entry["objectives"] = ["robustness"]  # which is about no groups
    assert "gap" not in str(answer_of_evaluate({"at_checkpoint": [entry]}))

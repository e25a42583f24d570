"""Target and test rows that are train rows: what ``retrain`` says, what ``--overlap`` does, and the next step.

python -m pytest tests/stages/retrain/test_shared_rows.py
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from influence_cli.data.content_notes import content_notes
from influence_cli.data.open import open_manifest
from tests.cases import Example, call_cli, examples, feature_table, with_column, write

RETRAIN = ("retrain", "m.parquet", "--model", "linear", "--epochs", "1", "-o", "run")


def shared(split: str, rows: int = 4) -> list[Example]:
    """Rows of which so many of a split are train rows under another id."""
    given = examples(12, 12, 12)
    return [*given, *(Example(f"again{k}", given[k].features, given[k].label, split) for k in range(rows))]


def words(text: str) -> str:
    return " ".join(text.split())


def test_target_rows_that_are_train_rows_are_warned_of_and_the_next_command_runs(tmp_path: Path) -> None:
    write(feature_table(shared("val")), tmp_path / "m.parquet")
    ran = call_cli(*RETRAIN, cwd=tmp_path)
    assert ran.code == 0, ran.err
    warned = "warning: 4 of 16 target rows are train rows too (same payload): again0, again1, again2, again3; what is "
    assert warned + "measured on target rows is flattered by them" in words(ran.err)
    step = next(line for line in ran.err.splitlines() if line.startswith("next: influence score "))
    assert "--overlap drop" in step
    following = call_cli(*shlex.split(step.removeprefix("next: influence ")), "--method", "loss", cwd=tmp_path)
    assert following.code == 0, following.err


@pytest.mark.parametrize(("how", "rows"), [("keep", 16), ("drop", 12)])
def test_what_is_to_be_done_with_them_is_done(how: str, rows: int, tmp_path: Path) -> None:
    """A training is kept under every answer, and its target is measured anew: accuracies are shares of so many rows."""
    write(feature_table(shared("val")), tmp_path / "m.parquet")
    assert call_cli(*RETRAIN, cwd=tmp_path).code == 0
    ran = call_cli(*RETRAIN, "--overlap", how, "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    (arm,) = ran.json["arms"].values()
    right = arm["seeds"]["0"]["target_accuracy"] * rows
    assert right == pytest.approx(round(right))
    assert ("stay in the target" if how == "keep" else "were left out of the target") in words(ran.err)
    assert "flattered" not in ran.err
    assert f"--overlap {how}" in ran.err


def test_refuse_refuses_more_than_a_hundredth_before_any_training(tmp_path: Path) -> None:
    write(feature_table(shared("val")), tmp_path / "m.parquet")
    ran = call_cli(*RETRAIN, "--overlap", "refuse", cwd=tmp_path)
    assert ran.code == 2
    assert "4 of 16 target rows are training rows" in words(ran.err)
    assert "before)" not in ran.err
    assert "standardised" not in ran.err
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_test_rows_that_are_train_rows_are_warned_of(tmp_path: Path) -> None:
    write(feature_table(shared("test")), tmp_path / "m.parquet")
    ran = call_cli(*RETRAIN, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "4 of 16 test rows are train rows too (same payload)" in words(ran.err)
    assert "target rows are train" not in ran.err


def test_classes_that_are_not_learnt_are_named(tmp_path: Path) -> None:
    rows = [r for r in examples(20, 12, 12) if r.split != "train" or r.label != 2]
    table = feature_table(rows)
    weight = [0.0 if r.split == "train" and r.label == 1 else 1.0 for r in rows]
    write(with_column(table, "weight", weight), tmp_path / "m.parquet")
    notes = content_notes(open_manifest(tmp_path / "m.parquet"))
    lost = "every train row of these classes has weight 0, so that none is learnt: "
    assert any(lost in note for note in notes)
    assert any("no train row is of these classes, which val or test rows have: " in note for note in notes)
    ran = call_cli(*RETRAIN, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert lost in words(ran.err)


def test_an_error_of_usage_comes_before_what_is_said_of_features(tmp_path: Path) -> None:
    write(feature_table(examples(12, 12, 12)), tmp_path / "m.parquet")
    ran = call_cli(*RETRAIN, "--folds", "500", cwd=tmp_path)
    assert ran.code == 2
    assert "standardised" not in ran.err

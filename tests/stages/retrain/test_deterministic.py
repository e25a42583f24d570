"""Trainings whose seeds change nothing: intervals from test rows and random draws, answers, and the next command.

python -m pytest tests/stages/retrain/test_deterministic.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from influence_cli.stages.retrain.differences import DRAWS, alike
from tests.cases import Example, call_cli, feature_table, write

LBFGS = ["--model", "linear", "--optimizer", "lbfgs", "--weight-decay", "1e-3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest of 200 train rows, 60 labelled wrong, and the same without these."""
    folder = tmp_path_factory.mktemp("deterministic")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(700, 5)).astype(np.float32)
    clean = (x[:, 0] + x[:, 1] + 0.5 * rng.normal(size=700) > 0).astype(int)
    labels = clean.copy()
    labels[:60] = 1  # one-sided: the boundary moves
    splits = ["train"] * 200 + ["val"] * 100 + ["test"] * 400
    rows = [Example(f"r{k:03d}", tuple(map(float, x[k])), int(labels[k]), splits[k]) for k in range(700)]
    table = feature_table(rows).replace_schema_metadata(None)
    write(table, folder / "m.parquet")
    write(table.slice(60), folder / "c.parquet")
    write(table.slice(1), folder / "one.parquet")
    return folder


def compared(folder: Path, curated: str, output: str, *flags: Any) -> tuple[Any, dict[str, Any]]:
    """What ``retrain --against`` gave back, and its metrics."""
    ran = call_cli("retrain", curated, "--against", "m.parquet", *flags, "-o", output, cwd=folder)
    return ran, json.loads((folder / output / "metrics.json").read_text())


def test_a_deterministic_training_can_say_that_an_edit_helped(made: Path) -> None:
    ran, metrics = compared(made, "c.parquet", "RUN", *LBFGS, "--require-improvement")
    assert ran.code == 0, ran.err
    found = metrics["comparison"]["curated"]
    over, control = found["no edit"]["accuracy"], found["curated: random trim"]["accuracy"]
    assert (over["verdict"], over["interval_over"], over["n"]) == ("better", "test rows", 400)
    assert (control["verdict"], control["interval_over"]) == ("better", "test rows and random draws")
    assert over["half_width"] > 0
    arms = metrics["arms"]
    assert over["mean"] == pytest.approx(
        arms["curated"]["seeds"]["0"]["accuracy"] - arms["no edit"]["seeds"]["0"]["accuracy"]
    )
    draws = arms["curated: random trim"]["draws"]
    assert len(draws) == DRAWS - 1
    values = [arms["curated: random trim"]["seeds"]["0"]["accuracy"], *(d["accuracy"] for d in draws)]
    assert len(set(values)) > 1
    assert arms["curated: random trim"]["mean"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert metrics["intervals_over"] == "test rows"
    lines = ran.err.splitlines()
    answers = [k for k, line in enumerate(lines) if line.startswith("answer: curated helped: +")]
    assert answers == [0]
    assert "400 test rows and random draws" in lines[0]
    assert lines[-1] == "next: influence score c.parquet --checkpoint RUN -o scores.parquet"
    again, same = compared(made, "c.parquet", "RUN", *LBFGS)
    assert (again.code, same) == (0, metrics)  # nothing is drawn or trained anew


def test_an_edit_of_one_row_is_not_resolved(made: Path) -> None:
    ran, metrics = compared(made, "one.parquet", "ONE", *LBFGS, "--require-improvement")
    assert ran.code == 1
    assert metrics["comparison"]["curated"]["no edit"]["accuracy"]["verdict"] == "not resolved"
    assert ran.err.startswith("answer: curated is not resolved: ")
    assert ran.err.splitlines()[-1].startswith("next: influence score m.parquet --checkpoint ONE")


def test_seeds_that_change_nothing_are_noticed_whatever_the_optimizer(made: Path) -> None:
    call_cli("retrain", "m.parquet", "--model", "linear", "--epochs", 1, "-o", "INIT", "-q", cwd=made)
    fixed = ["--model", "linear", "--init", "INIT", "--batch-size", 512, "--epochs", 30, "--lr", "0.5", "--seeds", 2]
    ran, metrics = compared(made, "c.parquet", "FULL", *fixed)
    assert ran.code == 0, ran.err
    assert "all 2 seeds give the same models" in ran.err
    over = metrics["comparison"]["curated"]["no edit"]["accuracy"]
    assert over["interval_over"] == "test rows"
    assert over["half_width"] > 0  # two equal seeds are no certainty


def test_seeds_that_differ_stay_what_intervals_are_over(made: Path) -> None:
    ran, metrics = compared(made, "c.parquet", "SGD", "--model", "mlp:4", "--epochs", 3, "--seeds", 2)
    assert ran.code == 0, ran.err
    assert metrics["intervals_over"] == "seeds"
    assert metrics["comparison"]["curated"]["no edit"]["loss"]["interval_over"] == "seeds"
    assert "draws" not in metrics["arms"]["curated: random trim"]
    one, metrics = compared(made, "c.parquet", "SINGLE", "--model", "mlp:4", "--epochs", 3)
    assert metrics["comparison"]["curated"]["no edit"]["accuracy"]["verdict"] == "one seed: not resolved"
    assert "--seeds 5" in one.err.splitlines()[-1]


def test_results_are_alike_up_to_rounding() -> None:
    one = {"accuracy": 0.5, "loss": 0.7}
    assert alike({"0": one, "1": {"accuracy": 0.5, "loss": 0.7 + 1e-9}})
    assert not alike({"0": one, "1": {"accuracy": 0.5, "loss": 0.701}})


def test_tables_that_nobody_asked_for_wait_for_a_flag(made: Path) -> None:
    plain, metrics = compared(made, "c.parquet", "RUN", *LBFGS)
    assert "attack" in metrics  # what is written stays
    assert "attacked" not in plain.err
    for flags in (["-v"], ["--attack", "linear"]):
        shown, _ = compared(made, "c.parquet", "RUN", *LBFGS, *flags)
        assert "share of the test rows attacked" in shown.err

"""Every line ``next:`` runs as it stands, and repeats what makes its numbers comparable.

python -m pytest tests/cli/test_next_commands.py
"""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from influence_cli.data import tables
from influence_cli.store.sealed import sealed
from tests.cases import Ran, call_cli, examples, feature_table, write

MODEL = ["--model", "linear", "--epochs", 3]


def next_words(ran: Ran) -> list[str]:
    """The words after ``influence`` of the only next command."""
    lines = [line for line in ran.err.splitlines() if line.startswith("next: ")]
    assert len(lines) == 1, ran.err
    words = shlex.split(lines[0].removeprefix("next: "))
    assert words[0] == "influence"
    return words[1:]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV with two groups, and the manifest, a trained run, its scores and edits that it leads to."""
    folder = tmp_path_factory.mktemp("next")
    rows = examples(120, 60, 40)
    sex = np.where(np.arange(len(rows)) % 2, "f", "m")
    write(feature_table(rows, sex=pa.array(sex)), folder / "m.parquet")
    lines = [f"{','.join(map(str, row.features))},{'abc'[row.label]},{s}" for row, s in zip(rows, sex, strict=True)]
    (folder / "rows.csv").write_text("\n".join(["a,b,c,d,e,label,sex", *lines]))
    recipe = ["--optimizer", "adamw", "--weight-decay", 0.01, "--lr", 0.02, "--batch-size", 32, "--raw-features"]
    steps: list[list[Any]] = [
        ["retrain", "m.parquet", *MODEL, *recipe, "--group", "sex", "-o", "RUN"],
        [
            "score",
            "--method",
            "ip",
            "m.parquet",
            "--checkpoint",
            "RUN",
            "--objective",
            "fairness",
            "--group",
            "sex",
            "-o",
            "s.parquet",
        ],
        ["score", "--method", "ip", "m.parquet", "--checkpoint", "RUN", "-o", "s.csv"],
        ["score", "--method", "ip", "m.parquet", "--checkpoint", "RUN", "-o", "u.parquet"],
    ]
    for step in steps:
        ran = call_cli(*step, cwd=folder)
        assert ran.code == 0, ran.err
    return folder


COMMANDS: dict[str, list[Any]] = {
    "manifest": ["manifest", "rows.csv", "--group", "sex", "-o", "made.parquet"],
    "retrain": ["retrain", "m.parquet", *MODEL, "-o", "ALONE"],
    "retrain, deterministic": [
        *["retrain", "m.parquet", "--model", "linear", "--optimizer", "lbfgs", "--weight-decay", 0.01],
        *["--against", "m.parquet", "-o", "SAME"],
    ],
    "retrain, scores": ["retrain", "m.parquet", *MODEL, "--scores", "s.parquet", "--seeds", 2, "-o", "BY_SCORES"],
    "grads": ["grads", "--method", "ip", "m.parquet", "--checkpoint", "RUN", "-o", "g.parquet"],
    "score": ["score", "m.parquet", "--checkpoint", "RUN", "--method", "ip", "--method", "loss", "-o", "two.parquet"],
    "score, printed": ["score", "m.parquet", "--checkpoint", "RUN", "--method", "loss"],
    "score, CSV": ["score", "--method", "ip", "m.parquet", "--checkpoint", "RUN", "-o", "again.csv"],
    "curate, plan": ["curate", "s.csv", "--manifest", "m.parquet", "--budget", 5, "-n"],
    "curate": ["curate", "s.parquet", "-o", "c.parquet"],
    "evaluate": ["evaluate", "s.csv", "--manifest", "m.parquet", "--json"],
    "evaluate, lds": ["evaluate", "u.parquet", "--lds", 3, "--epochs", 1, "--json"],
    "evaluate, removal": ["evaluate", "u.parquet", "--removal", "20%", "--json"],
    "evaluate, partial": ["evaluate", "u.parquet", "--lds", 4, "--seeds", 2, "--max-minutes", 0, "--json"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_next_command_runs_as_it_is_printed(name: str, made: Path) -> None:
    ran = call_cli(*COMMANDS[name], cwd=made)
    assert ran.code == 0, ran.err
    if name.startswith("evaluate") and "next: " not in ran.err:
        assert "s.csv" in COMMANDS[name]  # nothing says how to train on parts of its rows
        return
    words = next_words(ran)
    if "--lds" in words:
        words[words.index("--lds") + 1] = "4"  # fewer trainings
    then = call_cli(*words, cwd=made)
    assert then.code == 0, (words, then.err)


def test_a_comparison_is_trained_as_the_scored_run_was(made: Path) -> None:
    ran = call_cli("curate", "s.parquet", "-o", "c2.parquet", cwd=made)
    assert next_words(ran)[:-1] == shlex.split(
        "retrain c2.parquet --against m.parquet --model linear --group sex --epochs 3 --lr 0.02 --optimizer adamw "
        "--weight-decay 0.01 --batch-size 32 --raw-features --seeds 3 -o"
    )


def test_trainings_that_are_proposed_have_their_seconds_beside_them(made: Path) -> None:
    path = made / "RUN" / "run.json"
    before = path.read_text()
    path.write_text(json.dumps(sealed({**json.loads(before), "seconds": 3.0})))
    try:
        ran = call_cli("evaluate", "u.parquet", cwd=made)
    finally:
        path.write_text(before)
    assert "100 subsets take about 150 s to train on, by what the model's own took" in ran.err
    assert next_words(ran)[-2:] == ["--lds", "100"]
    assert json.loads(before)["seconds"] > 0.0


def test_of_a_table_of_few_rows_all_are_looked_at(made: Path) -> None:
    table = pq.read_table(made / "m.parquet")
    few = [*range(9), *np.flatnonzero(np.array(table.column("split").to_pylist()) == "val")[:3].tolist()]
    pq.write_table(table.take(few), made / "few.parquet")
    ran = call_cli("score", "few.parquet", "--checkpoint", "RUN", "--method", "loss", "-o", "f.parquet", cwd=made)
    words = next_words(ran)
    assert words[words.index("--budget") + 1] == "9"
    assert call_cli(*words, cwd=made).code == 0
    refused = call_cli("curate", "f.parquet", "--budget", "10", "-n", cwd=made)
    assert refused.code == 2
    assert "outside 0 to 9 rows" in refused.err
    assert "at most 9" in refused.err


def test_without_target_rows_a_run_is_scored_by_the_default(made: Path) -> None:
    table = pq.read_table(made / "m.parquet")
    pq.write_table(table.filter(pc.not_equal(table.column("split"), "val")), made / "no_val.parquet")
    words = next_words(call_cli("retrain", "no_val.parquet", *MODEL, "-o", "NO_VAL", cwd=made))
    assert "--method" not in words
    ran = call_cli(*words, cwd=made)
    assert ran.code == 0, ran.err


def test_what_nothing_says_is_named_and_no_next_command(made: Path) -> None:
    ran = call_cli("curate", "s.csv", "--manifest", "m.parquet", "-o", "c3.parquet", cwd=made)
    assert ran.err.splitlines()[-1].startswith(
        "then, with NAME filled in: influence retrain c3.parquet --against m.parquet --model NAME "
    )


def test_a_place_that_is_taken_is_not_proposed(tmp_path: Path, scored: Path) -> None:
    (tmp_path / "clean.parquet").write_text("mine")
    ran = call_cli("curate", scored, "-n", cwd=tmp_path)
    assert next_words(ran)[-1] == "clean-2.parquet"
    assert next_words(call_cli("curate", scored, "-n", "-o", "mine.parquet", cwd=tmp_path))[-1] == "mine.parquet"


def test_the_answer_about_fairness_edits_is_the_gap_between_the_groups(made: Path) -> None:
    asked = ["--scores", "s.parquet", "--group", "sex", "--budget", "10%", "--seeds", 2, "-o", "FAIR"]
    ran = call_cli("retrain", "m.parquet", *MODEL, *asked, "--format", "json", cwd=made)
    assert ran.code == 0, ran.err
    arm = next(a for a in ran.json["arms"].values() if a["edits"].get("objective") == "fairness")
    was, now = (100 * a["mean"]["dp_gap"]["mean"] for a in (ran.json["arms"]["no edit"], arm))
    answer = next(line for line in ran.err.splitlines() if line.startswith("answer: "))
    assert f"the demographic-parity gap between f and m (column sex): {was:.2f} to {now:.2f} points" in answer
    assert ran.json["groups"] == {"column": "sex", "names": ["f", "m"]}


def test_a_table_that_comes_through_a_pipe_finds_its_manifest(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def piped(folder: Path) -> Ran:
        tables._spooled.cache_clear()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(table)))
        return call_cli("curate", "-", "--budget", 5, "-o", "piped.parquet", cwd=folder)

    elsewhere = made / "some" / "where"
    elsewhere.mkdir(parents=True)
    (made / "sub").mkdir()
    asked = ["score", "--method", "ip", "m.parquet", "--checkpoint", "RUN", "-o", "sub/s.parquet"]
    assert call_cli(*asked, cwd=made).code == 0
    table = (made / "sub" / "s.parquet").read_bytes()
    ran = piped(made)
    assert ran.code == 0, ran.err
    ran = piped(elsewhere)
    tables._spooled.cache_clear()
    assert ran.code == 2
    assert "fix: pass --manifest PATH" in ran.err

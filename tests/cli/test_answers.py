"""First lines are answers, last lines the next command, and no table is wider than the terminal.

python -m pytest tests/cli/test_answers.py
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from influence_cli.cli.printing import parts_of
from influence_cli.errors import shell_word
from tests.cases import call_cli


@pytest.mark.parametrize(
    ("methods", "said"),
    [(["ip"], "split-half reliability 0."), (["loss", "datainf", "ip"], "split-half reliability of datainf 0.")],
)
def test_a_reliability_names_its_method_where_there_are_several(
    methods: list[str], said: str, tmp_path: Path, digits: Path, digits_run: Path
) -> None:
    asked = [word for name in methods for word in ("--method", name)]
    ran = call_cli("score", digits, "--checkpoint", digits_run, *asked, "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert said in ran.err


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ([], "answer: ", "next: influence score"),
        (["--against", "SCORED"], "answer: ", "next: influence evaluate"),
        (["--lds", "3", "--model", "linear", "--epochs", "1"], "answer: ", "next: influence "),
    ],
)
def test_evaluate_begins_with_the_answer_and_ends_with_the_next_command(
    asked: list[str], first: str, last: str, tmp_path: Path, scored: Path
) -> None:
    flags = [str(scored) if word == "SCORED" else word for word in asked]
    ran = call_cli("evaluate", scored, *flags, "--store", tmp_path / "store", "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    lines = [line for line in ran.err.splitlines() if not line.startswith(("warning", "retrain:"))]
    assert lines[0].startswith(first)
    assert lines[-1].startswith(last)
    quiet = call_cli("evaluate", scored, *flags, "--store", tmp_path / "store", "--json", "-q", cwd=tmp_path)
    assert quiet.err == ""


def test_the_next_command_runs(tmp_path: Path, scored: Path) -> None:
    ran = call_cli("evaluate", scored, "--json", cwd=tmp_path)
    words = shlex.split(ran.err.splitlines()[-1].removeprefix("next: "))
    assert words[:2] == ["influence", "score"]  # margin is best, and is no score yet
    then = call_cli(*words[1:], cwd=tmp_path)
    assert then.code == 0, then.err
    again = call_cli("evaluate", "scores.parquet", "--json", cwd=tmp_path)
    words = shlex.split(again.err.splitlines()[-1].removeprefix("next: "))
    assert words[:2] == ["influence", "curate"]
    then = call_cli(*words[1:], cwd=tmp_path)
    assert then.code == 0, then.err
    assert then.err.splitlines()[-1].startswith("next: influence retrain clean.parquet --against ")


def test_curate_says_how_many_and_why(tmp_path: Path, scored: Path) -> None:
    ran = call_cli("curate", scored, "--budget", "7", "-n", cwd=tmp_path)
    assert ran.err.startswith("trim: 7 of ")
    assert "by column score: the lowest that a budget of 7 allows (7)" in ran.err.splitlines()[0]
    assert ran.err.splitlines()[-1].startswith("next: influence curate ")


def test_scores_that_are_noise_are_to_look_at_and_an_edit_of_no_row_is_not_compared(
    tmp_path: Path, digits: Path, digits_run: Path, scored: Path
) -> None:
    table = pq.read_table(digits)
    few = np.flatnonzero(np.isin(table["split"].to_numpy(), ["train"])).tolist()
    one = np.flatnonzero(np.isin(table["split"].to_numpy(), ["val"]))[:6].tolist()  # six target rows tell little
    pq.write_table(table.take([*few, *one]), tmp_path / "one.parquet")
    ran = call_cli(
        "score", "one.parquet", "--checkpoint", digits_run, "--method", "ip", "-o", "s.parquet", cwd=tmp_path
    )
    assert ran.code == 0, ran.err
    assert "is mostly sampling noise" in ran.err
    assert ran.err.splitlines()[-1] == "next: influence curate s.parquet --budget 20 --report review.html"
    ran = call_cli("curate", scored, "--budget", "0.1%", "-o", "none.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "trim: 0 of 200 train rows" in ran.err
    assert "next:" not in ran.err


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", ["evaluate", "plan", "retrain"])
def test_no_table_is_wider_than_the_terminal(
    command: str, width: int, tmp_path: Path, scored: Path, digits: Path
) -> None:
    asked: dict[str, list[Any]] = {
        "evaluate": ["evaluate", scored, "--format", "table"],
        "plan": ["score", digits, "--method", "random", "-n", "--format", "table"],
        "retrain": ["retrain", digits, "--scores", scored, "--by", "score_utility", "--budget", "1%,2%,5%",
                    "--model", "linear", "--epochs", 1, "--seeds", 2, "--attack", "fgsm", "-v", "-o", "RUN"],
    }  # fmt: skip
    ran = call_cli(*asked[command], cwd=tmp_path, env={"COLUMNS": str(width)})
    assert ran.code == 0, ran.err
    tables = [line for line in (ran.text + ran.err).splitlines() if "   " in line]
    assert max(map(len, tables), default=0) <= width


def test_columns_that_do_not_fit_follow_below() -> None:
    header, cells = ["arm", *(f"c{k}" for k in range(8))], [["x" * 20, *(["1" * 12] * 8)]]
    for width in (40, 80, 120):
        parts = parts_of(header, cells, width)
        assert [k for part in parts for k in part[1:]] == list(range(1, 9))
        assert all(part[0] == 0 and 20 + 14 * (len(part) - 1) <= width for part in parts)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), st.booleans())
@example("two\nlines it's \x1b[31m\u2028\\", False)
def test_any_name_stands_in_a_command_as_bash_takes_it(name: str, no_utf8: bool) -> None:
    name += os.fsdecode(b"\xff") if no_utf8 else ""
    word = shell_word(name)
    assert word.isprintable()
    said = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True,
                          env={"LC_ALL": "C.UTF-8"})  # fmt: skip
    assert said.stdout == os.fsencode(name)

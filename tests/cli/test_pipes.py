"""Streams and pipes: stdout is the table and nothing else, closed pipes exit 141, stages chained equal stages alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.cases import (
    Example,
    Ran,
    call_cli,
    digits_table,
    draw_features,
    environment,
    feature_table,
    run_cli,
    run_program,
    train_run,
    with_column,
    write,
)

# ---- what goes where ----------------------------------------------------------------------------------------------


def test_score_to_stdout_with_v_is_parquet_and_notes_go_to_stderr(
    tmp_path: Path, digits: Path, digits_run: Path, filled_store: Path, scored: Path
) -> None:
    asked = [digits, "--checkpoint", digits_run, "--store", filled_store]
    ran = run_cli("score", "--method", "ip", *asked, "-v", "-o", "-", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert ran.table.equals(pq.read_table(scored))
    assert "200 train rows scored by ip" in ran.err


@pytest.mark.parametrize("stage", ["grads", "score", "curate", "retrain", "evaluate"])
def test_with_an_output_file_stdout_is_empty_and_q_says_nothing(
    stage: str, tmp_path: Path, digits: Path, digits_run: Path, scored: Path
) -> None:
    model = [digits, "--checkpoint", digits_run, "--store", "store"]
    asked: dict[str, list[Any]] = {
        "grads": [*model, "-o", "out.parquet"],
        "score": [*model, "-o", "out.parquet"],
        "curate": [scored, "-o", "out.parquet"],
        "retrain": [digits, "--model", "mlp:4", "--epochs", "1", "-o", "RUN"],
        "evaluate": [scored, "-o", "out.json"],
    }
    loud = call_cli(stage, *asked[stage], cwd=tmp_path)
    assert (loud.code, loud.out) == (0, b"")
    quiet = call_cli(stage, *asked[stage], "-q", cwd=tmp_path)
    assert (quiet.code, quiet.out, quiet.err) == (0, b"", "")


def test_q_still_says_what_went_wrong(tmp_path: Path) -> None:
    ran = call_cli("score", "--method", "ip", "gone.parquet", "-q", cwd=tmp_path)
    assert ran.code == 2
    assert ran.err.splitlines()[0] == "error: no such file"


def test_progress_in_a_pipe_is_a_line_each_tenth(
    tmp_path: Path, digits: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("influence_cli.cli.console.PLAIN_AT_LEAST_S", 0.0)
    asked = ["score", "--method", "ip", digits, "--checkpoint", digits_run, "--batch-size", "5", "-o", "s.parquet"]
    ran = call_cli(*asked, cwd=tmp_path)
    lines = [line for line in ran.err.splitlines() if line.startswith("training rows")]
    assert 8 <= len(lines) <= 11  # one each 10 %
    assert lines[-1] == "training rows, model: 200 of 200 rows"
    assert "\r" not in ran.err


@pytest.mark.parametrize(
    ("env", "flags", "coloured"),
    [
        ({}, [], False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, [], False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, [], False),
        ({"FORCE_COLOR": "1"}, [], True),
        ({}, ["--color", "always"], True),
        ({"FORCE_COLOR": "1"}, ["--color", "never"], False),
        ({"GITHUB_ACTIONS": "true"}, [], False),
    ],
    ids=str,
)
def test_escape_codes_only_where_asked_for(
    env: dict[str, str], flags: list[str], coloured: bool, tmp_path: Path
) -> None:
    ran = call_cli("methods", "--format", "table", *flags, cwd=tmp_path, env=env)
    assert ran.code == 0
    assert ("\x1b[" in ran.text) == coloured
    assert "\x1b" not in ran.err


@pytest.mark.parametrize("env", [{"FORCE_COLOR": "1"}, {"NO_COLOR": "1"}], ids=str)
def test_data_and_errors_never_hold_escape_codes(
    env: dict[str, str], tmp_path: Path, digits: Path, digits_run: Path
) -> None:
    asked = ["score", "--method", "ip", digits, "--checkpoint", digits_run, "--store", "store", "-v"]
    ran = call_cli(*asked, cwd=tmp_path, env=env)
    assert b"\x1b" not in ran.out
    assert "\x1b" not in ran.err
    assert len(ran.rows) == 200
    assert "\x1b" not in call_cli("score", digits, "--method", "no", cwd=tmp_path, env=env).err


@pytest.mark.parametrize("where", ["warning", "error"])
def test_an_id_cannot_write_a_line_of_its_own_into_a_log(where: str, tmp_path: Path, tabular_run: Path) -> None:
    """A CI runner obeys lines that begin with '::' on either stream, and a terminal obeys escape codes."""
    hostile = "x\n::error::forged\r\x1b[31m"
    rows = [Example(f"t{k}", draw_features(k), k % 3, "train" if k < 5 else "val") for k in range(8)]
    write(feature_table([*rows, Example(hostile, draw_features(0), 0, "val")]), tmp_path / "m.parquet")
    asked = ["score", "--method", "ip", "m.parquet", "--checkpoint", tabular_run, "-o", "s.parquet"]
    if where == "warning":
        ran = call_cli(*asked, "--allow-overlap", cwd=tmp_path)
    else:
        write(feature_table([Example(hostile, draw_features(99), 3, "val")]), tmp_path / "t.parquet")
        ran = call_cli(*asked, "--target", "t.parquet", cwd=tmp_path)
    assert ran.code == (0 if where == "warning" else 2), ran.err
    assert "forged" in ran.err
    assert not [line for line in ran.err.splitlines() if line.startswith("::")]
    assert "\x1b" not in ran.err
    assert "\r" not in ran.err


# ---- closed pipes -------------------------------------------------------------------------------------------------


def closed_after(lines: int, *arguments: Any, cwd: Path, env: dict[str, str] | None = None) -> Ran:
    """Run with a reader that goes away after ``lines`` lines of standard output."""
    command = [sys.executable, "-m", "influence_cli", *map(str, arguments)]
    read_end, write_end = os.pipe()
    process = subprocess.Popen(command, cwd=cwd, env=environment(env), stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as reader:
        kept = b"".join(reader.readline() for _ in range(lines))
    _, err = process.communicate(timeout=120)
    return Ran(process.returncode, kept, err.decode())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest of 16,000 train rows and a score table of it: more than a pipe holds."""
    folder = tmp_path_factory.mktemp("many")
    rows = [Example(f"row-{k:06d}", (float(k),), k % 3) for k in range(16_000)]
    write(feature_table(rows), folder / "many.parquet")
    ran = call_cli("score", "many.parquet", "--method", "random", "-o", "scores.parquet", cwd=folder)
    assert ran.code == 0, ran.err
    return folder


@pytest.mark.parametrize(
    ("lines", "asked", "env"),
    [
        (1, ["score", "many.parquet", "--method", "random"], {}),
        (1, ["score", "many.parquet", "--method", "random"], {"PYTHONUNBUFFERED": "1"}),
        (0, ["score", "many.parquet", "--method", "random", "-o", "-"], {}),
        (0, ["curate", "scores.parquet", "-o", "-"], {}),
        (0, ["methods", "--format", "table"], {}),
        (0, ["methods", "--json"], {}),
    ],
    ids=["jsonl", "jsonl unbuffered", "score -o -", "curate -o -", "a table", "json"],
)
def test_a_closed_pipe_exits_141_without_a_traceback(
    lines: int, asked: list[str], env: dict[str, str], many: Path
) -> None:
    ran = closed_after(lines, *asked, cwd=many, env=env)
    assert ran.code == 141, f"{ran.code}: {ran.err}"
    assert "Traceback" not in ran.err
    assert "Exception ignored" not in ran.err
    assert "BrokenPipe" not in ran.err
    if lines:
        assert json.loads(ran.out)["id"] == "row-000000"


# ---- stages chained -----------------------------------------------------------------------------------------------


def edited(manifest: Any) -> list[tuple[str, int]]:
    """(id, label) of every row of a manifest."""
    return list(zip(manifest.column("id").to_pylist(), manifest.column("label").to_pylist(), strict=True))


def test_a_pipeline_equals_its_stagesone_by_one(
    influence: Path, tmp_path: Path, digits: Path, digits_run: Path
) -> None:
    asked = ["--checkpoint", digits_run, "--method", "ip-ensemble", "--set", "members=2", "--store", "memo"]
    filled = run_program(influence, "grads", digits, *asked, "-o", "-", cwd=tmp_path)
    assert filled.code == 0, filled.err
    scores = run_program(influence, "score", "-", "--store", "memo", "-o", "-", cwd=tmp_path, stdin=filled.out)
    assert scores.code == 0, scores.err
    act = ["--action", "relabel", "--budget", "20", "--edits", "edits.jsonl"]
    clean = run_program(influence, "curate", "-", *act, "-o", "-", cwd=tmp_path, stdin=scores.out)
    assert clean.code == 0, clean.err

    assert call_cli("grads", digits, *asked, "-o", "g.parquet", cwd=tmp_path).code == 0
    assert call_cli("score", "g.parquet", "--store", "memo", "-o", "s.parquet", cwd=tmp_path).code == 0
    alone = ["curate", "s.parquet", "--action", "relabel", "--budget", "20", "-o", "c.parquet"]
    assert call_cli(*alone, cwd=tmp_path).code == 0
    assert filled.table.equals(pq.read_table(tmp_path / "g.parquet"))
    assert scores.table.equals(pq.read_table(tmp_path / "s.parquet"))
    assert "score_std" in scores.table.column_names  # the method was carried along
    assert clean.table.equals(pq.read_table(tmp_path / "c.parquet"))
    assert edited(clean.table) != edited(pq.read_table(digits))
    decisions = [json.loads(line) for line in (tmp_path / "edits.jsonl").read_text().splitlines()]
    assert len(decisions) > 0


def test_a_manifest_from_stdin_is_scored_like_the_file(
    influence: Path, tmp_path: Path, digits: Path, digits_run: Path, filled_store: Path, scored: Path
) -> None:
    asked = ["score", "--method", "ip", "-", "--checkpoint", digits_run, "--store", filled_store, "-o", "s.parquet"]
    ran = run_program(influence, *asked, cwd=tmp_path, stdin=digits.read_bytes())
    assert ran.code == 0, ran.err
    ours = pq.read_table(tmp_path / "s.parquet")
    assert ours.column("score").equals(pq.read_table(scored).column("score"))
    lost = call_cli("curate", "s.parquet", cwd=tmp_path)  # nobody can read that stdin again
    assert lost.code == 2
    assert "--manifest" in lost.err
    assert call_cli("curate", "s.parquet", "--manifest", digits, cwd=tmp_path).code == 0


@pytest.mark.parametrize("stage", ["score", "curate"])
def test_an_empty_or_foreign_stdin_exits_2(stage: str, influence: Path, tmp_path: Path) -> None:
    empty = run_program(influence, stage, "-", cwd=tmp_path)
    assert empty.code == 2
    assert "standard input is empty" in empty.err
    foreign = run_program(influence, stage, "-", cwd=tmp_path, stdin=b"id,label\n1,2\n")
    assert foreign.code == 2
    assert "not readable as Parquet" in foreign.err


def test_a_stdin_that_cannot_be_read_is_what_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, place, why in ((os.O_WRONLY, os.devnull, "Bad file descriptor"), (os.O_RDONLY, tmp_path, "directory")):
        with open(os.devnull, encoding="utf-8") as stdin:
            opened = os.open(place, flags)
            os.dup2(opened, stdin.fileno())
            os.close(opened)
            monkeypatch.setattr(sys, "stdin", stdin)
            for stage in ("score", "curate", "evaluate"):
                ran = call_cli(stage, "-", cwd=tmp_path)
                assert ran.code == 2
                assert "standard input cannot be read" in ran.err
                assert why in ran.err


# ---- contradictions between stages ---------------------------------------------------------------------------------


@pytest.fixture
def filled(tmp_path: Path, digits_run: Path) -> Path:
    """A folder with a manifest of its own, its run folder and what ``grads`` wrote for them."""
    write(digits_table(), tmp_path / "m.parquet")
    asked = ["grads", "--method", "ip", "m.parquet", "--checkpoint", digits_run, "-o", "g.parquet"]
    assert call_cli(*asked, cwd=tmp_path).code == 0
    return tmp_path


def relabel(path: Path, rows: list[int]) -> None:
    """Give some rows of a manifest the next label, in place."""
    table = pq.read_table(path)
    labels = table.column("label").to_numpy().copy()
    labels[rows] = (labels[rows] + 1) % 10
    write(with_column(table, "label", labels), path)


def test_a_manifest_changed_between_grads_and_score_exits_2_unless_it_is_meant(filled: Path) -> None:
    relabel(filled / "m.parquet", [0])
    ran = call_cli("score", "g.parquet", "-o", "s.parquet", cwd=filled)
    assert ran.code == 2
    assert "the manifest has changed" in ran.err
    assert "--manifest" in ran.err
    assert not (filled / "s.parquet").exists()
    meant = call_cli("score", "g.parquet", "--manifest", "m.parquet", "-o", "s.parquet", cwd=filled)
    assert meant.code == 0, meant.err


def test_target_rows_changed_between_grads_and_score_exit_2_unless_it_is_meant(filled: Path) -> None:
    relabel(filled / "m.parquet", [220])
    ran = call_cli("score", "g.parquet", cwd=filled)
    assert ran.code == 2
    assert "has changed" in ran.err
    flags = ["--manifest", "m.parquet", "--target", "m.parquet"]
    assert call_cli("score", "g.parquet", *flags, cwd=filled).code == 0


def test_a_checkpoint_changed_between_grads_and_score_exits_2_unless_it_is_meant(tmp_path: Path, digits: Path) -> None:
    train_run(digits, tmp_path / "RUN", "mlp:4")
    asked = ["grads", "--method", "ip", digits, "--checkpoint", "RUN", "-o", "g.parquet"]
    assert call_cli(*asked, cwd=tmp_path).code == 0
    train_run(digits, tmp_path / "RUN", "mlp:4", seed=1)
    ran = call_cli("score", "g.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "the checkpoint has changed" in ran.err
    meant = call_cli("score", "g.parquet", "--checkpoint", "RUN", cwd=tmp_path)
    assert meant.code == 0, meant.err
    before = pq.read_table(tmp_path / "g.parquet").column("loss").to_numpy()
    assert not np.allclose([r["loss"] for r in meant.rows], before)


@pytest.mark.parametrize("provenance", ["{}", '{"x": 1}', '{"manifest": 3}', "[]", "not json"])
def test_a_table_whose_provenance_says_nothing_exits_2(provenance: str, filled: Path) -> None:
    table = pq.read_table(filled / "g.parquet").replace_schema_metadata({"influence": provenance})
    write(table, filled / "odd.parquet")
    for asked in (["score", "odd.parquet"], ["curate", "odd.parquet", "--by", "loss"]):
        ran = call_cli(*asked, cwd=filled)
        assert ran.code == 2, ran.err


def test_a_score_table_of_another_manifest_exits_2_naming_the_row(tmp_path: Path, scored: Path) -> None:
    other = [Example(f"d{k:04d}", draw_features(k), k % 3) for k in range(5)]
    write(feature_table(other), tmp_path / "other.parquet")
    ran = call_cli("curate", scored, "--manifest", "other.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "id=d0000 has changed since it was scored" in ran.err

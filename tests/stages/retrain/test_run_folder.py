"""What a run folder may be given to: its own request alone, whatever moment it was stopped at; and no file is lost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from influence_cli.stages.retrain import finished
from tests.cases import Ran, call_cli, write
from tests.cli.test_outputs import contents, refused

RETRAIN = ["retrain", "m.parquet", "--model", "mlp:4", "--epochs", "1", "--batch-size", "64"]
KEEP = [*RETRAIN, "--keep-checkpoints", "1"]


@pytest.fixture
def here(tmp_path: Path, tabular: Path) -> Path:
    shutil.copy(tabular, tmp_path / "m.parquet")
    return tmp_path


def done(*asked: Any, cwd: Path) -> Ran:
    ran = call_cli(*asked, cwd=cwd)
    assert ran.code == 0, ran.err
    return ran


def test_it_is_said_where_another_request_replaces_what_a_run_notes_of_itself(here: Path) -> None:
    asked = {"plain": [], "out": ["--calibration", "30%"], "planted": ["--canaries", "20%"]}
    for name, flags in asked.items():
        done(*RETRAIN, *flags, "-o", name, cwd=here)
    noted = json.loads((here / "out" / "run.json").read_text())
    assert noted["calibration"] == 0.3
    assert noted["calibration_ids"]
    for name, flags, says in (
        ("plain", ["--seed", "1"], "seed 0, now 1"),
        ("out", [], "share of calibration rows 0.3, now 0.0"),
        ("planted", ["--canaries", "20%", "--canaries-from", "plain"], "noise of canaries uniform, now confusion"),
    ):
        shutil.copytree(here / name, here / "copy")
        ran = done(*RETRAIN, "-o", "copy", *flags, cwd=here)
        assert f"warning: -o 'copy' holds a run with {says}: what run.json says" in ran.err
        shutil.rmtree(here / "copy")
    for name in ("calibration", "checksum", "weights"):  # as an earlier version wrote it
        del noted[name]
    (here / "out" / "run.json").write_text(json.dumps(noted))
    assert "share of calibration rows some of the rows, now 0.0" in done(*RETRAIN, "-o", "out", cwd=here).err
    table = pq.read_table(here / "m.parquet")
    write(table.slice(0, table.num_rows - 1), here / "m.parquet")
    for name in ("plain", "planted"):  # other rows, and more seeds, are the same run
        assert "is replaced" not in done(*RETRAIN, *asked[name], "--seeds", "2", "-o", name, cwd=here).err


def test_every_kept_training_is_verified_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [*KEEP, "--seeds", "3", "-o", "RUN"]
    done(*asked, cwd=here)
    seen: list[str] = []
    verify = finished.find_checkpoint
    monkeypatch.setattr(finished, "find_checkpoint", lambda path: (seen.append(path), verify(path))[1])
    before = (here / "RUN" / "metrics.json").read_bytes()
    done(*asked, cwd=here)
    assert len(seen) == len(set(seen)) == 3 + 1  # weights of each seed, and the kept checkpoint of the first
    assert (here / "RUN" / "metrics.json").read_bytes() == before


def test_files_of_the_users_in_a_finished_run_are_not_replaced(here: Path) -> None:
    done(*KEEP, "-o", "own", cwd=here)
    own = here / "own"
    (step,) = (own / "checkpoints").iterdir()
    for name in ("metrics.json", f"checkpoints/{step.name}", "checkpoints/step-000999.safetensors"):
        file = own / name
        before = file.read_bytes() if file.exists() else None
        for content in (b"mine", b'{"accuracy": 1}', b"[]"):
            file.write_bytes(content)
            refused(*KEEP, "-o", "own", cwd=here, says=f"{name} in -o 'own' is no earlier output")
        refused(*KEEP, "-o", "own", "-n", cwd=here, says=f"{name} in -o 'own' is no earlier output")
        file.unlink()
        os.mkfifo(file)
        assert call_cli(*KEEP, "-o", "own", cwd=here).code == 2
        file.unlink()
        if before is not None:
            file.write_bytes(before)
    (own / "checkpoints" / "notes.txt").write_text("mine")
    done(*KEEP, "-o", "own", cwd=here)
    assert (own / "checkpoints" / "notes.txt").read_text() == "mine"
    for name in ("checkpoints", "arms"):
        (own / name).rename(here / name)
        (own / name).symlink_to(here / name)
        refused(*KEEP, "-o", "own", cwd=here, says=f"{name} in -o 'own' is a link to another place")
        (own / name).unlink()
        (here / name).rename(own / name)
    done(*KEEP, "-o", "own", cwd=here)
    (own / "run.json").unlink()
    os.mkfifo(own / "run.json")
    ran = call_cli(*KEEP, "-o", "own", cwd=here)
    assert (ran.code, "it is no regular file" in ran.err) == (2, True)


def test_a_run_that_was_stopped_at_any_moment_is_finished_by_the_same_command(here: Path) -> None:
    done(*KEEP, "-o", "whole", cwd=here)
    whole, real = contents(here / "whole"), os.replace
    tops = 0
    for at in range(1, 9):  # of the renames of an arm's four files, and of the same four at the top
        asked, renames = [*KEEP, "-o", f"stopped-{at}"], 0

        def stop(source: Any, target: Any, at: int = at) -> None:
            nonlocal renames
            ours = Path(target).name in ("model.safetensors", "run.json", "metrics.json") or "step-" in str(target)
            renames += ours
            if ours and renames == at:
                shutil.copy(source, Path(source).with_name(f".left.{at}.ab.tmp"))  # as SIGKILL leaves it
                raise KeyboardInterrupt
            real(source, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", stop)
            assert call_cli(*asked, cwd=here).code == 130
        top = here / f"stopped-{at}"
        if (top / "model.safetensors").exists() and not (top / "run.json").exists():
            tops += 1
            kept = (top / "model.safetensors").read_bytes()
            (top / "model.safetensors").write_bytes(b"mine")
            refused(*asked, cwd=here, says="is no run folder: it holds model.safetensors")
            (top / "model.safetensors").write_bytes(kept)
            (top / "checkpoints").mkdir(exist_ok=True)
            (top / "checkpoints" / "notes.txt").write_text("mine")
            refused(*asked, cwd=here, says="is no run folder: it holds checkpoints")
            (top / "checkpoints" / "notes.txt").unlink()
        done(*asked, cwd=here)
        assert {n: c for n, c in contents(top).items() if not n.endswith(".tmp")} == whole
    assert tops == 2


def test_weights_beside_arms_that_are_no_copy_of_one_are_kept(here: Path) -> None:
    done(*RETRAIN, "-o", "other", "--seed", "1", cwd=here)
    done(*RETRAIN, "-o", "own", cwd=here)
    for name in ("run.json", "metrics.json"):
        (here / "own" / name).unlink()
    shutil.copy(here / "other" / "model.safetensors", here / "own" / "model.safetensors")
    refused(*RETRAIN, "-o", "own", cwd=here, says="is no run folder: it holds model.safetensors")
    shutil.rmtree(here / "other" / "arms")
    (here / "other" / "run.json").unlink()
    refused(*RETRAIN, "-o", "other", cwd=here, says="is no run folder: it holds metrics.json")


def test_the_share_that_is_left_out_for_calibration_is_said(tmp_path: Path, tabular: Path) -> None:
    """Rows are drawn by their ids, so that few rows are not the share that was asked for."""
    asked = ("retrain", tabular, "--model", "linear", "--epochs", 1, "--calibration", "40%", "-o", "run")
    ran = call_cli(*asked, cwd=tmp_path)
    assert ran.code == 0, ran.err
    kept = len(json.loads((tmp_path / "run" / "run.json").read_text())["calibration_ids"])
    assert kept != 16
    assert f"{kept} calibration rows ({kept / 40:.1%} of 40, since each is drawn by its id) are left out" in ran.err

"""Code is named by a flag, a setting or an argument of the run, never by a file that the run reads."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import safetensors.torch
from torch import nn

import influence_cli
from influence_cli.data.tables import _spooled
from influence_cli.errors import InfluenceError, UsageError
from influence_cli.model.build import build_model
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import GradSpec, Inputs
from influence_cli.stages.retrain.request import EditsRequest, RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from tests.cases import QUICK, call_cli, column, examples, feature_table, write

NAME = "python:code_of_a_data_file:net"
CODE = """
from pathlib import Path
import torch
Path("IMPORTED").touch()

def net():
    torch.manual_seed(0)
    return torch.nn.Linear(5, 3)

def other():
    return net()
"""
FIX = f"pass --model {NAME}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the user's code, a manifest, a run of it with canaries, and tables of both stages."""
    here = tmp_path_factory.mktemp("code")
    (here / "code_of_a_data_file.py").write_text(CODE)
    write(feature_table(examples(60)), here / "m.parquet")
    said, path = ("--model", NAME), list(sys.path)
    run = ["retrain", "m.parquet", *said, "--epochs", "4", "--batch-size", "16", "--canaries", "20%", "-o", "run"]
    for asked in (
        run,
        ["grads", "--method", "ip", "m.parquet", "--checkpoint", "run", *said, "-o", "g.parquet"],
        ["score", "--method", "ip", "m.parquet", "--checkpoint", "run", *said, "-o", "s.parquet"],
    ):
        ran = call_cli(*asked, cwd=here)
        assert ran.code == 0, ran.err
    sys.path[:] = path
    return here


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in a process that has not imported the code."""
    here = tmp_path / "here"
    shutil.copytree(trained, here)
    (here / "IMPORTED").unlink()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "code_of_a_data_file", raising=False)
    return here


SCORE = ["score", "m.parquet", "--checkpoint", "run", "--method", "loss"]
COMMANDS: dict[str, list[str]] = {
    "run.json": [*SCORE, "-o", "o.parquet"],
    "run.json, a plan": [*SCORE, "-n"],
    "run.json, grads": ["grads", "--method", "ip", "m.parquet", "--checkpoint", "run", "-o", "o.parquet"],
    "the weights' metadata": [
        "score",
        "--method",
        "ip",
        "m.parquet",
        "--checkpoint",
        "run/model.safetensors",
        "-o",
        "o.parquet",
    ],
    "the provenance of grads": ["score", "g.parquet", "-o", "o.parquet"],
    "the provenance of grads, other weights": ["score", "g.parquet", "--checkpoint", "bare.safetensors"],
    "training on": ["retrain", "m.parquet", "--init", "run", "--epochs", "1", "-o", "on"],
    "training again": ["evaluate", "s.parquet", "--lds", "3", "--json"],
    "brittleness": ["evaluate", "s.parquet", "--brittleness", "1", "--json"],
    "canaries": ["evaluate", "s.parquet", "--json", "--draws", "20"],
    "the sentinel": ["evaluate", "s.parquet", "--sentinel", "99%", "--checkpoint", "run", "--json", "--draws", "20"],
}


@pytest.mark.parametrize("where", COMMANDS)
def test_a_file_cannot_name_code_and_a_flag_can(where: str, folder: Path) -> None:
    asked = COMMANDS[where]
    weights = safetensors.torch.load_file(folder / "run" / "model.safetensors")
    safetensors.torch.save_file(weights, folder / "bare.safetensors")
    ran = call_cli(*asked, cwd=folder)
    assert ran.code == 2, ran.err
    assert FIX in ran.err
    assert not (folder / "IMPORTED").exists()
    assert "code_of_a_data_file" not in sys.modules
    assert not (folder / "o.parquet").exists()
    ran = call_cli(*asked, "--model", NAME, cwd=folder)
    assert ran.code == 0, ran.err
    assert (folder / "IMPORTED").exists()


@pytest.mark.parametrize("where", ["file", "environment"])
def test_a_setting_names_code_too(where: str, folder: Path) -> None:
    env = {"INFLUENCE_MODEL": NAME} if where == "environment" else {}
    if where == "file":
        (folder / "influence.toml").write_text(f'model = "{NAME}"\n')
    for asked in (COMMANDS["run.json"], COMMANDS["the provenance of grads"], COMMANDS["training again"]):
        ran = call_cli(*asked, cwd=folder, env=env)
        assert ran.code == 0, ran.err


def test_the_score_after_a_pipe_names_the_code_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = call_cli(
        "grads", "--method", "ip", "m.parquet", "--checkpoint", "run", "--model", NAME, "-o", "-", cwd=folder
    )
    for more, code in (([], 2), (["--model", NAME], 0)):
        _spooled.cache_clear()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(first.out)))
        ran = call_cli("score", "-", *more, "-o", "o.parquet", cwd=folder)
        assert ran.code == code, ran.err
    before, after = (pq.read_table(folder / name) for name in ("s.parquet", "o.parquet"))
    assert column(before).tolist() == column(after).tolist()


def test_another_name_than_the_files_is_a_contradiction(folder: Path) -> None:
    for other in ("mlp:4", NAME.replace(":net", ":other")):
        ran = call_cli(*SCORE, "--model", other, cwd=folder)
        assert ran.code == 2
        assert "contradicts the checkpoint" in ran.err
    assert not (folder / "IMPORTED").exists()


def test_an_argument_names_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match="is code") as refused:
        influence_cli.score("m.parquet", checkpoint="run", method="loss")
    assert f"pass model='{NAME}'" in str(refused.value)
    with pytest.raises(UsageError, match="is code"):
        influence_cli.evaluate("s.parquet", draws=20)
    with pytest.raises(UsageError, match="is code"):
        influence_cli.retrain("m.parquet", "on", init="run", epochs=1)
    assert not Path("IMPORTED").exists()
    task = influence_cli.Task(nn.Linear(5, 3), lambda x: influence_cli_tensor(x))
    by_task = influence_cli.score("m.parquet", checkpoint="run", task=task, method="loss", store=None)
    assert not Path("IMPORTED").exists()
    named: dict[str, Any] = {"checkpoint": "run", "model": NAME, "store": None}
    by_name = influence_cli.score("m.parquet", method="loss", **named)
    assert column(by_task).tolist() == pytest.approx(column(by_name).tolist())
    assert "canaries" in influence_cli.evaluate("s.parquet", draws=20, model=NAME)


def influence_cli_tensor(values: Any) -> Any:
    """A vector as a tensor."""
    import torch

    return torch.from_numpy(values.copy())


def test_rounds_of_ones_own_code_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    edits = EditsRequest(None, ("10%",), ("trim",), ("score",), None, {}, 2, GradSpec(("ip",)))
    asked = RetrainRequest(Inputs("m.parquet", model=NAME), "rounds", device="cpu", edits=edits)
    assert "no edit" in retrain(asked, QUICK)["arms"]


def test_a_spec_alone_builds_no_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever path a name from a file takes, and whatever else the file says."""
    monkeypatch.chdir(folder)
    spec = ModelSpec.from_dict({**json.loads(Path("run/run.json").read_text())["model"], "task": {"model": "evil"}})
    assert spec.task is None
    with pytest.raises(InfluenceError, match="is code"):
        build_model(spec)
    assert not Path("IMPORTED").exists()

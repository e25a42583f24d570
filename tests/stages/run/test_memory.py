"""The memory that a plan says is, within a factor of 2, what the run then takes at most.

python -m pytest tests/stages/run/test_memory.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from influence_cli.engines.activations import activations
from influence_cli.stages.run.memory import PROGRAM, WITHOUT_TORCH
from tests.cases import call_cli, digits_table, run_python, so_many, write

FACTOR = 2.0  # which the guide states, too


# what the system says of a child at its end counts the memory that its parent had
MEASURED = """
import sys
from pathlib import Path
from influence_cli.cli.main import run
code = run(sys.argv[1:])
(peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak) * 1024)
sys.exit(code)
"""


def most_memory(command: list[str], cwd: Path) -> int:
    """Bytes that a process holds at its peak, as the system counts them."""
    ran = run_python(MEASURED, *command, cwd=cwd)
    assert ran.code == 0, ran.err
    return int(ran.text.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="the system counts memory in other units")
@pytest.mark.parametrize("model", so_many(["mlp:16", "resnet18"], ["mlp:16"]))
def test_real_runs_take_what_was_planned(model: str, digits: Path, digits_run: Path, tmp_path: Path) -> None:
    asked: list[Any] = ["score", digits, "--checkpoint", digits_run, "--method", "ip"]
    if model != "mlp:16":
        manifest = write(digits_table(train=60, val=20, test=4), tmp_path / "m.parquet")
        save_file(timm.create_model(model, num_classes=10).state_dict(), tmp_path / "w.safetensors")
        sizes = ("--input-size", 32, "--num-classes", 10)
        asked = [
            "score",
            manifest,
            "--model",
            model,
            "--checkpoint",
            tmp_path / "w.safetensors",
            *sizes,
            "--method",
            "ip",
        ]
    asked += ["--store", tmp_path / "store"]
    planned = call_cli(*asked, "-n", "--json", cwd=tmp_path)
    assert planned.code == 0, planned.err
    memory = json.loads(planned.text)["memory"]
    assert memory["accelerator_bytes"] == 0
    taken = most_memory([str(a) for a in (*asked, "-o", tmp_path / "s.parquet")], tmp_path)
    assert taken / FACTOR <= memory["host_bytes"] <= taken * FACTOR
    stored = json.loads(call_cli(*asked, "-n", "--json", cwd=tmp_path).text)["memory"]
    assert WITHOUT_TORCH <= stored["host_bytes"] < PROGRAM


@pytest.mark.skipif(sys.platform != "linux", reason="the system counts memory in other units")
@pytest.mark.parametrize("width", [8, 48])
def test_many_rows_take_what_was_planned_whatever_their_ids(width: int, tmp_path: Path) -> None:
    rows = 300_000
    values = pa.array(np.random.default_rng(0).standard_normal(2 * rows, dtype=np.float32))
    columns = {
        "id": pa.array([f"{k:0{width}d}" for k in range(rows)]),
        "features": pa.FixedSizeListArray.from_arrays(values, 2).cast(pa.list_(pa.float32())),
        "label": pa.array(np.arange(rows) % 2),
        "split": pa.array(["train"] * rows),
    }
    manifest = write(pa.table(columns), tmp_path / "m.parquet")
    asked: list[Any] = ["score", manifest, "--method", "random", "--store", tmp_path / "store"]
    planned = json.loads(call_cli(*asked, "-n", "--json", cwd=tmp_path).text)["memory"]["host_bytes"]
    taken = most_memory([str(a) for a in (*asked, "-o", tmp_path / "s.parquet")], tmp_path)
    assert 0.8 * taken <= planned <= 1.6 * taken


def test_what_a_forward_pass_keeps_is_counted_a_row_and_the_models_own_tensors_are_not() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    found = activations(model, torch.zeros(4, 3), 4)
    assert found.saved == (3 + 5) * 4  # its input, and what tanh gives, which the last layer is given
    assert found.largest == 5 * 4
    assert np.isclose(activations(model, torch.zeros(8, 3), 8).saved, found.saved)

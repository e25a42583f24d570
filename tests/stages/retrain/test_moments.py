"""The optimizer's state at kept checkpoints (``retrain --record moments``), against averages of gradients by hand.

python -m pytest tests/stages/retrain/test_moments.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from influence_cli.errors import UsageError
from influence_cli.model.build import build_model, load_model
from influence_cli.model.checkpoints import Trajectory, find_checkpoint, find_model
from influence_cli.model.spec import ModelSpec
from influence_cli.model.train.recipe import Recipe
from influence_cli.settings import Inputs
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from tests.cases import examples, feature_table, write


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_moments_are_those_of_the_optimizer_at_each_checkpoint(tmp_path: Path, optimizer: str) -> None:
    """Full batches, so that they follow from the gradients at the checkpoints before, in float64."""
    write(feature_table(examples()), tmp_path / "m.parquet")
    recipe = Recipe(epochs=4, lr=0.01, batch_size=64, optimizer=optimizer, weight_decay=0.0, warmup=0.0)
    asked = Inputs(str(tmp_path / "m.parquet"), model="mlp:4")
    request = RetrainRequest(asked, str(tmp_path / "run"), device="cpu", keep_checkpoints=4, raw_features=True)
    retrain(request, recipe)
    trajectory = Trajectory(find_checkpoint(str(tmp_path / "run"))[0])
    with pytest.raises(UsageError, match="needs the state of the optimizer"):
        trajectory.moments("source")
    retrain(replace(request, record=("moments",)), recipe)  # trained again, since they are asked for
    found = trajectory.moments("source")
    rows = [r for r in pq.read_table(tmp_path / "m.parquet").to_pylist() if r["split"] == "train"]
    x = torch.tensor([r["features"] for r in rows], dtype=torch.float32).double()
    y = torch.tensor([r["label"] for r in rows])
    spec = ModelSpec.from_dict(find_model(str(tmp_path / "run"))[1] or {})
    torch.manual_seed(0)
    starts = [build_model(spec).double()]
    starts += [load_model(spec, k.checkpoint, torch.float64) for k in trajectory.recorded[:-1]]
    first, second = dict[str, Tensor](), dict[str, Tensor]()
    for model, moments in zip(starts, found, strict=True):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            zero = torch.zeros_like(p.grad)
            if optimizer == "sgd":
                first[name] = 0.9 * first.get(name, zero) + p.grad
                np.testing.assert_allclose(moments[f"momentum_buffer.{name}"], first[name], rtol=2e-4, atol=1e-7)
            else:
                first[name] = 0.9 * first.get(name, zero) + 0.1 * p.grad
                second[name] = 0.999 * second.get(name, zero) + 0.001 * p.grad**2
                np.testing.assert_allclose(moments[f"exp_avg.{name}"], first[name], rtol=2e-4, atol=1e-7)
                np.testing.assert_allclose(moments[f"exp_avg_sq.{name}"], second[name], rtol=2e-4, atol=1e-10)
    none: dict[str, Any] = {"keep_checkpoints": 0}
    cases = [(("moments",), none, "none is kept"), (("all",), {}, "cannot be")]
    for record, more, says in cases:
        with pytest.raises(UsageError, match=says):
            retrain(replace(request, record=record, **more), recipe)

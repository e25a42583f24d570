"""Models that give one logit of two classes: their scores are those of the binary cross-entropy.

python -m pytest tests/model/test_one_logit.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import influence_cli
from tests.cases import call_cli, write


class Binary(nn.Module):
    """A small network whose logit is [n, 1], or [n]."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.flat = nn.Linear(3, 4), nn.Linear(4, 1), flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.head(torch.tanh(self.body(x)))
        return z.squeeze(1) if self.flat else z


def rows(count: int = 40) -> pa.Table:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(count, 3)).astype(np.float32)
    labels = (values[:, 0] + rng.normal(size=count) > 0).astype(int)
    split = ["train"] * (count // 2) + ["val"] * (count - count // 2)
    return pa.table({"id": [f"r{k}" for k in range(count)], "features": pa.array(list(values), pa.list_(pa.float32())),
                     "label": labels, "split": split})  # fmt: skip


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("method", ["ip", "exact"])
def test_scores_are_those_of_the_binary_cross_entropy(flat: bool, method: str, tmp_path: Path) -> None:
    table, model = rows(), Binary(flat)
    options = {"exact": {"damping": 0.1}} if method == "exact" else {}
    found = influence_cli.score(
        table, task=influence_cli.Task(model), method=method, options=options, precision="fp64", store=None
    )
    model = model.double()
    x = torch.tensor(np.stack(table.column("features").to_pylist()), dtype=torch.float64)
    y = torch.tensor(table.column("label").to_numpy()).double()

    def gradient(k: int) -> torch.Tensor:
        model.zero_grad()
        z = model(x[k : k + 1]).reshape(-1)
        nn.functional.binary_cross_entropy_with_logits(z, y[k : k + 1]).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def slope(k: int) -> torch.Tensor:
        model.zero_grad()
        model(x[k : k + 1]).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    q = torch.stack([gradient(k) for k in range(20, 40)]).mean(0)
    if method == "exact":
        p = torch.sigmoid(model(x).reshape(-1)).detach()
        jacobian = torch.stack([slope(k) for k in range(20)])
        curvature = (jacobian.T * (p * (1 - p))[:20]) @ jacobian / 20
        q = torch.linalg.solve(curvature + 0.1 * torch.eye(len(q), dtype=torch.float64), q)
    expected = np.array([float(q @ gradient(k)) for k in range(20)])
    np.testing.assert_allclose(found.sort_by([("id", "ascending")]).column("score").to_numpy(),
                               expected[np.argsort([f"r{k}" for k in range(20)])],
                               rtol=0, atol=1e-9 * np.abs(expected).max())  # fmt: skip


def test_a_model_of_one_logit_is_trained_and_scored_from_the_shell(tmp_path: Path) -> None:
    write(rows(80).append_column("test", pa.array([False] * 80)), tmp_path / "m.parquet")
    (tmp_path / "binary_net.py").write_text("from torch import nn\n\ndef make():\n    return nn.Linear(3, 1)\n")
    ran = call_cli("retrain", "m.parquet", "--model", "python:binary_net:make", "--test", "m.parquet", "--epochs", "20",
                   "--overlap", "keep", "-o", "RUN", cwd=tmp_path)  # fmt: skip
    assert ran.code == 0, ran.err
    ran = call_cli("score", "--method", "ip", "m.parquet", "--model", "python:binary_net:make", "--checkpoint", "RUN",
                   "-o", "s.csv", cwd=tmp_path)  # fmt: skip
    assert ran.code == 0, ran.err


def test_one_logit_is_not_enough_for_three_classes(tmp_path: Path) -> None:
    table = rows()
    table = table.set_column(2, "label", pa.array(np.arange(40) % 3))
    with pytest.raises(influence_cli.InfluenceError, match="1 outputs a row where 3 are asked for"):
        influence_cli.score(table, method="ip", task=influence_cli.Task(Binary(False)), num_classes=3, store=None)

"""SOURCE along AdamW: against dense segments in float64, and against a differentiated training.

python -m pytest tests/methods/test_source_adam.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from influence_cli.data.tables import provenance
from influence_cli.model.build import build_model
from influence_cli.model.spec import ModelSpec
from influence_cli.model.train.recipe import Recipe
from influence_cli.model.train.sgd import epoch_order
from influence_cli.settings import Inputs
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from tests.cases import call_cli, column
from tests.oracle import relative_error

RATE, DECAY, EPOCHS, BATCH, TRAIN, VAL = 0.02, 0.3, 30, 8, 40, 20
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear model of numbers, whose curvature is one Kronecker block, trained on a few rows a step."""
    folder, rng = tmp_path_factory.mktemp("adam"), np.random.default_rng(0)
    n = TRAIN + VAL + 5
    x = rng.normal(size=(n, 3)).astype(np.float32)
    y = x @ [1.0, -1.2, 0.9] + 0.5 + 0.5 * rng.normal(size=n)
    splits = ["train"] * TRAIN + ["val"] * VAL + ["test"] * 5
    features = pa.array(x.tolist(), pa.list_(pa.float32()))
    table = pa.table({"id": [f"r{k:02d}" for k in range(n)], "features": features, "label": y, "split": splits})
    pq.write_table(table.replace_schema_metadata({"task": "regression"}), folder / "m.parquet")
    recipe = Recipe(EPOCHS, RATE, BATCH, "adamw", weight_decay=DECAY, schedule="constant", warmup=0.0)
    for name, record in (("run", ("moments",)), ("bare", ("none",))):
        asked = Inputs(str(folder / "m.parquet"), model="linear")
        more: dict[str, Any] = {"device": "cpu", "keep_checkpoints": 6, "raw_features": True, "record": record}
        retrain(RetrainRequest(asked, str(folder / name), **more), recipe)
    return folder


def rows(folder: Path, split: str) -> tuple[Floats, Floats]:
    """Features with a one [n, 4] and labels [n]."""
    found = [r for r in pq.read_table(folder / "m.parquet").to_pylist() if r["split"] == split]
    x = np.array([r["features"] for r in found])
    return np.hstack([x, np.ones((len(x), 1))]), np.array([r["label"] for r in found])


def scored(folder: Path, *more: str, run: str = "run", code: int = 0) -> Any:
    asked = ("score", "m.parquet", "--checkpoint", run, "--method", "source", "-o", "s.parquet", "--precision", "fp64")
    ran = call_cli(*asked, "--set", "source.labels=exact", "--store", "store", *more, cwd=folder)
    assert ran.code == code, ran.err
    return pq.read_table(folder / "s.parquet") if code == 0 else ran.err


def dense(folder: Path, segments: int) -> Floats:
    """Scores [n] by the formula, with the matrix exponential in the eigenvectors of the second moment of inputs."""
    about = json.loads((folder / "run" / "run.json").read_bytes())
    (x, y), (v, yv) = rows(folder, "train"), rows(folder, "val")
    steps, theta, scale = [0], list[Floats](), list[float]()
    for kept in about["checkpoints"]:
        w = {n: t.double().numpy() for n, t in load_file(folder / "run" / kept["file"]).items()}
        theta.append(np.append(w["head.weight"].ravel(), w["head.bias"]))
        steps.append(int(kept["step"]))
        state = load_file(folder / "run" / "moments" / f"step-{steps[-1]:06d}.safetensors")
        square = np.concatenate([state[f"exp_avg_sq.head.{p}"].double().numpy().ravel() for p in ("weight", "bias")])
        square /= 1 - 0.999 ** steps[-1]
        scale.append(float((square / (np.sqrt(square) + 1e-8)).sum() / square.sum()))
    sigma, basis = np.linalg.eigh(x.T @ x / len(x))
    q, total = v.T @ (v @ theta[-1] - yv) / len(v), np.zeros(len(x))
    for group in reversed(np.array_split(np.arange(6), segments)):
        t = RATE * (steps[group[-1] + 1] - steps[group[0]])
        p = float(np.mean([scale[k] for k in group]))
        rate = p * sigma + DECAY
        mean = np.mean([x * (x @ theta[k] - y)[:, None] for k in group], axis=0)
        total += mean @ (basis @ (p * (1 - np.exp(-t * rate)) / rate * (basis.T @ q)))
        q = basis @ (np.exp(-t * rate) * (basis.T @ q))
    return total


def differentiated(folder: Path, moments_too: bool) -> Floats:
    """What leaving a row out of training does to the target loss [n]: the derivative through every step of AdamW.

    ``moments_too``: also through the second moment, which is a constant of every step otherwise.
    """
    spec = ModelSpec.from_dict(json.loads((folder / "run" / "run.json").read_bytes())["model"])
    torch.manual_seed(0)
    parameters = dict(build_model(spec).named_parameters())
    theta = torch.cat([parameters[f"head.{p}"].detach().flatten() for p in ("weight", "bias")]).double()
    (x, y), (v, yv) = ([torch.from_numpy(a) for a in rows(folder, s)] for s in ("train", "val"))
    weights = torch.ones(TRAIN, dtype=torch.float64, requires_grad=True)
    first, second, step = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), 0
    for epoch in range(EPOCHS):
        order = epoch_order([f"r{k:02d}" for k in range(TRAIN)], 0, epoch)
        for some in np.split(order, TRAIN // BATCH):
            step += 1
            g = (weights[some] * (x[some] @ theta - y[some])) @ x[some] / BATCH
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            if not moments_too:
                second = second.detach()
            theta = theta * (1 - RATE * DECAY)
            theta = theta - RATE * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    trained = load_file(folder / "run" / "model.safetensors")
    found = torch.cat([trained["head.weight"].flatten(), trained["head.bias"]]).double()
    assert (theta - found).abs().max() < 1e-4  # it is the training that the folder is of
    phi = (0.5 * (v @ theta - yv) ** 2).mean()
    return -torch.autograd.grad(phi, weights)[0].numpy()


@pytest.mark.parametrize("segments", [1, 3, 6])
def test_it_is_the_sum_over_segments_with_steps_scaled_by_the_second_moment(segments: int, folder: Path) -> None:
    table = scored(folder, "--set", f"source.segments={segments}")
    expected = dense(folder, segments)
    assert relative_error(column(table), expected) < 1e-8
    np.testing.assert_allclose(column(table, "effect"), expected / TRAIN, rtol=1e-7, atol=1e-12)


def test_it_is_near_to_the_derivative_through_every_step(folder: Path) -> None:
    table = scored(folder)
    found, fixed, whole = column(table, "effect"), differentiated(folder, False), differentiated(folder, True)
    assert np.corrcoef(found, fixed)[0, 1] > 0.99
    assert 0.9 < float(found @ fixed / (found @ found)) < 1.2
    # what a row does to the second moment, and so to the steps of all rows, is not in the formula
    assert 0.3 < np.corrcoef(found, whole)[0, 1] < 0.6
    segments = provenance(table.schema)["curvature"]["source"]["segments"]
    assert all(s["decay"] == DECAY and set(s["scales"]) == {"head.bias", "head.weight"} for s in segments)


def test_without_the_optimizers_state_it_is_refused_with_the_flag(folder: Path) -> None:
    said = scored(folder, run="bare", code=2)
    assert "the state of the optimizer" in said
    assert "--record moments" in said
    assert "or train with --optimizer sgd" in " ".join(said.split())
    assert "is no term of the objective" not in said

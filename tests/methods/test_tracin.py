"""TracIn (methods.md T31, T32) and Self-TracIn over kept checkpoints, against float64 loops over the checkpoints.

python -m pytest tests/methods/test_tracin.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from influence_cli.data.tables import provenance
from influence_cli.model.build import load_model
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.spec import ModelSpec
from influence_cli.model.train.recipe import Recipe
from influence_cli.settings import Inputs
from influence_cli.stages.curate.combining import combine_columns
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from influence_cli.stages.score.combine import combine_options
from tests.cases import call_cli, column, examples, feature_table, with_column, write
from tests.oracle import relative_error

DESCENT = {"momentum": 0.0, "weight_decay": 0.0, "warmup": 0.0, "schedule": "constant", "batch_size": 64}


def train(folder: Path, name: str, model: str, recipe: Recipe, keep: int) -> Path:
    """A run folder with checkpoints, trained on features as they are."""
    asked = Inputs(str(folder / "m.parquet"), model=model)
    request = RetrainRequest(asked, str(folder / name), device="cpu", keep_checkpoints=keep, raw_features=True)
    retrain(request, recipe)
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracin")
    table = feature_table(examples(val=30))
    write(with_column(table, "group", ["a", "b"] * (table.num_rows // 2)), folder / "m.parquet")
    train(folder, "run", "mlp:7", Recipe(epochs=8, lr=0.2, batch_size=16), 4)
    return folder


def scored(folder: Path, method: str, *more: str, checkpoint: str = "run") -> pa.Table:
    output = "pairs.parquet" if "--per-target" in more else "s.parquet"
    asked = ("score", "m.parquet", "--checkpoint", checkpoint, "--method", method, "-o", output, *more)
    ran = call_cli(*asked, "--store", "store", "--precision", "fp64", cwd=folder)
    assert ran.code == 0, ran.err
    return pq.read_table(folder / output)


def data(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [r for r in pq.read_table(folder / "m.parquet").to_pylist() if r["split"] == split]
    x = torch.tensor([r["features"] for r in rows], dtype=torch.float32).double()
    return x, torch.tensor([r["label"] for r in rows])


def gradients(weights: Path, spec: ModelSpec, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Every row's gradient [n, d] by one backward pass each, float64."""
    model = load_model(spec, find_checkpoint(str(weights))[0], torch.float64)
    parameters = list(model.parameters())
    rows = []
    for one, label in zip(x.split(1), y.split(1), strict=True):
        loss = F.cross_entropy(model(one), label)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


def kept(run: Path) -> tuple[ModelSpec, list[dict[str, float]]]:
    record = json.loads((run / "run.json").read_bytes())
    return ModelSpec.from_dict(record["model"]), record["checkpoints"]


def rate_at(step: int, steps: int) -> float:
    """The rates of the fixture's recipe: 5 % warm-up to 0.2, then half a cosine to 0."""
    warm = int(0.05 * steps)
    if step < warm:
        return 0.2 * (step + 1) / (warm + 1)
    return 0.1 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


@pytest.mark.parametrize("weights", ["lr", "lr*steps", "uniform"])
def test_it_is_the_sum_over_checkpoints_of_products_times_rates(folder: Path, weights: str) -> None:
    """Each rate enters once."""
    spec, checkpoints = kept(folder / "run")
    assert len(checkpoints) == 4
    rates, before = [], 0
    for c in checkpoints:
        steps = int(c["step"])
        between = sum(rate_at(t, int(checkpoints[-1]["step"])) for t in range(before, steps))
        rates.append({"lr": rate_at(steps - 1, int(checkpoints[-1]["step"])), "lr*steps": between, "uniform": 0.25})
        before = steps
    expected, members = np.zeros(40), []
    for c, rate in zip(checkpoints, rates, strict=True):
        g = gradients(folder / "run" / str(c["file"]), spec, *data(folder, "train"))
        q = gradients(folder / "run" / str(c["file"]), spec, *data(folder, "val")).mean(0)
        members.append((g @ q).numpy())
        expected += rate[weights] * members[-1]
    table = scored(folder, "tracin", "--set", f"tracin.weights={weights}")
    assert relative_error(column(table), expected) < 1e-9
    mean = expected / sum(rate[weights] for rate in rates)
    variance = sum(rate[weights] * (m - mean) ** 2 for rate, m in zip(rates, members, strict=True)) / sum(
        rate[weights] for rate in rates
    )
    spread = sum(rate[weights] for rate in rates) * np.sqrt(variance * 4 / 3)  # in the unit of the sum
    np.testing.assert_allclose(column(table, "score_std"), spread, rtol=1e-6)


def test_t32_one_checkpoint_at_rate_one_is_ip(folder: Path) -> None:
    train(folder, "one", "mlp:7", Recipe(epochs=3, lr=1.0, **{**DESCENT, "batch_size": 16}), 1)
    ip = column(scored(folder, "ip", checkpoint="one"))
    np.testing.assert_array_equal(column(scored(folder, "tracin", checkpoint="one")), ip)


def test_t31_sums_over_rows_are_the_fall_of_phi(folder: Path) -> None:
    """In full-batch descent with every step kept; what is left out is of the order of the rate."""
    x, y = data(folder, "val")

    def phi(weights: Path) -> float:
        model = load_model(kept(weights.parent.parent)[0], find_checkpoint(str(weights))[0], torch.float64)
        with torch.no_grad():
            return float(F.cross_entropy(model(x), y))

    for rate, most in ((0.1, 0.065), (0.01, 0.0065), (0.001, 0.00065)):
        run = train(folder, f"descent-{rate}", "linear", Recipe(epochs=11, lr=rate, **DESCENT), 11)
        files = [run / str(c["file"]) for c in kept(run)[1]]
        # a rate belongs to the step that comes after the gradient: the last checkpoint is where the others lead to
        total = 0.0
        for file in files[:-1]:
            g = gradients(file, kept(run)[0], *data(folder, "train"))
            total += rate * float(g.mean(0) @ gradients(file, kept(run)[0], x, y).mean(0))
        all_of_them = column(scored(folder, "tracin", checkpoint=run.name))
        last = column(scored(folder, "ip", checkpoint=f"{run.name}/{kept(run)[1][-1]['file']}"))
        assert float(np.mean(all_of_them - rate * last)) == pytest.approx(total, rel=1e-6)
        fall = phi(files[0]) - phi(files[-1])
        assert abs(total - fall) < most * abs(fall)


def test_a_checkpoint_on_the_way_has_those_before_it(folder: Path) -> None:
    spec, checkpoints = kept(folder / "run")
    second = f"run/{checkpoints[1]['file']}"
    parts = [c["lr"] * column(scored(folder, "ip", checkpoint=f"run/{c['file']}")) for c in checkpoints[:2]]
    np.testing.assert_allclose(column(scored(folder, "tracin", checkpoint=second)), sum(parts), rtol=1e-10)
    assert spec.name == "mlp:7"


def test_self_influence_over_checkpoints_is_summed_by_rate(folder: Path) -> None:
    spec, checkpoints = kept(folder / "run")
    expected = np.zeros(40)
    for c in checkpoints:
        g = gradients(folder / "run" / str(c["file"]), spec, *data(folder, "train"))
        expected -= c["lr"] * g.square().sum(1).numpy()
    found = column(scored(folder, "self-tracin", "--set", "self-tracin.checkpoints=kept"))
    assert relative_error(found, expected) < 1e-9
    assert relative_error(column(scored(folder, "self-tracin")), expected) > 0.1


def test_blends_and_pairs_are_summed_too(folder: Path) -> None:
    both = ("--objective", "utility", "--objective", "fairness", "--per-member")
    table = scored(folder, "tracin", *both, "--combine", "linear")
    origin = provenance(table.schema)
    blended = combine_columns(table, ["score_utility", "score_fairness"], "linear", combine_options({}), origin, "t")
    np.testing.assert_allclose(blended, column(table, "score"), rtol=1e-9)
    members = [column(table, f"score_utility_{k}") for k in range(4)]
    rates = [c["lr"] for c in kept(folder / "run")[1]]
    np.testing.assert_allclose(
        sum(r * m for r, m in zip(rates, members, strict=True)), column(table, "score_utility"), rtol=1e-10
    )
    for weights, there in (("lr", column(table, "score_utility")), ("uniform", None)):
        pairs = scored(folder, "tracin", "--per-target", "--top", "40", "--set", f"tracin.weights={weights}")
        sums: dict[str, float] = {}
        for row in pairs.to_pylist():
            sums[row["id"]] = sums.get(row["id"], 0.0) + row["score"] / 30
        if there is None:
            there = column(scored(folder, "tracin", "--set", "tracin.weights=uniform"))
        np.testing.assert_allclose([sums.get(i, 0.0) for i in table.column("id").to_pylist()], there, rtol=1e-8)


def test_where_nothing_was_kept_the_flag_that_keeps_is_named(folder: Path) -> None:
    train(folder, "bare", "mlp:7", Recipe(epochs=1, lr=0.2, batch_size=16), 0)
    for asked in (("tracin",), ("self-tracin", "--set", "self-tracin.checkpoints=kept")):
        asked = ("score", "m.parquet", "--checkpoint", "bare", "--method", *asked, "-o", "x.parquet")
        ran = call_cli(*asked, "--store", "store", cwd=folder)
        assert ran.code == 2
        assert "--keep-checkpoints 5" in ran.err
    weights = load_file(folder / "bare" / "model.safetensors")
    torch.save(weights, folder / "alone.pt")
    asked = ("score", "m.parquet", "--checkpoint", "alone.pt", "--model", "mlp:7", "--method", "tracin")
    ran = call_cli(*asked, "-o", "x.parquet", "--store", "store", cwd=folder)
    assert ran.code == 2
    assert "--keep-checkpoints" in ran.err

"""SOURCE (methods.md T35 to T37): against exact unrolled descent, and dense float64 segments of a trained model.

python -m pytest tests/methods/test_source.py
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from influence_cli.data.tables import provenance
from influence_cli.maths.unrolled import gathered, left
from influence_cli.model.train.recipe import Recipe
from tests.cases import call_cli, column, examples, feature_table, write
from tests.methods.test_tracin import data, rate_at, train
from tests.oracle import relative_error

DECAY, MOMENTUM = 0.02, 0.5
WIDE = ("--set", "source.labels=exact")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write(feature_table(examples(val=30)), folder / "m.parquet")
    train(folder, "run", "linear", Recipe(6, 0.2, 16, momentum=MOMENTUM, weight_decay=DECAY), 6)
    train(folder, "curved", "mlp:5", Recipe(6, 0.2, 16, momentum=MOMENTUM, weight_decay=DECAY), 6)
    train(folder, "adam", "linear", Recipe(2, 0.01, 16, optimizer="adamw"), 2)
    return folder


def scored(folder: Path, *more: str, method: str = "source", checkpoint: str = "run", code: int = 0) -> Any:
    output = "pairs.parquet" if "--per-target" in more else "s.parquet"
    asked = ("score", "m.parquet", "--checkpoint", checkpoint, "--method", method, "-o", output, *more)
    ran = call_cli(*asked, "--store", "store", "--precision", "fp64", cwd=folder)
    assert ran.code == code, ran.err
    return pq.read_table(folder / output) if code == 0 else ran.err


class Dense:
    """Softmax regression at the kept checkpoints, rows as matrices [C, d + 1]."""

    def __init__(self, folder: Path) -> None:
        (x, self.y), (v, self.yv) = data(folder, "train"), data(folder, "val")
        self.x, self.v = (np.hstack([a.numpy(), np.ones((len(a), 1))]) for a in (x, v))
        self.kept = json.loads((folder / "run" / "run.json").read_bytes())["checkpoints"]
        self.theta = []
        for c in self.kept:
            w = {n: t.double().numpy() for n, t in load_file(folder / "run" / c["file"]).items()}
            self.theta.append(np.hstack([w["head.weight"], w["head.bias"][:, None]]))

    def gradients(self, k: int, x: NDArray[Any], y: torch.Tensor) -> NDArray[np.float64]:
        return (self.chances(k, x) - np.eye(3)[y.numpy()])[:, :, None] * x[:, None, :]

    def chances(self, k: int, x: NDArray[Any]) -> NDArray[np.float64]:
        z = np.exp(x @ self.theta[k].T)
        return z / z.sum(1, keepdims=True)

    def factors(self, group: list[int]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Bases of the mean moments over checkpoints, and the mean squares in them, exact labels."""
        roots = []
        for k in group:
            p = np.sqrt(self.chances(k, self.x))
            roots.append(np.einsum("ic,cd->icd", p, np.eye(3)) - p[:, :, None] ** 2 * p[:, None, :])
        q_s = np.linalg.eigh(sum(np.einsum("iac,ibc->ab", r, r) for r in roots))[1]
        q_a = np.linalg.eigh(self.x.T @ self.x)[1]
        turned = (self.x @ q_a) ** 2
        lam = sum(np.einsum("io,ij->oj", ((q_s.T @ r) ** 2).sum(2), turned) for r in roots) / (len(self.x) * len(group))
        return q_a, q_s, lam

    def travelled(self, first: int, last: int) -> float:
        return sum(rate_at(t, int(self.kept[-1]["step"])) for t in range(first, last)) / (1 - MOMENTUM)

    def scores(self, segments: int) -> NDArray[np.float64]:
        q = self.gradients(5, self.v, self.yv).mean(0)
        groups = [list(map(int, g)) for g in np.array_split(np.arange(6), segments)]
        total = np.zeros(len(self.x))
        for group in reversed(groups):
            q_a, q_s, lam = self.factors(group)
            after = int(self.kept[group[0] - 1]["step"]) if group[0] else 0
            t, sigma, turned = self.travelled(after, int(self.kept[group[-1]]["step"])), lam + DECAY, q_s.T @ q @ q_a
            u = q_s @ ((1 - np.exp(-t * sigma)) / sigma * turned) @ q_a.T
            mean = np.mean([self.gradients(k, self.x, self.y) for k in group], axis=0)
            total += (mean * u).sum((1, 2))
            q = q_s @ (np.exp(-t * sigma) * turned) @ q_a.T
        return total


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 6])
def test_it_is_the_sum_over_segments_of_filtered_products(segments: int, folder: Path) -> None:
    table = scored(folder, *WIDE, "--set", f"source.segments={segments}")
    expected = Dense(folder).scores(segments)
    assert relative_error(column(table), expected) < 1e-8
    np.testing.assert_allclose(column(table, "effect"), expected / 40, rtol=1e-7, atol=1e-12)


def test_t37_momentum_counts_and_batches_do_not(folder: Path) -> None:
    table = scored(folder, *WIDE)
    found = provenance(table.schema)["curvature"]["source"]["segments"]
    dense = Dense(folder)
    steps = [0, *(int(dense.kept[k]["step"]) for k in (1, 3, 5))]
    for k, segment in enumerate(found):
        assert (segment["segment"], segment["after"], segment["last"]) == (k + 1, steps[k], steps[k + 1])
        assert segment["travelled"] == pytest.approx(dense.travelled(steps[k], steps[k + 1]), rel=1e-10)
        largest = float(dense.factors([2 * k, 2 * k + 1])[2].max()) + DECAY
        assert segment["largest_eigenvalue"] == pytest.approx(largest, rel=1e-10)
    assert [s["share_of_direction"] for s in found] == sorted(s["share_of_direction"] for s in found)
    assert found[-1]["share_of_direction"] == 1.0
    ran = call_cli(
        "score", "m.parquet", "--checkpoint", "run", "--method", "source", *WIDE, "--precision", "fp64",
        "--batch-size", "7", "--store", "other", "-o", "b.parquet", cwd=folder,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert relative_error(column(pq.read_table(folder / "b.parquet")), column(table)) < 1e-10


def test_pairs_and_blends_go_the_same_way(folder: Path) -> None:
    pairs = scored(folder, *WIDE, "--per-target", "--top", "40")
    sums: dict[str, float] = {}
    for row in pairs.to_pylist():
        sums[row["id"]] = sums.get(row["id"], 0.0) + row["score"] / 30
    table = scored(folder, *WIDE)
    expected = [sums.get(i, 0.0) for i in table.column("id").to_pylist()]
    np.testing.assert_allclose(column(table), expected, rtol=1e-8, atol=1e-12)
    both = ("--objective", "utility", "--objective", "target-margin", "--combine", "linear")
    assert np.isfinite(column(scored(folder, *WIDE, *both))).all()


@pytest.mark.parametrize("segments", [1, 3])
def test_rows_are_taken_at_every_checkpoint_of_a_segment_where_the_model_is_no_line(
    segments: int, folder: Path
) -> None:
    asked = (*WIDE, "--set", f"source.segments={segments}")
    pairs = scored(folder, *asked, "--per-target", "--top", "40", checkpoint="curved")
    sums: dict[str, float] = {}
    for row in pairs.to_pylist():
        sums[row["id"]] = sums.get(row["id"], 0.0) + row["score"] / 30
    table = scored(folder, *asked, checkpoint="curved")
    expected = [sums.get(i, 0.0) for i in table.column("id").to_pylist()]
    np.testing.assert_allclose(column(table), expected, rtol=1e-8, atol=1e-12)


def test_what_it_cannot_follow_is_refused_with_the_way_out(folder: Path) -> None:
    assert "--optimizer sgd" in scored(folder, checkpoint="adam", code=2)
    assert "--keep-checkpoints 14" in scored(folder, "--set", "source.segments=7", code=2)
    assert "--relative" in scored(folder, "--relative", code=2)
    train(folder, "bare", "linear", Recipe(1, 0.2, 16), 0)
    assert "--keep-checkpoints" in scored(folder, checkpoint="bare", code=2)


def test_t35_two_segments_alike_are_one_twice_as_long_and_limits_are_exact_and_ip() -> None:
    sigma = np.geomspace(1e-6, 100.0, 40)
    for t in (0.01, 1.0, 30.0):
        once = gathered(sigma, 2 * t)
        np.testing.assert_allclose(gathered(sigma, t) + left(sigma, t) * gathered(sigma, t), once, rtol=1e-12)
        np.testing.assert_allclose(left(sigma, t) ** 2, left(sigma, 2 * t), rtol=1e-12)
    np.testing.assert_allclose(gathered(sigma, 1e9), 1.0 / sigma, rtol=1e-12)
    np.testing.assert_allclose(gathered(sigma, 1e-9), 1e-9, rtol=1e-5)


def unrolled(travelled: float, rate: float) -> list[float]:
    """Relative errors to the exact derivative of full-batch descent on squares: SOURCE by segments, and influence."""
    rng, n, p = np.random.default_rng(0), 30, 6
    x = rng.normal(size=(n, p)) @ np.diag(np.sqrt(np.geomspace(2.0, 0.5, p)))
    y, h, steps = rng.normal(size=n), x.T @ x / n, round(travelled / rate)
    thetas = [3.0 * rng.normal(size=p)]
    q = rng.normal(size=p)
    for _ in range(steps):
        thetas.append(thetas[-1] - rate * x.T @ (x @ thetas[-1] - y) / n)
    g = [x * (x @ theta - y)[:, None] for theta in thetas]
    exact, v = np.zeros(n), q.copy()
    for t in range(steps - 1, -1, -1):
        exact, v = exact + rate * g[t] @ v, v - rate * h @ v
    sigma, basis = np.linalg.eigh(h)
    found = []
    for segments, kept in ((1, 0), (3, 0), (3, 2), (6, 1)):
        s, at = np.zeros(n), basis.T @ q
        ends = np.linspace(0, steps, segments + 1).round().astype(int)
        for a, b in reversed(list(itertools.pairwise(ends))):
            chosen = range(a, b) if kept == 0 else [a + round((b - a) * (k + 1) / kept) for k in range(kept)]
            t = rate * (b - a)
            s += np.mean([g[k] for k in chosen], axis=0) @ (basis @ (gathered(sigma, t) * at))
            at = left(sigma, t) * at
        found.append(float(np.linalg.norm(s - exact) / np.linalg.norm(exact)))
    influence = g[-1] @ np.linalg.solve(h, q)
    return [*found, float(np.linalg.norm(influence - exact) / np.linalg.norm(exact))]


def test_t36_unrolled_descent_is_met_within_twice_the_published_errors() -> None:
    early, late, end = unrolled(0.06, 0.001), unrolled(6.0, 0.02), unrolled(60.0, 0.02)
    assert max(early[:4]) < 0.01
    assert early[4] > 10
    for found, table in zip(late[:4], (1.14, 0.041, 0.107, 0.084), strict=True):
        assert table / 2 < found < 2 * table
    assert 0.06 < end[0] < 0.24
    assert max(end[1:]) < 1e-4

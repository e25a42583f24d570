"""Pass V: the direction q = grad Phi, and how much of it is noise (methods.md 3.1, 2.4; design.md section 9).

Reference: q and Phi against autograd of the mean target loss in float64; the signal-to-noise ratio against the sample
covariance of per-row gradients, and in simulations with known mean and covariance; the split-half reliability
against two halves scored by the loop.
Behavioural: neither batch size nor the order of the manifest matters; identical rows have no noise to measure.

    python -m pytest tests/engines/test_direction.py
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import stats

from influence_cli.curvature.head import Head
from influence_cli.data.tables import provenance
from influence_cli.engines.buckets import BUCKETS, bucket_of
from influence_cli.errors import ManifestError
from influence_cli.maths.noise import signal_to_noise
from influence_cli.stages.score.noise import is_noise, noise_warnings
from tests.opened import Opened, direction_noise, fill, score
from tests.oracle import (
    Problem,
    flat,
    loop_scores,
    make_problem,
    mean_gradient,
    png,
    relative_error,
    row_gradients,
    write_manifest,
)


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("direction"), "mlp:6", (5,), classes=3, train=30, val=60)


def stored(job: Opened) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The direction that a job leaves in the store, and what is known of it."""
    fill(job)
    name = job.direction(job.members[0], "utility")
    tensors, meta = job.store.directions.read(name), job.store.directions.meta(name)
    assert tensors is not None
    assert meta is not None
    return {n: torch.from_numpy(np.array(t)) for n, t in tensors.items()}, meta


def buckets_by_hand(problem: Problem) -> NDArray[np.int64]:
    """First byte of the payload key modulo 16, for every val row of a manifest of features."""
    rows = np.asarray(problem.payloads)[problem.splits == "val"]
    keys = [hashlib.blake2b(v.astype("<f4").tobytes(), digest_size=16, person=b"influence.feat").digest() for v in rows]
    return np.array([k[0] % 16 for k in keys])


# -- q and Phi -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_direction_is_the_gradient_of_the_mean_target_loss(batch_size: int | None, problem: Problem) -> None:
    q, meta = stored(problem.job(batch_size=batch_size))
    x, y = problem.part("val")
    parameters = dict(problem.model.named_parameters())
    phi = F.cross_entropy(problem.model(x), y)
    expected = dict(zip(parameters, torch.autograd.grad(phi, list(parameters.values())), strict=True))
    assert q.keys() == expected.keys()
    assert relative_error(flat(q).numpy(), flat(expected).numpy()) < 1e-12
    assert meta["phi"] == pytest.approx(phi.item(), rel=1e-12)
    assert meta["norm"] == pytest.approx(flat(expected).norm().item(), rel=1e-12)
    assert meta["m"] == 60


def test_what_lies_before_the_head_is_run_on_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(tmp_path, "mlp:6", (5,), classes=3, train=30, val=74)
    sizes, inputs = list[int](), Head.inputs
    monkeypatch.setattr(Head, "inputs", lambda self, x: (sizes.append(len(x)), inputs(self, x))[1])
    q, meta = stored(problem.job(params="last", batch_size=37))
    assert sizes[-2:] == [37, 37]  # of sixteen buckets
    parameters = {n: p for n, p in problem.model.named_parameters() if n in q}
    x, y = problem.part("val")
    loss = F.cross_entropy(problem.model(x), y)
    expected = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    assert len(q) == 2
    assert relative_error(flat(q).numpy(), flat(expected).numpy()) < 1e-12
    monkeypatch.setattr("influence_cli.stages.grads.directions.HEAD_FROM", 75)
    plain, about = stored(problem.job(params="last", batch_size=37))
    assert relative_error(flat(q).numpy(), flat(plain).numpy()) < 1e-12
    assert meta["snr"] == pytest.approx(about["snr"], rel=1e-9)
    assert meta["accuracy"] == about["accuracy"]


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_direction_does_not_depend_on_the_order_of_the_manifest(precision: str, problem: Problem) -> None:
    tolerance = 1e-12 if precision == "fp64" else 1e-5
    q, meta = stored(problem.job(precision=precision))
    order = np.random.default_rng(1).permutation(len(problem.ids))
    job = problem.job(precision=precision, manifest=problem.permuted(order, f"{precision}.parquet"), batch_size=5)
    moved, about = stored(job)
    assert relative_error(flat(moved).numpy(), flat(q).numpy()) < tolerance
    assert about["snr"] == pytest.approx(meta["snr"], rel=100 * tolerance)
    assert (about["m"], about["m_half"]) == (meta["m"], meta["m_half"])
    assert job.direction(job.members[0], "utility") == problem.job(precision=precision).direction(
        job.members[0], "utility"
    )


def test_a_direction_is_named_by_what_changes_it(problem: Problem) -> None:
    def name(**settings: Any) -> str:
        job = problem.job(**settings)
        return job.direction(job.members[0], "utility")

    names = [name(), name(params="last"), name(precision="fp32")]
    relabelled = write_manifest(
        problem.folder / "relabelled.parquet",
        np.asarray(problem.payloads),
        np.where(problem.splits == "val", (problem.labels.numpy() + 1) % 3, problem.labels.numpy()),
        problem.splits.tolist(),
    )
    names.append(name(manifest=relabelled))
    assert len(set(names)) == 4
    assert name(batch_size=3, workers=1, shard_rows=7) == name()


def test_target_rows_that_are_train_rows_are_left_out(problem: Problem, tmp_path: Path) -> None:
    features, splits = np.asarray(problem.payloads).copy(), problem.splits
    val, train = (np.flatnonzero(splits == s) for s in ("val", "train"))
    features[val[4]] = features[train[0]]
    path = write_manifest(tmp_path / "overlap.parquet", features, problem.labels.numpy(), splits.tolist())
    with pytest.raises(ManifestError, match="1 of 60 target rows are training rows"):
        problem.job(manifest=path)
    q, meta = stored(problem.job(manifest=path, allow_overlap=True))
    x, y = problem.part("val")
    kept = torch.arange(60) != 4
    expected = mean_gradient(problem.model, x[kept], y[kept])
    assert relative_error(flat(q).numpy(), flat(expected).numpy()) < 1e-12
    assert meta["m"] == 59


# -- signal to noise -----------------------------------------------------------------------------------------------


def test_signal_to_noise_equals_the_formula_on_per_row_gradients(problem: Problem) -> None:
    """(m |q|^2) / MS_between, where MS_between is over the 16 buckets of the payload key's first byte."""
    rows = torch.stack([flat(g) for g in row_gradients(problem.model, *problem.part("val"))]).numpy()
    bucket = buckets_by_hand(problem)
    assert bucket.tolist() == bucket_of(problem.job().target.payload_keys).tolist()
    used = np.unique(bucket)
    assert 10 < len(used) <= BUCKETS
    mean = rows.mean(axis=0)
    between = sum(
        (bucket == b).sum() * ((rows[bucket == b].mean(axis=0) - mean) ** 2).sum() for b in used
    ) / (len(used) - 1)  # fmt: skip
    for size in (1, 4, None):
        _, meta = stored(problem.job(batch_size=size))
        assert meta["snr"] == pytest.approx(60 * (mean @ mean) / between, rel=1e-10)
        assert meta["m_half"] == int((bucket % 2 == 0).sum())


def covariance_of(rows: NDArray[np.float64], bucket: NDArray[np.int64]) -> float:
    """tr Cov as ``signal_to_noise`` estimates it, read back from the ratio."""
    total = rows.sum(axis=0)
    norms = np.array([float((rows[bucket == b].sum(axis=0) ** 2).sum()) for b in range(BUCKETS)])
    ratio = signal_to_noise(float(total @ total), norms, np.bincount(bucket, minlength=BUCKETS))
    assert ratio is not None
    return float(total @ total) / len(rows) / ratio


def within(values: NDArray[np.float64], expected: float, errors: float = 4.0) -> bool:
    return abs(values.mean() - expected) < errors * values.std(ddof=1) / len(values) ** 0.5


def test_bucket_covariance_is_that_of_the_rows_in_expectation(problem: Problem) -> None:
    """Over random assignments to buckets the mean of the estimate is the direct one, tr of the sample covariance."""
    rows = torch.stack([flat(g) for g in row_gradients(problem.model, *problem.part("val"))]).numpy()
    direct = float(rows.var(axis=0, ddof=1).sum())
    rng = np.random.default_rng(0)
    estimates = np.array([covariance_of(rows, rng.integers(0, BUCKETS, len(rows))) for _ in range(400)])
    assert within(estimates, direct)


@pytest.mark.parametrize("signal", [0.0, 0.3])
def test_estimate_is_unbiased_for_known_mean_and_covariance(signal: float) -> None:
    rng = np.random.default_rng(2)
    scale = np.linspace(0.2, 3.0, 12)
    truth, m = float((scale**2).sum()), 50
    covariances, squares = [], []
    for _ in range(600):
        rows = signal + rng.normal(size=(m, 12)) * scale
        covariances.append(covariance_of(rows, rng.integers(0, BUCKETS, m)))
        squares.append(m * float((rows.mean(axis=0) ** 2).sum()))
    assert within(np.array(covariances), truth)
    assert within(np.array(squares), m * 12 * signal**2 + truth)  # so the ratio is 1 + m |mu|^2 / tr Cov


def test_pure_noise_gives_about_one() -> None:
    """With equal variances the ratio is F distributed with p and (B - 1) p degrees of freedom."""
    rng, p = np.random.default_rng(3), 6
    ratios = []
    for _ in range(800):
        rows = rng.normal(size=(64, p))
        bucket = np.arange(64) % BUCKETS
        total = rows.sum(axis=0)
        norms = np.array([float((rows[bucket == b].sum(axis=0) ** 2).sum()) for b in range(BUCKETS)])
        ratios.append(signal_to_noise(float(total @ total), norms, np.bincount(bucket)))
    degrees = (BUCKETS - 1) * p
    assert within(np.array(ratios), degrees / (degrees - 2))
    assert stats.kstest(ratios, stats.f(p, degrees).cdf).pvalue > 1e-3


def test_empty_buckets_do_not_count() -> None:
    norms, sizes = np.array([9.0, 4.0, 1.0]), np.array([3, 2, 1])
    padded = signal_to_noise(30.0, np.array([0.0, 9.0, 0.0, 4.0, 1.0]), np.array([0, 3, 0, 2, 1]))
    assert padded == signal_to_noise(30.0, norms, sizes)
    assert signal_to_noise(9.0, np.array([9.0, 0.0]), np.array([3, 0])) is None


@pytest.mark.parametrize("encodings", [1, 9])
def test_identical_target_rows_have_no_noise(encodings: int, tmp_path: Path) -> None:
    """The same pixels and label: as one payload they fall in one bucket, as several encodings in several."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 40, (8, 16, 16, 3), dtype=np.uint8).repeat(2, axis=1)
    problem = make_problem(tmp_path, "mlp:4", (3, 32, 16), classes=3, train=8, val=9)
    payloads = [png(p) for p in pixels] + [png(pixels[0] + 1, level % encodings) for level in range(9)]
    splits = ["train"] * 8 + ["val"] * 9
    path = write_manifest(tmp_path / "same.parquet", payloads, [0] * 17, splits)
    job = problem.job(manifest=path)
    occupied = len(set(bucket_of(job.target.payload_keys).tolist()))
    assert occupied == 1 if encodings == 1 else occupied >= 3
    _, meta = stored(job)
    assert meta["snr"] is None
    assert meta["m"] == 9


# -- split halves --------------------------------------------------------------------------------------------------


def test_reliability_is_the_rank_correlation_of_two_halves(problem: Problem) -> None:
    x, y = problem.part("val")
    even = torch.from_numpy(buckets_by_hand(problem) % 2 == 0)
    halves = [mean_gradient(problem.model, x[h], y[h]) for h in (even, ~even)]
    a, b = (loop_scores(problem.model, *problem.part("train"), q) for q in halves)
    expected = stats.spearmanr(a, b).statistic
    carried = provenance(score(problem.job()).schema)["noise"]["utility"]
    assert carried["reliability"] == pytest.approx(expected, abs=1e-12)
    assert carried["target_rows"] == 60
    assert carried["snr"] == stored(problem.job())[1]["snr"]
    assert abs(expected) < 0.9999  # the two halves do differ


def test_reliability_is_of_distinct_payloads_chosen_by_key(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample smaller than the rows: those with the lowest keys, whatever their order."""
    monkeypatch.setattr("influence_cli.stages.run.run.HALF_SAMPLE", 12)
    job = problem.job()
    keys = [k.tobytes() for k in job.train.payload_keys]
    lowest = sorted(range(30), key=lambda i: keys[i])[:12]
    assert sorted(k.tobytes() for k in job.half_sample()) == sorted(keys[i] for i in lowest)
    fill(job)
    x, y = problem.part("val")
    even = torch.from_numpy(buckets_by_hand(problem) % 2 == 0)
    halves = [mean_gradient(problem.model, x[h], y[h]) for h in (even, ~even)]
    train = problem.part("train")
    a, b = (loop_scores(problem.model, train[0][lowest], train[1][lowest], q) for q in halves)
    found = direction_noise(job)["utility"]["reliability"]
    assert found == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_one_half_alone_has_no_reliability(tmp_path: Path) -> None:
    """A single target row is in one bucket: nothing to compare, and no ratio."""
    one = make_problem(tmp_path, "mlp:4", (3,), classes=2, train=6, val=1)
    noise = provenance(score(one.job()).schema)["noise"]["utility"]
    assert noise["reliability"] is None
    assert noise["snr"] is None
    assert noise["target_rows"] == 1


@pytest.mark.parametrize(
    ("snr", "reliability", "expected"),
    [
        (2.9, 0.9, True),
        (3.0, 0.5, False),
        (30.0, 0.49, True),
        (None, 0.9, False),
        (None, 0.1, True),
        (9.0, None, False),
        (None, None, False),
    ],
)
def test_noise_bounds(snr: float | None, reliability: float | None, expected: bool) -> None:
    entry = {"snr": snr, "reliability": reliability}
    assert is_noise(entry) is expected
    assert bool(noise_warnings({"utility": entry})) is expected

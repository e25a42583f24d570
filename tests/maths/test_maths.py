"""Formulas on arrays (methods.md T50, T54, T56): labels, noise, paired differences, masks, p-values.

Reference: label scores and losses against float64 autograd, and against 80-digit decimal arithmetic where margins are
large; ranks, correlations and intervals against scipy; the integer hash against big-integer SplitMix64.
Behavioural: invariances that hold for any numbers (Hypothesis), rates of false flags by simulation, and doctests.

    python -m pytest tests/maths/test_maths.py
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import stats

import influence_cli.maths
from influence_cli.maths.arms import mean_interval, paired_difference
from influence_cli.maths.hashed_draws import hashed_uniform
from influence_cli.maths.labels import cross_entropy, label_scores, margin, of_label, softmax
from influence_cli.maths.noise import ranks, spearman
from influence_cli.model.dropout import splitmix64
from influence_cli.stages.curate.known_rows import p_values
from tests.oracle import relative_error, splitmix64_stream

quick = settings(database=None, deadline=None, derandomize=True, max_examples=60)
CPU = torch.device("cpu")
Floats = NDArray[np.float64]


def matrices(low: float, high: float, columns: int = 4) -> st.SearchStrategy[Floats]:
    return arrays(np.float64, (3, columns), elements=st.floats(low, high, width=32))


# -- scores with any label -----------------------------------------------------------------------------------------


def test_label_scores_equal_autograd() -> None:
    """d/de of cross-entropy at logits z + e t, label by label."""
    rng = np.random.default_rng(0)
    z, t = 3 * rng.normal(size=(20, 6)), rng.normal(size=(20, 6))
    expected = np.empty((20, 6))
    for i in range(20):
        for c in range(6):
            step = torch.zeros((), dtype=torch.float64, requires_grad=True)
            logits = torch.from_numpy(z[i]) + step * torch.from_numpy(t[i])
            loss = F.cross_entropy(logits[None], torch.tensor([c]))
            expected[i, c] = torch.autograd.grad(loss, step)[0].item()
    assert relative_error(label_scores(z, t), expected) < 1e-14


def exact_label_scores(z: Floats, t: Floats) -> Floats:
    """sum_k p_k (t_k - t_c) in 80-digit decimal arithmetic, one row."""
    with localcontext() as context:
        context.prec = 80
        e = [Decimal(float(v)).exp() for v in z]
        p, u = [v / sum(e) for v in e], [Decimal(float(v)) for v in t]
        return np.array([float(sum(pk * (uk - uc) for pk, uk in zip(p, u, strict=True))) for uc in u])


@pytest.mark.parametrize(
    "logits", [[0.0, 100.0], [100.0, 0.0, -50.0], [0.0, 40.0, 41.0], [-300.0, 300.0], [700.0, 0.0, 0.0, 699.0]]
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_label_scores_are_exact_at_large_margins(logits: list[float], seed: int) -> None:
    """Naively p_y - 1 is 0 from a margin of 37 on; every entry here is right to the last few digits."""
    z = np.array(logits)
    t = np.random.default_rng(seed).normal(size=len(z))
    expected = exact_label_scores(z, t)
    found = label_scores(z[None], t[None])[0]
    assert np.all(expected != 0)
    assert np.abs(found / expected - 1).max() < 1e-13


def test_float32_logits_are_taken_to_float64_first() -> None:
    z, t = np.array([[0.0, 30.0]], np.float32), np.array([[1.0, 3.0]], np.float32)
    assert label_scores(z, t).dtype == np.float64
    assert label_scores(z, t)[0, 1] == pytest.approx(-2 * np.exp(-30.0), rel=1e-12)
    assert cross_entropy(z, np.array([1]))[0] == pytest.approx(np.exp(-30.0), rel=1e-3)


@quick
@given(matrices(-30, 30), matrices(-10, 10), st.floats(-50, 50), st.floats(-50, 50))
def test_shifts_of_logits_and_tangents_change_nothing(z: Floats, t: Floats, a: float, b: float) -> None:
    scores = label_scores(z, t)
    size = 1e-12 * (1 + np.abs(t).max() + abs(b)) * (1 + np.abs(z).max() + abs(a))
    assert np.abs(label_scores(z + a, t) - scores).max() <= size
    assert np.abs(label_scores(z, t + b) - scores).max() <= size


@quick
@given(matrices(-30, 30), matrices(-10, 10), matrices(-10, 10), st.floats(-3, 3))
def test_label_scores_have_mean_zero_under_the_model_and_are_linear(z: Floats, t: Floats, u: Floats, a: float) -> None:
    scores = label_scores(z, t)
    assert np.abs((softmax(z) * scores).sum(axis=1)).max() <= 1e-13 * (1 + np.abs(t).max())
    combined = label_scores(z, t + a * u)
    assert np.abs(combined - scores - a * label_scores(z, u)).max() <= 1e-12
    assert np.abs((scores[:, :1] - scores) - (t - t[:, :1])).max() <= 1e-12  # s(a) - s(c) = t_c - t_a


@quick
@given(matrices(-20, 20), matrices(-10, 10))
def test_best_label_has_the_least_tangent(z: Floats, t: Floats) -> None:
    best = label_scores(z, t).argmax(axis=1)
    assert np.abs(t[np.arange(3), best] - t.min(axis=1)).max() <= 1e-12
    assert (label_scores(z, t).max(axis=1) >= -1e-12).all()  # relabelling never lowers below zero


def test_of_label_picks_each_rows_own() -> None:
    assert of_label(np.arange(12.0).reshape(4, 3), np.array([2, 0, 1, 1])).tolist() == [2.0, 3.0, 7.0, 10.0]


# -- loss, margin, softmax -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 30.0, 500.0])
def test_loss_margin_and_softmax_equal_torch(scale: float) -> None:
    rng = np.random.default_rng(1)
    z, y = scale * rng.normal(size=(50, 5)), rng.integers(0, 5, 50)
    tensors = torch.from_numpy(z), torch.from_numpy(y)
    loss = F.cross_entropy(*tensors, reduction="none").numpy()
    assert np.abs(cross_entropy(z, y) - loss).max() < 1e-13 * scale
    assert np.abs(softmax(z) - tensors[0].softmax(dim=1).numpy()).max() < 1e-14
    others = tensors[0].clone().scatter_(1, tensors[1][:, None], -torch.inf).max(dim=1).values
    expected = (tensors[0].gather(1, tensors[1][:, None])[:, 0] - others).numpy()
    assert np.array_equal(margin(z, y), expected)
    assert z.flags.writeable
    assert np.isfinite(z).all()  # the input is left alone


@quick
@given(matrices(-50, 50), st.floats(-200, 200))
def test_loss_is_positive_and_not_moved_by_a_shift(z: Floats, a: float) -> None:
    y = np.array([0, 3, 1])
    loss = cross_entropy(z, y)
    assert (loss >= 0).all()
    assert np.abs(cross_entropy(z + a, y) - loss).max() <= 1e-11
    assert (loss >= -margin(z, y) - 1e-12).all()


@pytest.mark.parametrize("gap", [50.0, 700.0, 2000.0])
def test_loss_of_hopeless_rows_is_finite(gap: float) -> None:
    assert cross_entropy(np.array([[0.0, gap]]), np.array([0]))[0] == pytest.approx(gap, rel=1e-15)


# -- ranks and correlations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_ranks_and_spearman_equal_scipy(levels: int) -> None:
    rng = np.random.default_rng(levels)
    a = rng.integers(0, levels, 200).astype(np.float64)
    b = a + rng.integers(-levels, levels + 1, 200)
    assert np.array_equal(ranks(a), stats.rankdata(a))
    found = spearman(a, b)
    assert found == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert found is not None
    assert 0.1 < found < 0.99


@quick
@given(arrays(np.float64, 9, elements=st.integers(-3, 3).map(float)))
def test_ranks_equal_scipy_for_any_ties(a: Floats) -> None:
    assert np.array_equal(ranks(a), stats.rankdata(a))
    assert ranks(a).sum() == 45.0


def test_spearman_ends_and_gaps() -> None:
    a = np.arange(5.0)
    assert spearman(a, a**3) == 1.0
    assert spearman(a, -np.exp(a)) == -1.0
    assert spearman(a, np.ones(5)) is None
    assert spearman(a[:2], a[:2]) is None


# -- paired differences --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 10])
def test_mean_interval_equals_scipy(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert found["n"] == n
    assert found["mean"] == pytest.approx((low + high) / 2, rel=1e-12)
    assert found["half_width"] == pytest.approx((high - low) / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("shift", "higher", "verdict"),
    [
        (1.0, True, "better"),
        (-1.0, True, "worse"),
        (1.0, False, "worse"),
        (-1.0, False, "better"),
        (0.0, True, "not resolved"),
    ],
)
def test_paired_difference_equals_scipys_paired_t(shift: float, higher: bool, verdict: str) -> None:
    rng = np.random.default_rng(4)
    b = 5 * rng.normal(size=6)  # far wider than the difference: pairing is what resolves it
    noise = 0.1 * rng.normal(size=6)
    a = b + shift + noise - noise.mean()
    found = paired_difference(a, b, higher)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found["mean"] == pytest.approx(shift, abs=1e-12)
    assert found["half_width"] == pytest.approx((high - low) / 2, rel=1e-9)
    assert found["verdict"] == verdict


def test_one_seed_resolves_nothing() -> None:
    assert paired_difference(np.array([1.0]), np.array([0.0]), True)["verdict"] == "one seed: not resolved"
    assert mean_interval(np.array([3.0])) == {"mean": 3.0, "half_width": None, "n": 1}


def test_identical_arms_are_not_resolved() -> None:
    same = np.array([0.3, 0.4, 0.5])
    assert paired_difference(same, same, True)["verdict"] == "not resolved"


# -- integer hashing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15])
def test_splitmix64_in_python_and_in_torch_are_one(key: int) -> None:
    stream = splitmix64_stream(key, 300)
    assert hashed_uniform(key, 300, CPU).tolist() == [z >> 32 for z in stream]
    assert splitmix64(key) == stream[0]
    golden = 0x9E3779B97F4A7C15
    assert [splitmix64((key + k * golden) % 2**64) for k in range(1, 5)] == stream[1:5]


def test_splitmix64_gives_the_published_numbers() -> None:
    """The first outputs from seed 1234567 in the author's C code, as many test suites carry them."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert splitmix64_stream(1234567, 4) == expected


def test_hashed_bits_are_uniform() -> None:
    draws = hashed_uniform(42, 50_000, CPU).double() / 2**32
    assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-3
    assert draws.min() >= 0
    assert draws.max() < 1


# -- p-values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "rate"), [(19, 0.05), (99, 0.01), (30, 0.1), (45, 0.07)])
def test_clean_rows_are_flagged_at_most_at_the_rate(m: int, rate: float) -> None:
    """New rows from the calibration's own distribution: P(p <= q) = floor(q (m + 1)) / (m + 1) <= q."""
    rng, draws, each = np.random.default_rng(0), 1500, 20
    shares = np.array([(p_values(rng.normal(size=m), rng.normal(size=each)) <= rate).mean() for _ in range(draws)])
    exact = np.floor(rate * (m + 1) + 1e-9) / (m + 1)
    assert exact <= rate
    assert abs(shares.mean() - exact) < 4 * shares.std(ddof=1) / draws**0.5


def test_ties_with_calibration_rows_count_against_flagging() -> None:
    assert p_values(np.zeros(9), np.zeros(1)).tolist() == [1.0]
    assert p_values(np.arange(9.0), np.array([-1.0, 0.0, 8.5, 4.0])).tolist() == [0.1, 0.2, 1.0, 0.6]


@quick
@given(arrays(np.float64, 8, elements=st.integers(-4, 4).map(float)), arrays(np.float64, 5, elements=st.floats(-5, 5)))
def test_p_values_are_counts(calibration: Floats, new: Floats) -> None:
    expected = [(1 + int((calibration <= s).sum())) / 9 for s in new]
    assert p_values(calibration, new).tolist() == expected


# -- doctests ------------------------------------------------------------------------------------------------------

MODULES = [
    *(f"influence_cli.maths.{m.name}" for m in pkgutil.iter_modules(influence_cli.maths.__path__)),
    "influence_cli.stages.curate.known_rows",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0

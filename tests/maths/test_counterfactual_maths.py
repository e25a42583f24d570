"""Agreement of predicted and measured changes: correlations, slope, sign, intervals, reliability (methods.md T54).

Reference: scipy's pearsonr, spearmanr and linregress to 1e-12, and the bootstrap done again by its definition.
Behavioural: scores that are the truth have an LDS of 1, and Spearman-Brown foretells what more seeds correlate.

    python -m pytest tests/maths/test_counterfactual_maths.py
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from influence_cli.maths.counterfactual import (
    BOOTSTRAP,
    agreement,
    agreement_intervals,
    correlation_interval,
    linear_datamodeling,
    pearson,
    reliability,
    symmetric_interval,
)
from influence_cli.maths.noise import spearman, spearman_of_draws

Floats = NDArray[np.float64]


def pair(seed: int, n: int = 40, scale: float = 1.0) -> tuple[Floats, Floats]:
    """Two related vectors [n] with ties."""
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(size=n), 1)
    return x * scale, (0.7 * x + rng.normal(size=n)) * scale


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e-200])
def test_correlations_slope_and_offset_are_scipys(scale: float) -> None:
    x, y = pair(0, scale=scale)
    unit_x, unit_y = pair(0)
    found = agreement(x, y)
    line = stats.linregress(unit_x, unit_y)
    assert found["pearson"] == pytest.approx(stats.pearsonr(unit_x, unit_y).statistic, abs=1e-12)
    assert found["spearman"] == pytest.approx(stats.spearmanr(unit_x, unit_y).statistic, abs=1e-12)
    assert found["slope"] == pytest.approx(line.slope, abs=1e-12)
    assert found["offset"] == pytest.approx(line.intercept * scale, abs=1e-12 * scale)


def test_signs_are_counted_among_changes_above_the_noise() -> None:
    measured = np.array([5.0, -5.0, 0.1, -0.1, 4.0])
    predicted = np.array([1.0, -1.0, -1.0, 1.0, -2.0])
    all_rows, large = agreement(predicted, measured), agreement(predicted, measured, above=1.0)
    assert (all_rows["sign"], all_rows["sign_rows"]) == (0.4, 5)
    assert (large["sign"], large["sign_rows"]) == (pytest.approx(2 / 3), 3)
    assert agreement(predicted, measured, above=9.0)["sign"] is None


def test_what_is_undefined_is_none() -> None:
    flat, x = np.ones(5), np.arange(5.0)
    assert pearson(flat, x) is None
    assert agreement(flat, x)["slope"] is None
    assert linear_datamodeling(flat, {"a": x}, 0)["columns"]["a"]["lds"] is None
    assert pearson(x[:2], x[:2]) is None
    assert agreement(np.array([]), np.array([]))["sign"] is None


def test_scores_that_are_the_truth_have_an_lds_of_one() -> None:
    rng = np.random.default_rng(1)
    truth, other = rng.normal(size=50), rng.normal(size=50)
    members = np.array([rng.permutation(50) < 25 for _ in range(30)])
    phi = 3.0 - members @ truth
    found = linear_datamodeling(phi, {s: -(members @ v) for s, v in (("t", truth), ("o", other), ("-t", -truth))}, 0)
    assert found["columns"]["t"] == {"lds": 1.0, "interval": [1.0, 1.0]}
    assert found["columns"]["-t"]["lds"] == -1.0
    assert abs(found["columns"]["o"]["lds"]) < 0.6
    assert found["differences"]["t"]["o"]["verdict"] == "better"
    assert found["differences"]["o"]["-t"]["verdict"] == "better"


def test_lds_its_interval_and_differences_are_scipys_over_the_same_draws() -> None:
    phi, a = pair(2)
    _, b = pair(3)
    found = linear_datamodeling(phi, {"a": a, "b": b}, 5)
    rng = np.random.default_rng(5)
    chosen = [rng.integers(0, 40, 40) for _ in range(BOOTSTRAP)]
    drawn = {n: np.array([stats.spearmanr(phi[c], v[c]).statistic for c in chosen]) for n, v in (("a", a), ("b", b))}
    for name, values in (("a", a), ("b", b)):
        assert found["columns"][name]["lds"] == pytest.approx(stats.spearmanr(phi, values).statistic, abs=1e-12)
        v = stats.spearmanr(phi, values).statistic
        half = stats.t.ppf(0.975, 38) * drawn[name].std(ddof=1) / (1 - v**2)
        expected = np.tanh(np.arctanh(v) + half * np.array([-1, 1]))
        np.testing.assert_allclose(found["columns"][name]["interval"], expected, atol=1e-12)
    paired = drawn["a"] - drawn["b"]
    difference = found["differences"]["a"]["b"]
    half = stats.t.ppf(0.975, 38) * paired.std(ddof=1)
    middle = found["columns"]["a"]["lds"] - found["columns"]["b"]["lds"]
    np.testing.assert_allclose(difference["interval"], [middle - half, middle + half], atol=1e-12)
    assert found == linear_datamodeling(phi, {"a": a, "b": b}, 5)


def test_equal_columns_are_not_told_apart_and_few_subsets_have_no_interval() -> None:
    phi, a = pair(4)
    same = linear_datamodeling(phi, {"a": a, "b": 2.0 * a}, 0)["differences"]["a"]["b"]
    assert same == {"difference": 0.0, "interval": [0.0, 0.0], "verdict": "not resolved"}
    few = linear_datamodeling(phi[:5], {"a": a[:5], "b": a[:5]}, 0)
    assert few["columns"]["a"]["lds"] is not None
    assert few["columns"]["a"]["interval"] is None
    assert few["differences"] == {}


def test_an_interval_needs_most_draws_to_be_defined_and_stays_a_correlation() -> None:
    assert symmetric_interval(0.5, np.array([np.nan, np.nan, 1.0]), 9) is None
    assert symmetric_interval(None, np.ones(3), 9) is None
    assert correlation_interval(0.9, np.array([np.nan, 0.9, 0.9]), 9) == pytest.approx([0.9, 0.9])
    low, high = correlation_interval(0.95, np.array([0.5, 0.9, 1.0]), 12) or (0.0, 0.0)
    assert -1.0 < low < 0.95 < high < 1.0


@pytest.mark.parametrize("rho", [0.0, 0.8, 0.995])
def test_intervals_cover_the_true_rank_correlation(rho: float) -> None:
    rng, hits = np.random.default_rng(8), 0
    truth = 6.0 / np.pi * np.arcsin(rho / 2.0)  # Spearman's of a bivariate normal
    for repeat in range(150):
        x = rng.normal(size=60)
        y = rho * x + np.sqrt(1.0 - rho**2) * rng.normal(size=60)
        bounds = linear_datamodeling(y, {"x": x}, repeat, draws=100)["columns"]["x"]["interval"]
        hits += bounds[0] <= truth <= bounds[1]
    assert hits / 150 >= 0.9


def test_intervals_at_the_default_number_of_subsets_cover_what_they_say() -> None:
    """95 % within 2 over correlations from 0 to 0.98, by simulation from a bivariate normal."""
    rng, hits = np.random.default_rng(21), []
    for repeat in range(600):
        rho = (0.0, 0.5, 0.8, 0.95, 0.98)[repeat % 5]
        x = rng.normal(size=100)
        y = rho * x + np.sqrt(1.0 - rho**2) * rng.normal(size=100)
        low, high = linear_datamodeling(y, {"x": x}, repeat, draws=120)["columns"]["x"]["interval"]
        hits.append(low <= 6.0 / np.pi * np.arcsin(rho / 2.0) <= high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlations_of_draws_are_those_of_each_draw_to_the_bit(ties: bool) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 4, (2, 17)).astype(float) if ties else rng.normal(size=(2, 17))
    chosen = rng.integers(0, 17, (200, 17))
    chosen[3] = 5  # one row again and again has no ranks
    expected = [spearman(a[c], b[c]) for c in chosen]
    found = spearman_of_draws(a, b, chosen).tolist()
    assert [None if np.isnan(v) else v for v in found] == expected
    assert expected[3] is None
    assert np.isnan(spearman_of_draws(a[:2], b[:2], np.array([[0, 1]]))).all()


def test_agreement_intervals_cover_the_estimates_and_are_seeded() -> None:
    x, y = pair(6)
    found, whole = agreement_intervals(x, y, 0), agreement(x, y)
    for name, bounds in found.items():
        value = whole[name]
        assert bounds is not None
        assert value is not None
        assert bounds[0] < value < bounds[1]
    assert found == agreement_intervals(x, y, 0) != agreement_intervals(x, y, 1)
    assert agreement_intervals(x[:5], y[:5], 0) == {"pearson": None, "spearman": None, "slope": None}


def test_reliability_is_spearman_browns_and_its_root_bounds_a_perfect_prediction() -> None:
    rng = np.random.default_rng(7)
    truth = rng.normal(size=4000)
    phi = truth[:, None] + 1.5 * rng.normal(size=(4000, 3))
    pairs = [stats.spearmanr(phi[:, a], phi[:, b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    r = float(np.mean(pairs))
    found = reliability(phi)
    assert found == pytest.approx(3 * r / (1 + 2 * r), abs=1e-12)
    assert found is not None
    assert found**0.5 == pytest.approx(stats.spearmanr(truth, phi.mean(axis=1)).statistic, abs=0.02)
    assert reliability(phi[:, :1]) is None
    assert reliability(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])) == 0.0

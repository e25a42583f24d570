"""Rankings and their intervals (methods.md 6.1): figures against scikit-learn and SciPy to 1e-12, ties included.

Reference: scikit-learn on the rows themselves and on rows repeated as a draw says; SciPy for correlations; numerical
derivatives for influence values.  Behavioural: intervals that cover what they say, by simulation from normal scores
whose AUC and average precision are known, where the percentile interval does not.

    python -m pytest tests/maths/test_ranking.py
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from influence_cli.maths.bootstrap import (
    correlation_interval,
    degrees_of_freedom,
    draws_of,
    holm,
    share_interval,
    student,
    two_sided,
)
from influence_cli.maths.ranking import (
    Ladder,
    curves,
    found,
    influence_of_rows,
    jaccard,
    kendall,
    lowest,
    weighted_spearman,
)

quick = settings(database=None, deadline=None, derandomize=True, max_examples=80)
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@st.composite
def rankings(draw: st.DrawFn) -> tuple[Floats, Mask, NDArray[np.int64]]:
    """Suspicions with many ties, rows of both kinds, and a draw that leaves both kinds in."""
    n = draw(st.integers(2, 30))
    values = draw(st.lists(st.integers(-3, 3) | st.floats(-3, 3), min_size=n, max_size=n))
    wrong = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    wrong[0], wrong[1] = True, False
    counts = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    counts[:2] += 1
    return np.array(values, dtype=np.float64), wrong, counts


def once(n: int) -> NDArray[np.int64]:
    return np.ones((1, n), np.int64)


# ---- figures ------------------------------------------------------------------------------------------------------


@quick
@given(rankings())
def test_auc_and_average_precision_equal_scikit_learn(ranking: tuple[Floats, Mask, NDArray[np.int64]]) -> None:
    suspicion, wrong, counts = ranking
    repeated = np.repeat(np.arange(len(wrong)), counts)
    f = found(Ladder.of(suspicion), wrong, np.stack([once(len(wrong))[0], counts]))
    for k, rows in enumerate((np.arange(len(wrong)), repeated)):
        assert f.auc()[k] == pytest.approx(roc_auc_score(wrong[rows], suspicion[rows]), abs=1e-12)
        expected = average_precision_score(wrong[rows], suspicion[rows])
        assert f.average_precision()[k] == pytest.approx(expected, abs=1e-12)


@quick
@given(rankings(), st.integers(0, 40))
def test_hits_are_the_mean_over_every_way_of_breaking_ties(
    ranking: tuple[Floats, Mask, NDArray[np.int64]], k: int
) -> None:
    suspicion, wrong, counts = ranking
    repeated = np.repeat(np.arange(len(wrong)), counts)
    s, w = suspicion[repeated], wrong[repeated]
    k = min(k, len(s))
    expected = 0.0
    if k:
        edge = np.sort(s)[::-1][k - 1]
        tied = s == edge
        expected = w[s > edge].sum() + w[tied].sum() * (k - (s > edge).sum()) / tied.sum()
    hits = found(Ladder.of(suspicion), wrong, counts[None]).hits(k)[0]
    assert hits == pytest.approx(expected, abs=1e-12)


def test_hits_without_ties_count_the_first_rows() -> None:
    rng = np.random.default_rng(0)
    s, wrong = rng.normal(size=50), rng.random(50) < 0.3
    f = found(Ladder.of(s), wrong, once(50))
    for k in range(51):
        assert f.hits(k)[0] == wrong[np.argsort(-s)[:k]].sum()


@quick
@given(rankings())
def test_influence_values_are_derivatives_and_sum_to_zero(
    ranking: tuple[Floats, Mask, NDArray[np.int64]],
) -> None:
    suspicion, wrong, _ = ranking
    ladder = Ladder.of(suspicion)
    exact = influence_of_rows(ladder, wrong)
    n, big = len(wrong), 10**6
    counts = np.full((2 * n, n), big)
    counts[np.arange(n), np.arange(n)] += 1000
    counts[n + np.arange(n), np.arange(n)] -= 1000
    f = found(ladder, wrong, counts)
    for figure, values in ((f.auc(), exact.auc), (f.average_precision(), exact.average_precision)):
        numeric = (figure[:n] - figure[n:]) / (2 * 1000 / big)
        assert np.allclose(values, numeric, atol=1e-5)
        assert abs(values.sum()) < 1e-12


def test_curves_pass_through_every_point_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    s, wrong = np.round(rng.normal(size=120), 1), rng.random(120) < 0.3
    made = curves(s, wrong)
    false, true, _ = roc_curve(wrong, s, drop_intermediate=False)
    assert np.allclose(made["roc"]["false_positive_rate"], false)
    assert np.allclose(made["roc"]["true_positive_rate"], true)
    precision, recall, _ = precision_recall_curve(wrong, s)
    assert np.allclose(made["precision_recall"]["precision"], precision[-2::-1])
    assert np.allclose(made["precision_recall"]["recall"], recall[-2::-1])


def test_long_curves_are_thinned_and_keep_their_area() -> None:
    rng = np.random.default_rng(2)
    wrong = rng.random(20_000) < 0.02
    s = rng.normal(size=20_000) + 2.0 * wrong
    made = curves(s, wrong)
    assert all(len(values) <= 200 for curve in made.values() for values in curve.values())
    roc, pr = made["roc"], made["precision_recall"]
    area = np.trapezoid(roc["true_positive_rate"], roc["false_positive_rate"])
    assert area == pytest.approx(roc_auc_score(wrong, s), abs=0.003)
    under = np.trapezoid(pr["precision"], pr["recall"])
    assert under == pytest.approx(average_precision_score(wrong, s), abs=0.01)
    assert (roc["true_positive_rate"][-1], pr["recall"][-1]) == (1.0, 1.0)


# ---- correlations and overlaps ------------------------------------------------------------------------------------


@quick
@given(rankings(), st.randoms(use_true_random=False))
def test_weighted_spearman_equals_scipy_on_repeated_rows(
    ranking: tuple[Floats, Mask, NDArray[np.int64]], random: object
) -> None:
    a, wrong, counts = ranking
    b = a * np.where(wrong, 1.0, -0.5)
    repeated = np.repeat(np.arange(len(a)), counts)
    x, y = a[repeated], b[repeated]
    got = weighted_spearman(a, b, counts[None])[0]
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert np.isnan(got)
    else:
        assert got == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_kendall_counts_pairs_and_ties() -> None:
    a, b = np.array([1.0, 2.0, 2.0, 3.0, 5.0]), np.array([2.0, 1.0, 3.0, 3.0, 4.0])
    pairs = list(itertools.combinations(range(5), 2))
    signs = [np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i, j in pairs]
    untied = [sum(v[i] != v[j] for i, j in pairs) for v in (a, b)]
    assert kendall(a, b) == pytest.approx(sum(signs) / np.sqrt(untied[0] * untied[1]), abs=1e-12)
    assert kendall(a, np.ones(5)) is None
    assert kendall(a[:2], b[:2]) is None


def test_lowest_breaks_ties_by_name_and_never_takes_a_row_without_a_score() -> None:
    values, names = np.array([1.0, 0.0, 1.0, np.nan, 1.0]), [b"e", b"d", b"c", b"b", b"a"]
    assert np.flatnonzero(lowest(values, 3, names)).tolist() == [1, 2, 4]
    assert np.flatnonzero(lowest(values, 3)).tolist() == [0, 1, 2]
    assert lowest(values, 9).sum() == 4
    assert jaccard(lowest(values, 0), lowest(values, 0)) is None


# ---- draws --------------------------------------------------------------------------------------------------------


def test_draws_keep_the_number_of_rows_of_each_kind_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    strata = np.array([True] * 7 + [False] * 30)
    whole = np.concatenate(list(draws_of(strata, 50, 3)))
    assert whole.shape == (50, 37)
    assert np.all(whole[:, strata].sum(axis=1) == 7)
    assert np.all(whole[:, ~strata].sum(axis=1) == 30)
    monkeypatch.setattr("influence_cli.maths.bootstrap.BLOCK", 100)
    parts = list(draws_of(strata, 50, 3))
    assert len(parts) == 25
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(np.concatenate(list(draws_of(strata, 50, 4))), whole)


def test_draws_are_multinomial() -> None:
    counts = np.concatenate(list(draws_of(np.ones(20, dtype=bool), 4000, 0)))
    assert counts.mean(axis=0) == pytest.approx(np.ones(20), abs=0.06)
    assert counts.var(axis=0) == pytest.approx(np.full(20, 0.95), abs=0.12)
    covariance = np.cov(counts.T)[~np.eye(20, dtype=bool)].mean()
    assert covariance == pytest.approx(-0.05, abs=0.005)


def test_the_spread_of_the_draws_is_that_of_the_influence_values() -> None:
    rng = np.random.default_rng(4)
    wrong = np.arange(400) < 80
    s = rng.normal(size=400) + 1.2 * wrong
    ladder = Ladder.of(s)
    drawn = [found(ladder, wrong, c) for c in draws_of(wrong, 2000, 0)]
    exact = influence_of_rows(ladder, wrong)
    for values, influence in (
        (np.concatenate([f.auc() for f in drawn]), exact.auc),
        (np.concatenate([f.average_precision() for f in drawn]), exact.average_precision),
    ):
        centred = np.concatenate([influence[rows] - influence[rows].mean() for rows in (wrong, ~wrong)])
        assert values.std() == pytest.approx(np.sqrt((centred**2).sum()), rel=0.06)


# ---- intervals ----------------------------------------------------------------------------------------------------


def test_student_share_and_correlation_intervals_by_hand() -> None:
    assert student(10.0) == pytest.approx(stats.t.ppf(0.975, 10))
    low, high = share_interval(0.9, 0.05, float("inf"), 100)
    assert np.log(high / (1 - high)) - np.log(9) == pytest.approx(np.log(9) - np.log(low / (1 - low)))
    assert share_interval(0.0, 0.0, 5.0, 40) == pytest.approx([0.0, stats.norm.ppf(0.975) ** 2 / (40 + 1.959964**2)])
    assert share_interval(0.999999, 0.4, 2.0, 40)[0] >= 0.0  # no overflow
    draws = np.tanh(np.random.default_rng(0).normal(1.0, 0.2, 5000))
    low, high = correlation_interval(float(np.tanh(1.0)), draws)
    assert np.arctanh([low, high]) == pytest.approx([1 - 1.96 * 0.2, 1 + 1.96 * 0.2], abs=0.02)


def test_degrees_of_freedom_fall_as_a_figure_rests_on_few_rows() -> None:
    rng = np.random.default_rng(5)
    strata = np.arange(400) < 200
    normal = degrees_of_freedom(rng.normal(size=400), strata)
    assert normal == pytest.approx(400, rel=0.25)  # normal values: kurtosis 3, so n
    spiky = np.where(np.arange(400) % 100 == 0, 1.0, 0.0)
    assert degrees_of_freedom(spiky, strata) < 10
    assert degrees_of_freedom(np.zeros(400), strata) == float("inf")


def test_p_values_and_holm_by_hand() -> None:
    assert two_sided(1.96, 1.0, float("inf")) == pytest.approx(0.05, abs=1e-4)
    assert (two_sided(0.0, 0.0, 5.0), two_sided(0.3, 0.0, 5.0)) == (1.0, 0.0)
    p = np.array([0.012, 0.2, 0.011, 0.04])
    assert holm(p) == pytest.approx([0.044, 0.2, 0.044, 0.08])  # 0.011 * 4, then no less
    assert holm(np.array([])).shape == (0,)


def true_figures(shift: float, rate: float) -> tuple[float, float]:
    """AUC and average precision of N(shift, 1) against N(0, 1) with a share ``rate`` of the first."""
    t = np.linspace(-8.0, shift + 8.0, 100_001)
    true, false = stats.norm.sf(t, shift), stats.norm.sf(t)
    precision = rate * true / (rate * true + (1 - rate) * false)
    return float(stats.norm.cdf(shift / np.sqrt(2))), float(-np.trapezoid(precision, true))


def covered(shift: float, wrongs: int, cleans: int, times: int, seed: int) -> NDArray[np.bool_]:
    """Whether intervals of AUC and AP, and percentile intervals of the same draws, cover the truth [times, 4]."""
    rng = np.random.default_rng(seed)
    wrong = np.arange(wrongs + cleans) < wrongs
    truth = true_figures(shift, wrongs / (wrongs + cleans))
    counts = np.concatenate(list(draws_of(wrong, 200, seed)))
    out = np.zeros((times, 4), dtype=bool)
    for k in range(times):
        ladder = Ladder.of(rng.normal(size=len(wrong)) + shift * wrong)
        f, one = found(ladder, wrong, counts), found(ladder, wrong, once(len(wrong)))
        influence = influence_of_rows(ladder, wrong)
        figures = (
            (f.auc(), one.auc(), influence.auc),
            (f.average_precision(), one.average_precision(), influence.average_precision),
        )
        for j, (draws, at, values) in enumerate(figures):
            low, high = share_interval(
                float(at[0]), float(draws.std()), degrees_of_freedom(values, wrong), min(wrongs, cleans)
            )
            out[k, j] = low <= truth[j] <= high
            low, high = np.percentile(draws, [2.5, 97.5])
            out[k, 2 + j] = low <= truth[j] <= high
    return out


def test_intervals_cover_what_they_say_and_percentiles_do_not() -> None:
    """AUC 0.5 to 0.99: 95 % within 2 over all of it; where the percentile interval fails, ours does not."""
    parts = [covered(shift, 60, 240, 300, seed) for seed, shift in enumerate((0.0, 1.0, 2.5, 3.2))]
    auc, ap = np.concatenate(parts)[:, :2].mean(axis=0)
    assert auc == pytest.approx(0.95, abs=0.02)
    assert ap == pytest.approx(0.95, abs=0.02)
    assert parts[3][:, 0].mean() > parts[3][:, 2].mean() + 0.03
    assert parts[0][:, 1].mean() > parts[0][:, 3].mean() + 0.02

"""Recall, number and share of wrong rows from canaries, against brute force and against a truth that is known.

python -m pytest tests/maths/test_canary_cut.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from influence_cli.maths.canary_cut import (
    Column,
    Estimates,
    cut_for_fine,
    cut_for_recall,
    estimates,
    most_wrong,
    recall_of,
    same_label,
)


def drawn(wrong: float, same: float, apart: float, rows: int = 4000, canaries: int = 500, seed: int = 0) -> Any:
    """A column of rows of which a share is wrong and scores lower, its canaries, and which rows are wrong."""
    rng = np.random.default_rng(seed)
    is_wrong = rng.random(rows) < wrong
    spared = rng.random(canaries) < wrong * same  # given the right label by chance
    scores = rng.normal(size=rows) - apart * is_wrong
    planted = rng.normal(size=canaries) - apart * ~spared
    return Column.of(planted, scores), scores, is_wrong


def test_same_label_is_the_share_of_pairs_of_canaries_of_a_class() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    planted = (labels + rng.integers(1, 3, 40)) % 3
    pairs = [(i, j) for i in range(40) for j in range(i) if labels[i] == labels[j]]
    assert same_label(labels, planted) == pytest.approx(np.mean([planted[i] == planted[j] for i, j in pairs]))
    assert same_label(np.array([0, 1]), np.array([1, 0])) == 1.0  # nothing to tell: every wrong row might be put right


@pytest.mark.parametrize(("wrong", "same"), [(0.1, 0.1), (0.2, 1.0), (0.35, 0.4)])
def test_the_mixture_is_undone(wrong: float, same: float) -> None:
    of_wrong, of_right = np.array([0.7, 0.9]), np.array([0.05, 0.3])
    found = (1 - wrong * same) * of_wrong + wrong * same * of_right
    taken = wrong * of_wrong + (1 - wrong) * of_right
    assert recall_of(found, taken, wrong, same) == pytest.approx(of_wrong)


@pytest.mark.parametrize(("wrong", "same"), [(0.1, 0.1), (0.1, 1.0), (0.25, 1.0), (0.3, 0.2)])
def test_number_recall_and_share_are_those_of_the_truth(wrong: float, same: float) -> None:
    column, scores, is_wrong = drawn(wrong, same, apart=4.0)
    told = estimates({"a": column}, same)["a"]
    low, high = told.wrong_interval()
    assert told.wrong_rows == pytest.approx(is_wrong.sum(), rel=0.12)
    assert low <= is_wrong.sum() * 1.05
    assert high >= is_wrong.sum() * 0.95
    for at in (-4.5, -3.0, -1.5):
        here = scores <= at
        recall, least, most = told.recall(at)
        assert recall == pytest.approx(here[is_wrong].mean(), abs=0.06)
        assert least < here[is_wrong].mean() + 0.03
        assert most > here[is_wrong].mean() - 0.03
        assert told.fine(np.array([at]))[0] == pytest.approx((~is_wrong)[here].mean(), abs=0.1)
        assert told.fine_interval(at)[0] <= (~is_wrong)[here].mean() + 0.05


def test_wrong_rows_are_bounded_by_the_column_that_tells_most() -> None:
    """A column whose lowest rows are half right allows too many; beside a better one it does not count."""
    good, scores, is_wrong = drawn(0.1, 0.1, apart=4.0)
    rng = np.random.default_rng(1)
    weak = Column.of(rng.normal(size=500) - 0.5, rng.normal(size=len(scores)) - 0.5 * is_wrong)
    alone = float(most_wrong([weak], 0.1)[0])
    assert alone > 0.2 > 1.3 * float(most_wrong([weak, good], 0.1)[0])


def test_the_bound_is_taken_where_its_surest_ratio_is_least() -> None:
    """By brute force over the canaries' scores, at the share that solves it."""
    column, *_ = drawn(0.2, 0.5, apart=2.0, rows=500, canaries=120, seed=3)
    p = float(most_wrong([column], 0.5)[0])
    total, rows, best = len(column.canaries), len(column.rows), (np.inf, np.nan)
    for at in column.sorted_canaries:
        found, taken = np.mean(column.canaries <= at), np.mean(column.rows <= at)
        if found * total < max(20, 0.2 * total):
            continue
        ends = [
            stats.binomtest(round(s * m), m).proportion_ci(method="wilson") for s, m in ((found, total), (taken, rows))
        ]
        least = recall_of(np.array(ends[0].low), np.array(ends[1].high), p, 0.5)
        bound = taken / recall_of(np.array(found), np.array(taken), p, 0.5)
        best = min(best, (float(ends[1].high / least), float(bound)))
    assert p == pytest.approx(best[1], abs=1e-4)


def told_without_noise(canaries: list[float], rows: list[float], wrong: float = 0.2) -> Estimates:
    column = Column.of(np.array(canaries, dtype=np.float64), np.array(rows, dtype=np.float64))
    return Estimates(column, wrong, 0.0, np.ones((2, len(canaries)), dtype=np.int64), np.array([wrong, wrong]))


def test_the_cut_for_a_recall_is_the_least_canary_that_reaches_it_in_expectation() -> None:
    told = told_without_noise(list(range(1, 20)), list(range(100)))  # 19 canaries: the k-th has k / 20 below it
    assert cut_for_recall(told, 0.5) == 10.0
    assert cut_for_recall(told, 0.501) == 11.0
    assert cut_for_recall(told, 0.95) == 19.0
    assert cut_for_recall(told, 0.96) is None
    exact = stats.binomtest(10, 19).proportion_ci(method="exact")
    assert told.recall(10.0) == pytest.approx((10 / 19, exact.low, exact.high))


def test_the_promise_of_a_recall_holds_on_average_over_plantings() -> None:
    reached = []
    for seed in range(150):
        column, *_ = drawn(0.0, 0.0, apart=2.0, rows=50, canaries=40, seed=seed)
        told = Estimates(column, 1e-9, 0.0, np.ones((1, 40), dtype=np.int64), np.array([1e-9]))
        at = cut_for_recall(told, 0.8)
        assert at is not None
        reached.append(stats.norm.cdf(at + 2.0))
    assert np.mean(reached) == pytest.approx(33 / 41, abs=0.015)  # the least k / 41 that is 0.8 or more


def test_the_cut_for_a_share_is_the_last_row_within_it_by_brute_force() -> None:
    rng = np.random.default_rng(5)
    rows = np.round(rng.normal(size=300), 1)  # with ties
    told = told_without_noise(np.round(rng.normal(size=60) - 1.5, 1).tolist(), rows.tolist())
    shares = {t: 1 - 0.2 * 300 * np.mean(told.column.canaries <= t) / np.sum(rows <= t) for t in np.unique(rows)}
    for most in (0.2, 0.5):
        assert cut_for_fine(told, most) == max(t for t, share in shares.items() if share <= most)
    assert cut_for_fine(told_without_noise([5.0] * 20, list(range(10))), 0.05) is None


def test_probabilities_fall_with_the_score_and_are_calibrated() -> None:
    column, scores, is_wrong = drawn(0.2, 1.0, apart=2.5)
    at, value, low, high = estimates({"a": column}, 1.0)["a"].probabilities()
    assert np.all(np.diff(value) <= 1e-12)
    assert np.all((low <= value) & (value <= high))
    of_row = value[np.searchsorted(at, scores)]
    for least, most in ((0.0, 0.1), (0.3, 0.7), (0.9, 1.1)):
        here = (of_row >= least) & (of_row < most)
        assert is_wrong[here].mean() == pytest.approx(of_row[here].mean(), abs=0.1)

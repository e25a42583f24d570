"""The Benjamini-Hochberg rule against SciPy's, and how often a gate trips against draws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from influence_cli.maths.false_discoveries import benjamini_hochberg, chance_of_more


def test_the_rule_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = np.round(np.concatenate([rng.uniform(size=20), rng.uniform(0, 0.03, size=8)]), 2)  # with ties
        assert (benjamini_hochberg(p, 0.1) == (stats.false_discovery_control(p) <= 0.1 + 1e-12)).all()
    assert benjamini_hochberg(np.array([]), 0.1).tolist() == []
    assert not benjamini_hochberg(np.ones(5), 0.1).any()


def test_conformal_p_values_keep_the_rate_of_false_discoveries() -> None:
    """A fifth of 50 rows is bad; the mean share of clean rows among those flagged stays below q."""
    rng = np.random.default_rng(1)
    shares, found = [], 0
    for _ in range(400):
        calibration = np.sort(rng.normal(size=400))
        scores = np.concatenate([rng.normal(size=40), rng.normal(-4, size=10)])
        p = (1 + np.searchsorted(calibration, scores, side="right")) / 401
        flagged = benjamini_hochberg(p, 0.2)
        shares.append(flagged[:40].sum() / max(flagged.sum(), 1))
        found += int(flagged[40:].sum())
    assert 0.1 <= np.mean(shares) <= 0.2
    assert found > 0.85 * 4000


@pytest.mark.parametrize(
    ("allowed", "rows", "calibration", "rate"), [(0, 30, 99, 0.01), (2, 40, 60, 0.1), (5, 300, 852, 0.01)]
)
def test_the_chance_that_clean_rows_trip_is_that_of_a_beta_binomial(
    allowed: int, rows: int, calibration: int, rate: float
) -> None:
    k = int(rate * (calibration + 1) + 1e-9)
    exact = stats.betabinom(rows, k, calibration + 1 - k).sf(allowed)
    assert chance_of_more(allowed, rows, calibration, rate) == pytest.approx(exact, abs=1e-9)
    rng = np.random.default_rng(2)
    tripped = 0
    for _ in range(2000):
        reference, new = np.sort(rng.uniform(size=calibration)), rng.uniform(size=rows)
        p = (1 + np.searchsorted(reference, new, side="right")) / (calibration + 1)
        tripped += int((p <= rate).sum() > allowed)
    assert tripped / 2000 == pytest.approx(exact, abs=0.04)


def test_no_row_can_be_flagged_below_the_least_p_value() -> None:
    assert chance_of_more(0, 10, 5, 0.01) == 0.0

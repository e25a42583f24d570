"""Group gaps (methods.md 3.2, 3.3, T48): values by hand and by loops, slopes by finite differences.

python -m pytest tests/maths/test_fairness_maths.py
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from influence_cli.maths.fairness import (
    AGGREGATES,
    TEMPERATURE,
    demographic_parity,
    equalised_odds,
    group_means,
    mean_gap,
    smooth_gap,
)

RNG = np.random.default_rng(0)


def rates(values: list[float], groups: list[str]) -> dict[str, float]:
    return {g: sum(v for v, h in zip(values, groups, strict=True) if h == g) / groups.count(g) for g in set(groups)}


def public_gap(values: list[float], groups: list[str]) -> float:
    """The public evaluator of Chhabra et al.: the mean over pairs of groups of the absolute difference of rates."""
    mu = rates(values, groups)
    pairs = list(itertools.combinations(sorted(mu), 2))
    return sum(abs(mu[a] - mu[b]) for a, b in pairs) / len(pairs)


def test_hard_gaps_by_hand() -> None:
    """Rates 1/4, 1/2, 1: pairs 1/4, 1/2, 3/4."""
    predicted = np.array([1, 0, 0, 0, 1, 0, 1])
    groups = np.array(["a", "a", "a", "a", "b", "b", "c"])
    assert demographic_parity(np.eye(2)[predicted], groups, hard=True) == pytest.approx(0.5, abs=1e-15)
    assert mean_gap(predicted.astype(float), groups) == pytest.approx(
        public_gap(predicted.tolist(), groups.tolist()), abs=1e-12
    )


@pytest.mark.parametrize("group_count", [2, 3, 5])
def test_pairs_of_hard_labels_is_the_public_evaluator_s_value(group_count: int) -> None:
    groups = RNG.integers(0, group_count, 200)
    predicted = RNG.integers(0, 2, 200)
    counts = np.bincount(groups).astype(float)
    expected = public_gap(predicted.tolist(), groups.astype(str).tolist())
    assert smooth_gap(group_means(predicted.astype(float), groups), counts, tau=0.0)[0] == pytest.approx(
        expected, abs=1e-12
    )
    assert demographic_parity(np.eye(2)[predicted], groups, hard=True) == pytest.approx(expected, abs=1e-12)
    assert demographic_parity(np.eye(2)[predicted], groups) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("group_count", [2, 4])
def test_slopes_are_finite_differences(aggregate: str, group_count: int) -> None:
    means, counts = RNG.uniform(0, 1, group_count), RNG.integers(10, 50, group_count).astype(float)
    _, slope = smooth_gap(means, counts, 0.01, aggregate)
    for k, h in enumerate(np.eye(group_count) * 1e-6):
        up, down = (smooth_gap(means + s * h, counts, 0.01, aggregate)[0] for s in (1, -1))
        assert slope[k] == pytest.approx((up - down) / 2e-6, abs=1e-7)
    assert slope.sum() == pytest.approx(0, abs=1e-12)  # the same shift of all groups changes nothing


def test_two_groups_are_the_smooth_absolute_difference_and_signed_its_factor() -> None:
    means, counts, tau = np.array([0.7, 0.2]), np.array([10.0, 30.0]), 0.1
    value, slope = smooth_gap(means, counts, tau)
    signed, plain = smooth_gap(means, counts, tau, signed=True)
    assert signed == pytest.approx(-0.5, abs=1e-15)
    assert value == pytest.approx(math.sqrt(0.25 + 0.01), abs=1e-15)
    assert np.allclose(slope, plain * (-0.5 / value), atol=1e-15)
    assert smooth_gap(means, counts, tau, "max")[0] == pytest.approx(value, abs=1e-15)


def test_at_parity_the_slope_is_zero_and_far_from_it_tau_does_not_matter() -> None:
    even = np.array([0.3, 0.3, 0.3])
    for aggregate in AGGREGATES:
        value, slope = smooth_gap(even, np.ones(3), 1e-3, aggregate)
        assert value <= 1e-3 + TEMPERATURE * math.log(3)
        assert np.abs(slope).max() < 1e-15
    assert smooth_gap(np.array([0.0, 1.0]), np.ones(2), 1e-3)[0] == pytest.approx(1.0, abs=1e-6)
    assert np.isfinite(smooth_gap(even, np.ones(3), 0.0)[1]).all()


def test_variance_is_that_of_the_group_means_and_max_is_near_the_largest_gap() -> None:
    means, counts = np.array([0.1, 0.4, 0.9]), np.array([5.0, 3.0, 2.0])
    rows = np.repeat(means, counts.astype(int))
    assert smooth_gap(means, counts, aggregate="variance")[0] == pytest.approx(rows.var(), abs=1e-15)
    largest = smooth_gap(means, counts, 1e-6, "max")[0]
    assert 0.8 <= largest <= 0.8 + TEMPERATURE * math.log(3)


def test_signed_needs_two_groups() -> None:
    with pytest.raises(ValueError, match="not 3"):
        smooth_gap(np.zeros(3), np.ones(3), signed=True)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("favourable", [None, 0])
@pytest.mark.parametrize("hard", [False, True])
def test_every_gap_equals_loops_over_groups_and_classes(classes: int, favourable: int | None, hard: bool) -> None:
    n = 300
    probabilities = RNG.dirichlet(np.ones(classes), n)
    labels, groups = RNG.integers(0, classes, n), RNG.choice(["x", "y", "z"], n)
    wanted = [favourable] if favourable is not None else [1] if classes == 2 else list(range(classes))
    given = [[float(c == p.argmax()) if hard else p[c] for c in range(classes)] for p in probabilities]

    def gap(c: int, keep: list[bool]) -> float:
        rows = [k for k in range(n) if keep[k]]
        return public_gap([given[k][c] for k in rows], [str(groups[k]) for k in rows])

    every = [gap(c, [True] * n) for c in wanted]
    inside = [gap(c, [y == c for y in labels]) for c in wanted]
    outside = [gap(c, [y != c for y in labels]) for c in wanted]
    odds = [a + b for a, b in zip(inside, outside, strict=True)]
    worst = [max(a, b) for a, b in zip(inside, outside, strict=True)]
    args = (groups, favourable, hard)
    assert demographic_parity(probabilities, *args) == pytest.approx(np.mean(every), abs=1e-12)
    assert equalised_odds(probabilities, labels, *args) == pytest.approx(np.mean(odds), abs=1e-12)
    assert equalised_odds(probabilities, labels, *args, worst=True) == pytest.approx(np.mean(worst), abs=1e-12)


def test_one_group_has_no_gap() -> None:
    assert math.isnan(demographic_parity(np.eye(2), np.array([0, 0])))

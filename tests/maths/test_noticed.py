"""Slips in formulas that no test had noticed (``python -m tests.hardening.mutants``)."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from influence_cli.data.kinds.image_pixels import in_8_bits
from influence_cli.data.kinds.protocol import BadPayload
from influence_cli.maths import knapsack
from influence_cli.maths.canary_cut import Column, _wilson, cut_for_recall, estimates, recall_of
from influence_cli.maths.draws import effective_draws
from influence_cli.maths.hashed_draws import _mixed
from influence_cli.maths.inverse import spectrum
from influence_cli.maths.langevin import chosen_rows
from influence_cli.maths.outputs_apart import Apart, fit_apart, squared
from influence_cli.maths.ranking import curves
from influence_cli.maths.series_mean import Preconditioner, Rules, default_depth, default_scale
from influence_cli.maths.softmax_regression import descend
from influence_cli.maths.stability import Stability, lowest_rows_stability
from influence_cli.maths.unrolled import gathered
from influence_cli.maths.wrong_count import _count, _halves, _share


@pytest.mark.parametrize(("share", "trials"), [(0.2, 10), (0.0, 5), (1.0, 7), (0.5, 400)])
def test_the_ends_of_wilsons_interval_are_where_the_share_is_1_96_standard_errors_away(
    share: float, trials: int
) -> None:
    for side in (-1, 1):
        end = float(_wilson(np.array(share), trials, side))
        assert (share - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / trials, abs=1e-12)


def test_chains_that_do_not_move_count_in_full() -> None:
    assert effective_draws(np.ones((3, 8))) == 24.0


def test_16_bits_become_the_nearest_8_and_fractions_are_refused() -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = np.asarray(in_8_bits(Image.fromarray(deep)))
    assert found.tolist() == np.rint(deep.astype(float) * 255 / 65535).astype(int).tolist()
    assert np.asarray(in_8_bits(Image.fromarray(np.array([[0.0, 255.0]], np.float32)))).tolist() == [[0, 255]]
    with pytest.raises(BadPayload, match=r"floating-point numbers from 0 to 0\.5, of no"):
        in_8_bits(Image.fromarray(np.array([[0.0, 0.5]], np.float32)))
    assert np.asarray(in_8_bits(Image.fromarray(np.array([[0, 1]], np.int32)))).tolist() == [[0, 1]]


def test_curves_have_as_many_points_as_are_asked_for() -> None:
    suspicion, wrong = np.arange(9.0), np.arange(9) % 2 == 1
    for points, found in ((10, 10), (200, 10)):
        roc = curves(suspicion, wrong, points)["roc"]
        assert {len(values) for values in roc.values()} == {found}
    assert len(curves(suspicion, wrong, 9)["roc"]["true_positive_rate"]) <= 9


def test_a_share_of_rows_is_as_many_as_it_says_whatever_its_rounding() -> None:
    assert 0.29 * 100 < 29  # as a float
    members = np.full((4, 100), 50.0)
    members[:, :29] = np.random.default_rng(0).normal(size=(4, 29))  # the lowest 29, in no order among themselves
    assert lowest_rows_stability(members, 0.29) == Stability(1.0, 1.0)
    assert lowest_rows_stability(members, 0.28).lower < 1.0


def test_what_is_gathered_falls_off_by_half_of_the_way_where_little_is_bent() -> None:
    for x in (4e-13, 1e-9, 1e-3, 0.7):
        exact = -math.expm1(-2 * x) / x
        assert float(gathered(np.array([x]), 2.0)[0]) == pytest.approx(exact, rel=1e-15, abs=0)


def test_rows_are_halved_from_a_hundred_target_rows_on() -> None:
    p = np.stack([np.linspace(0.5, 1.0, 100), np.linspace(0.5, 0.0, 100)], axis=1)
    assert [int(half.sum()) for half in _halves(p, p)] == [50, 50]
    assert [int(half.sum()) for half in _halves(p, p[:99])] == [0, 0]


def test_losses_apart_stop_where_the_gradient_is_as_small_as_is_aimed_at() -> None:
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [0.0]])
    found = fit_apart(Apart(x, y, np.ones(2), squared, 0.1))
    assert (found.theta.tolist(), found.gradient_norm, found.steps) == ([[0.0]], 0.0, 0)


def test_the_scale_of_weights_does_not_change_a_count_of_wrong_labels() -> None:
    rng = np.random.default_rng(0)
    rows, drawn = np.array([[[6.0, 2.4], [4.0, 2.8]]]), rng.integers(0, 3, (1, 8)).astype(float)
    of_half, right, wrong = np.arange(8) % 2, rng.uniform(0.0, 0.3, 8), rng.uniform(0.6, 1.0, 8)
    weights = rng.uniform(0.5, 1.5, 8)
    found = _count(rows, drawn, weights, of_half, right, wrong)
    assert _count(rows, drawn, 1e-9 * weights, of_half, right, wrong) == pytest.approx(found, rel=1e-12)
    assert 0.0 < found[0] < 10.0


def test_a_share_lies_between_none_and_all() -> None:
    mean, right, wrong = np.array([0.9, 0.05, 0.3, 0.3]), np.full(4, 0.1), np.array([0.5, 0.5, 0.5, 0.05])
    assert _share(mean, right, wrong).round(12).tolist() == [1.0, 0.0, 0.5, 0.0]


def test_a_step_that_goes_too_far_is_halved_until_it_goes_down() -> None:
    def value_at(theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        return float(np.sqrt(1 + theta @ theta)), theta / np.sqrt(1 + theta @ theta), theta

    start = np.array([2.0])
    value, gradient, _ = value_at(start)
    direction = -start * (1 + start @ start)  # Newton's, which lands at -8
    found = descend(value_at, start, value, direction, float(gradient @ direction))
    assert found is not None
    assert found[1] < value
    assert found[0].tolist() == [-0.5]  # a quarter of it


def test_ridge_regression_is_exact_after_one_step() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 2))
    found = fit_apart(Apart(x, y, np.ones(30), squared, 0.5))
    exact = np.linalg.solve(x.T @ x / 30 + 0.5 * np.eye(3), x.T @ y / 30).T
    assert found.theta == pytest.approx(exact, abs=1e-12)
    assert found.steps == 1


@pytest.mark.parametrize("seed", range(6))
def test_rows_are_found_within_bounds_even_where_few_are_solved_exactly_at_first(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knapsack, "CORE", 1)
    rng = np.random.default_rng(seed)
    gain, others = rng.normal(size=8), rng.normal(size=(2, 8))
    least = others[:, :4].sum(axis=1) - 0.3
    found = knapsack.choose(gain, others, least, [], 5)
    every = [np.array(bits, bool) for bits in itertools.product((0, 1), repeat=8) if sum(bits) <= 5]
    allowed = [float(gain[taken].sum()) for taken in every if (others @ taken >= least - 1e-12).all()]
    assert allowed
    assert found is not None
    assert (others @ found.taken >= least - 1e-9).all()
    assert found.bound >= max(allowed) - 1e-9


def test_series_through_a_preconditioner_are_those_of_its_products() -> None:
    a, inverse = np.diag([1.0, 3.0]), np.diag([0.5, 0.25])
    m = Preconditioner(apply=lambda v: inverse @ v, shift=0.2, floor=0.1, slowest=0.4, condition=4.0)
    seen: list[tuple[int, int, float]] = []

    def product(run: int, step: int, v: np.ndarray, shift: float) -> np.ndarray:
        seen.append((run, step, shift))
        return a @ v + shift * v

    v = np.array([[1.0], [2.0]])
    found = m.through(product)(3, 7, v, 0.1)
    assert found == pytest.approx((a + 0.2 * np.eye(2)) @ inverse @ v)
    assert m.through(product)(3, 7, v, 0.5) == pytest.approx(found + 0.4 * v)
    assert seen[0] == (3, 7, 0.2)
    rules = Rules(
        rows=100, batch=10, l2=0.3, damping=0.1, dampen=0.0, scale=None, depth=None, repeats=2, tail=0.5, seed=0
    )
    plain, through = rules.series(5.0, 0.1), replace(rules, l2=0.0, m=m).series(5.0, 0.1)
    assert (plain.shift, plain.slack, plain.repeats) == (pytest.approx(0.4), 1.0, 2)
    assert (through.shift, through.slack) == (0.1, 2.0)
    assert plain.depth == through.depth == default_depth(100, 10, 5.0, 0.4)
    assert rules.result(v) is v
    assert replace(rules, m=m).result(v).tolist() == (inverse @ v).tolist()
    assert rules.product(product) is product
    assert default_scale(lambda run, step, v, shift: (2.0 + shift) * v, np.ones(3), 0.5, 0.5, 0.0) == pytest.approx(3.3)


def test_a_spectrum_has_both_ends_and_what_is_inverted_its_condition() -> None:
    found = spectrum(np.array([1.0, 2.0, 5.0]), np.array([1.0, -4.0, 2.0]))
    assert found == {"smallest_eigenvalue": 1.0, "largest_eigenvalue": 5.0, "condition_number": 4.0}
    assert spectrum(np.array([0.0, 1.0]), np.array([0.0, 1.0]))["condition_number"] is None


def test_draws_are_those_that_they_have_always_been() -> None:
    assert chosen_rows("s", 3, 1000, 5).tolist() == [117, 336, 333, 840, 919]  # type: ignore[union-attr]
    assert chosen_rows("s", 3, 5, 5) is None
    golden = np.array([0x9E3779B97F4A7C15], np.uint64)
    assert int(_mixed(golden)[0]) == 0xE220A8397B1DCDAF  # the first number of SplitMix64 with seed 0


def test_the_cut_for_a_recall_is_the_first_canary_at_which_it_is_expected() -> None:
    rows, canaries = np.arange(40.0), np.array([1.5, 3.5, 8.5, 20.5])
    told = estimates({"s": Column(canaries, rows)}, 0.5)["s"]
    told = replace(told, wrong=0.2)
    shares = [(k + 1) / 5 for k in range(4)]
    taken = [2 / 40, 4 / 40, 9 / 40, 21 / 40]
    recalls = [float(recall_of(np.array(f), np.array(t), 0.2, 0.5)) for f, t in zip(shares, taken, strict=True)]
    assert recalls == sorted(recalls)
    for k in range(4):
        assert cut_for_recall(told, recalls[k]) == canaries[k]
    assert cut_for_recall(told, recalls[3] + 1e-6) is None

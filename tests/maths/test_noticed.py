"""Slips in formulas that no test had noticed (``python -m tests.hardening.mutants``)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from influence_cli.data.kinds.image_pixels import in_8_bits
from influence_cli.data.kinds.protocol import BadPayload
from influence_cli.maths.canary_cut import _wilson
from influence_cli.maths.draws import effective_draws
from influence_cli.maths.outputs_apart import Apart, fit_apart, squared
from influence_cli.maths.ranking import curves
from influence_cli.maths.stability import Stability, lowest_rows_stability
from influence_cli.maths.unrolled import gathered
from influence_cli.maths.wrong_count import _halves


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
    for x in (9e-13, 1e-9, 1e-3, 0.7):
        exact = -math.expm1(-2 * x) / x
        assert float(gathered(np.array([x]), 2.0)[0]) == pytest.approx(exact, rel=1e-15)


def test_rows_are_halved_from_a_hundred_target_rows_on() -> None:
    p = np.stack([np.linspace(0.5, 1.0, 100), np.linspace(0.5, 0.0, 100)], axis=1)
    assert [int(half.sum()) for half in _halves(p, p)] == [50, 50]
    assert [int(half.sum()) for half in _halves(p, p[:99])] == [0, 0]


def test_losses_apart_stop_where_the_gradient_is_as_small_as_is_aimed_at() -> None:
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [0.0]])
    found = fit_apart(Apart(x, y, np.ones(2), squared, 0.1))
    assert (found.theta.tolist(), found.gradient_norm, found.steps) == ([[0.0]], 0.0, 0)

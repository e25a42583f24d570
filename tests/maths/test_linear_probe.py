"""Linear probes against dense least squares: the optimum, sums of folds, held-out errors, and the likeliest scale.

python -m pytest tests/maths/test_linear_probe.py
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from influence_cli.maths import corrected_probe, linear_probe
from influence_cli.maths.labels import cross_entropy
from influence_cli.maths.linear_probe import Examples, likeliest_scale, predicted, scaled, squared_errors, sums

RNG = np.random.default_rng(0)
N, D, M = 60, 7, 3
F = (RNG.normal(size=(N, D)) * RNG.uniform(0.1, 30, D) + RNG.normal(size=D) * 100).astype(np.float32)
Y = RNG.normal(size=(N, M))
W = RNG.choice([0.0, 0.5, 1.0, 3.0], N)


def by_least_squares(f: np.ndarray, y: np.ndarray, w: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and intercept, from a least-squares problem with a row for each coefficient's penalty."""
    root = np.sqrt(w)[:, None]
    x = np.hstack([f, np.ones((len(f), 1))]) * root
    penalty = np.hstack([np.sqrt(strength * w.sum()) * np.eye(f.shape[1]), np.zeros((f.shape[1], 1))])
    stacked = np.vstack([y * root, np.zeros((f.shape[1], y.shape[1]))])
    theta = np.linalg.lstsq(np.vstack([x, penalty]), stacked, rcond=None)[0]
    return theta[:-1], theta[-1]


@pytest.fixture(params=[4096, 13])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "BLOCK", request.param)


def standardised() -> np.ndarray:
    f = F.astype(np.float64)
    return (f - f.mean(axis=0)) / f.std(axis=0)


@pytest.mark.parametrize("strength", [1e-3, 0.3, 10.0])
def test_a_probe_is_the_weighted_ridge_regression(blocks: None, strength: float) -> None:
    scale = scaled(F)
    probe = sums(Examples(F, Y, W), scale).solved(strength)
    inner, intercept = by_least_squares(standardised(), Y, W, strength)
    np.testing.assert_allclose(probe[:-1], inner, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(probe[-1], intercept, rtol=1e-8, atol=1e-12)
    (given,) = predicted(F, [probe], scale)
    np.testing.assert_allclose(given, standardised() @ inner + intercept, rtol=1e-7, atol=1e-10)


def test_a_fit_without_some_rows_is_a_difference_of_sums(blocks: None) -> None:
    scale, out = scaled(F), np.arange(N) < 20
    less = sums(Examples(F, Y, W), scale) - sums(Examples(F[out], Y[out], W[out]), scale)
    inner, intercept = by_least_squares(standardised()[~out], Y[~out], W[~out], 0.1)
    np.testing.assert_allclose(less.solved(0.1), np.vstack([inner, intercept]), rtol=1e-8, atol=1e-11)
    errors = squared_errors(Examples(F[out], Y[out], W[out]), less, scale, [0.1, 5.0])
    residuals = Y[out] - standardised()[out] @ inner - intercept
    assert errors[0] == pytest.approx((W[out] * (residuals**2).sum(axis=1)).sum(), rel=1e-8)
    assert errors[1] != pytest.approx(errors[0], rel=1e-3)


def test_more_features_than_rows_and_constant_ones_have_a_probe() -> None:
    f = np.hstack([F[:4], np.full((4, 2), 7.0, np.float32)])
    probe = sums(Examples(f, Y[:4], np.ones(4)), scaled(f)).solved(0.5)
    assert np.isfinite(probe).all()
    np.testing.assert_array_equal(probe[D : D + 2], 0.0)


@pytest.mark.parametrize("of", [lambda f: scaled(f).of(f), lambda f: corrected_probe.standardised(f, f)])
def test_a_constant_with_rounding_is_no_feature(of: Callable[[np.ndarray], np.ndarray]) -> None:
    f = F.copy()
    f[:, 0] = np.float32(7.3)
    f[::5, 0] = np.nextafter(np.float32(7.3), np.float32(8.0))  # as another batch adds it up
    f[:, 1] *= np.float32(1e-5)
    assert np.abs(of(f)[:, 0]).max() < 1e-5
    assert of(f)[:, 1].std() == pytest.approx(1.0)


def test_the_scale_is_the_likeliest() -> None:
    labels = RNG.integers(0, M, N)
    values = Y + 0.6 * (labels[:, None] == np.arange(M))

    def loss(log_beta: float) -> float:
        return float(W @ cross_entropy(np.exp(log_beta) * values, labels))

    best = minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded", options={"xatol": 1e-9})
    assert likeliest_scale(values, labels, W) == pytest.approx(np.exp(best.x), rel=1e-5)
    assert likeliest_scale(-values * 100, labels, W) == 0.01  # values that speak against the labels
    assert likeliest_scale(np.eye(M)[labels], labels, W) == 1e4  # values that are never wrong

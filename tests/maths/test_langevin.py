"""The sampler and its moments: T39, T42, T43, T44 and T46 of methods.md, on quadratics whose law is known.

python -m pytest tests/maths/test_langevin.py
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from influence_cli.maths.draws import CoMoments, effective_draws, split_rhat
from influence_cli.maths.langevin import (
    STABLE,
    ChainState,
    Gradient,
    Law,
    advanced,
    burn_in_of,
    chosen_rows,
    largest_step,
    nbeta_near,
    noise,
    noise_share,
)
from influence_cli.methods.bif import BIF
from influence_cli.stages.grads.chain_law import DAMPING, SHARE

EIGENVALUES = torch.tensor([0.3, 0.5, 0.8, 1.0], dtype=torch.float64)


def quadratic(w: torch.Tensor, step: int) -> tuple[float, torch.Tensor]:
    """L = 1/2 sum_k h_k w_k^2 in many independent chains at once [K, d]."""
    return float((0.5 * EIGENVALUES * w.square()).sum(1).mean()), EIGENVALUES * w


def drawn(law: Law, steps: int, chains: int = 4000, gradient: Gradient = quadratic, kept: int = 1) -> torch.Tensor:
    """Where independent chains are after so many steps, and after a tenth of that more, ``kept`` times."""
    state, found = ChainState(0, torch.zeros(chains, len(EIGENVALUES), dtype=torch.float64)), []
    for step in range(steps + (kept - 1) * (steps // 10)):
        state, _ = advanced(state, law, gradient, torch.zeros(len(EIGENVALUES), dtype=torch.float64), "test")
        if step + 1 >= steps and (step + 1 - steps) % max(1, steps // 10) == 0:
            found.append(state.w)
    return torch.cat(found)


def moments_of(losses: np.ndarray, phi: np.ndarray) -> CoMoments:
    seen = CoMoments.none(losses.shape[1], phi.shape[1])
    for row, value in zip(losses, phi, strict=True):
        seen = seen.with_draw(row, value)
    return seen


def test_t39_streamed_moments_are_those_of_two_passes() -> None:
    rng = np.random.default_rng(0)
    losses = 1e6 + rng.normal(size=(300, 7))  # far from 0: sums of squares would lose all digits
    phi = -1e5 + rng.normal(size=(300, 2)) + losses[:, :1] - 1e6
    seen = moments_of(losses, phi)
    off, of = losses - losses.mean(0), phi - phi.mean(0)
    np.testing.assert_allclose(seen.mean, losses.mean(0), rtol=1e-14)
    squares, of_phi = (off**2).sum(0), (of**2).sum(0)
    np.testing.assert_allclose(seen.squares, squares, rtol=1e-12)
    assert np.abs((seen.products - of.T @ off) / np.sqrt(np.outer(of_phi, squares))).max() < 1e-12


def test_t42_covariances_of_exact_draws_are_damped_influence() -> None:
    """l_i = g_i.w + 1/2 w H w, Phi = q.w, drawn from N(0, (nbeta H + gamma)^-1): nbeta Cov is q (H + delta)^-1 g_i."""
    rng = np.random.default_rng(3)
    h, nbeta, delta = np.array([0.02, 0.1, 0.4, 1.0, 3.0]), 50.0, 0.05
    g, q = rng.normal(size=(40, 5)), rng.normal(size=5)
    expected = (g / (h + delta)) @ q
    for draws, tolerance in ((1_000, 0.1), (100_000, 0.02)):
        w = rng.normal(size=(draws, 5)) / np.sqrt(nbeta * (h + delta))
        losses = w @ g.T + 0.5 * (w**2 @ h)[:, None]
        if draws == 1_000:
            found = nbeta * moments_of(losses, (w @ q)[:, None]).products[0] / (draws - 1)
        else:  # the same, in one piece
            found = nbeta * np.cov(losses.T, w @ q)[-1, :-1]
        assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("share", [0.1, 0.72, 2.88])
def test_t43_the_discrete_chain_has_the_covariance_that_theory_says(share: float) -> None:
    """(A - eps A^2 / 4)^-1 and not A^-1, A = nbeta H + gamma; 4,000 independent chains are as many draws."""
    nbeta, gamma = 20.0, 4.0
    a = nbeta * EIGENVALUES + gamma
    law = Law(nbeta, gamma, share / float(a.max()))
    w = drawn(law, int(60 / share) + 20, 3000, kept=10)
    expected = 1.0 / (a - law.step * a**2 / 4)
    assert float((w.var(0) / expected - 1).abs().max()) < 0.05
    if share == 2.88:
        assert float((w.var(0) * a)[-1]) > 3.0  # 178 % too much along the steepest direction
    covariance = torch.cov(w.T) - torch.diag(w.var(0))
    assert float(covariance.abs().max()) < 0.05 * float(expected.max())


def test_t43_a_frozen_preconditioner_leaves_the_law() -> None:
    nbeta, gamma = 20.0, 4.0
    a = nbeta * EIGENVALUES + gamma
    law = Law(nbeta, gamma, 0.03 / float(a.max()), preconditioned=True, burn_in=50)
    w = drawn(law, 400, 1500, kept=10)
    assert float((w.var(0) * a - 1).abs().max()) < 0.08  # of which 0.03 is the step's own


def test_t43_chains_diverge_from_the_stated_step_on() -> None:
    a = float((20.0 * EIGENVALUES + 4.0).max())
    assert float(drawn(Law(20.0, 4.0, 0.99 * STABLE / a), 300, 50).abs().max()) < 1e3
    assert float(drawn(Law(20.0, 4.0, 1.05 * STABLE / a), 300, 50).abs().max()) > 1e6


def test_t44_minibatches_inflate_the_covariance_as_predicted() -> None:
    """rho = eps nbeta^2 lambda_max(C) (1 - b/n) / (4 b), for gradients of equal noise in all directions."""
    rows, size, nbeta, gamma = 40, 8, 20.0, 4.0
    rng = np.random.default_rng(0)
    shift = rng.normal(size=(rows, 4))
    shift -= shift.mean(0)
    shift = shift @ np.linalg.inv(np.linalg.cholesky(np.cov(shift.T, bias=True))).T  # C is the identity
    shifts = torch.from_numpy(shift)
    a = 20.0 * EIGENVALUES + 4.0
    generator = torch.Generator().manual_seed(0)

    def noisy(w: torch.Tensor, at: int) -> tuple[float, torch.Tensor]:
        chosen = torch.rand(len(w), rows, generator=generator).argsort(1)[:, :size]
        return 0.0, EIGENVALUES * w + shifts[chosen].mean(1)

    for times in (0.4, 0.04):
        law = Law(nbeta, gamma, times / float(a.max()))
        rho = noise_share(law.step, nbeta, rows / (rows - 1), size, rows)
        w = drawn(law, 60 if times == 0.4 else 400, 500, noisy, kept=8)
        plain = 1.0 / (a - law.step * a**2 / 4)
        inflation = float(w.var(0).sum() / plain.sum()) - 1
        # direction by direction the covariance is inflated by eps nbeta^2 s / (4 - eps a), s the noise there
        predicted = law.step * nbeta**2 * rows / (rows - 1) * (1 - size / rows) / size / (4 - law.step * a)
        assert inflation == pytest.approx(float((predicted * plain).sum() / plain.sum()), rel=0.1, abs=0.03)
        assert rho == pytest.approx(float(predicted.mean()), rel=0.15)


def test_a_step_is_chosen_by_curvature_or_by_noise() -> None:
    assert largest_step(10.0, 5.0, 0.0, 8, 8, 0.1) == 0.01
    step = largest_step(10.0, 50.0, 3.0, 8, 80, 0.1)
    assert step < 0.01
    assert noise_share(step, 50.0, 3.0, 8, 80) == pytest.approx(0.1)
    assert burn_in_of(0.01, 1.0) == (1000, 1000.0)


def test_chains_by_the_default_rule_forget_where_they_were_in_any_direction() -> None:
    """Eigenvalues from 1 to none at all: the default chains are worth 100 draws, and have the law's own spread."""
    h, largest = torch.tensor([1.0, 0.1, 0.01, 0.0], dtype=torch.float64), 1.0
    nbeta, damping = 20.0, DAMPING * largest
    gamma = nbeta * damping
    step = largest_step(nbeta * largest + gamma, nbeta, 0.0, 8, 8, SHARE)
    burn_in, wanted = burn_in_of(step, gamma)
    assert burn_in == math.ceil(wanted) == 420
    law, method, centre = Law(nbeta, gamma, step, burn_in=burn_in), BIF(), torch.zeros(4, dtype=torch.float64)
    state, drawn_at = ChainState(0, torch.zeros(method.chains, 4, dtype=torch.float64)), []
    for t in range(1, burn_in + method.draws * method.thin + 1):
        state, _ = advanced(state, law, lambda w, _: (0.0, h * w), centre, "test")
        if t > burn_in and (t - burn_in) % method.thin == 0:
            drawn_at.append(state.w)
    draws = torch.stack(drawn_at).numpy()  # [T, C, d]
    for k in range(4):
        assert split_rhat(draws[..., k].T) < 1.1
        assert effective_draws(draws[..., k].T) > 80  # about 95 in the flat direction
    spread = draws.var(axis=(0, 1))
    a = nbeta * h.numpy() + gamma
    np.testing.assert_allclose(spread, 1 / (a - step * a**2 / 4), rtol=0.35)
    assert spread[0] * a[0] == pytest.approx(1.14, abs=0.12)


def test_nbeta_is_what_keeps_the_loss_near() -> None:
    assert nbeta_near(1000, 10.0, 1.0, 0.05) == (1000 / math.log(1000), 10.0 / (2 * 1000 / math.log(1000)))
    nbeta, rise = nbeta_near(1000, 100.0, 0.2, 0.05)
    assert (nbeta, rise) == (pytest.approx(5000), pytest.approx(0.01))
    assert nbeta_near(1000, 10.0, 1.0, 0.05, most=110.0)[0] == 110.0  # minibatches are too noisy for more
    assert nbeta_near(1000, 10.0, 1.0, 0.05, most=50.0)[0] == pytest.approx(100.0)  # the step is smaller then
    assert nbeta_near(1000, 10.0, 0.0, 0.05)[0] == 1000 / math.log(1000)


def test_t46_chains_differ_and_are_the_same_again() -> None:
    like = torch.zeros(5, dtype=torch.float64)
    assert torch.equal(noise("bif:0:0", 7, like), noise("bif:0:0", 7, like))
    draws = [noise(s, t, like) for s in ("bif:0:0", "bif:0:1", "bif:1:0") for t in (7, 8)]
    assert all(not torch.equal(a, b) for k, a in enumerate(draws) for b in draws[:k])
    batches = [chosen_rows(s, t, 100, 10) for s in ("bif:0:0", "bif:0:1") for t in (7, 8)]
    assert all(len(set(b.tolist())) == 10 for b in batches if b is not None)
    assert len({tuple(sorted(b.tolist())) for b in batches if b is not None}) == 4
    assert chosen_rows("bif:0:0", 7, 10, 10) is None


def test_t46_token_losses_sum_to_that_of_the_sequence() -> None:
    rng = np.random.default_rng(1)
    tokens, phi = rng.normal(size=(50, 3, 4)), rng.normal(size=(50, 2))
    by_token = moments_of(tokens.reshape(50, 12), phi)
    whole = moments_of(tokens.sum(2), phi.sum(1, keepdims=True))
    np.testing.assert_allclose(by_token.products.sum(0).reshape(3, 4).sum(1), whole.products[0], atol=1e-10)


def test_diagnostics_tell_chains_that_disagree() -> None:
    rng = np.random.default_rng(0)
    good = rng.normal(size=(4, 400))
    assert split_rhat(good) < 1.02
    assert split_rhat(good + np.arange(4)[:, None]) > 1.5
    trend = good + np.linspace(0, 5, 400)
    assert split_rhat(trend) > 1.3
    slow = np.zeros((4, 2000))
    for t in range(1, 2000):  # autocorrelation 0.9: 1.9 / 0.1 draws are worth one
        slow[:, t] = 0.9 * slow[:, t - 1] + rng.normal(size=4)
    assert effective_draws(slow) == pytest.approx(8000 / 19, rel=0.35)
    assert effective_draws(good) == pytest.approx(1600, rel=0.2)

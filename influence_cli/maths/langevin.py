"""Stochastic gradient Langevin dynamics around a point, and what its step does to the law that it draws from.

The law is  p(w) ~ exp(-nbeta L(w) - (gamma/2) |w - w*|^2);  with a minibatch estimate g of grad L, a step is

    w <- w - (eps/2) Pi [nbeta g + gamma (w - w*)] + sqrt(eps Pi) xi,    xi ~ N(0, I)

(Welling and Teh 2011) with Pi = 1, or  Pi = 1 / (sqrt(V / (1 - alpha^t)) + eps0),  V a running mean of g^2 (Li et al.,
arXiv:1512.07666, without the drift of Pi itself).  V is frozen after the burn-in: then the law is the same with any
fixed Pi, and only the way to it differs.  The randomness of a step is a function of (seed, chain, step) alone, so
that a chain goes on anywhere as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.maths.hashed_draws import stream_key

ALPHA, EPS0 = 0.99, 0.1  # of the preconditioner
STABLE = 4.0  # eps times the largest eigenvalue, from which the chain diverges on a quadratic

Gradient = Callable[[Tensor, int], tuple[float, Tensor]]  # parameters and step to the loss of a batch and its gradient


@dataclass(frozen=True)
class Law:
    """What is drawn from, and by which steps."""

    nbeta: float
    gamma: float
    step: float  # eps
    preconditioned: bool = False
    burn_in: int = 0

    @property
    def largest_scale(self) -> float:
        """The largest that Pi can be."""
        return 1.0 / EPS0 if self.preconditioned else 1.0


@dataclass(frozen=True)
class ChainState:
    """Where a chain is after ``step`` steps; no tensor of it is ever changed in place."""

    step: int
    w: Tensor
    v: Tensor | None = None


def advanced(state: ChainState, law: Law, gradient: Gradient, centre: Tensor, stream: str) -> tuple[ChainState, float]:
    """The state a step later, and the loss of the step's batch; ``stream`` names the chain's randomness."""
    loss, g = gradient(state.w, state.step)
    scale, v = None, state.v
    if law.preconditioned:
        v = torch.zeros_like(g) if v is None else v
        if state.step < law.burn_in or law.burn_in == 0:
            v = ALPHA * v + (1.0 - ALPHA) * g.square()
        seen = min(state.step + 1, law.burn_in) if law.burn_in else state.step + 1
        scale = 1.0 / ((v / (1.0 - ALPHA**seen)).sqrt() + EPS0)
    drift = law.nbeta * g + law.gamma * (state.w - centre)
    xi = noise(stream, state.step, state.w)
    if scale is None:
        w = state.w - (0.5 * law.step) * drift + math.sqrt(law.step) * xi
    else:
        w = state.w - (0.5 * law.step) * scale * drift + math.sqrt(law.step) * scale.sqrt() * xi
    return replace(state, step=state.step + 1, w=w, v=v), loss


def noise(stream: str, step: int, like: Tensor) -> Tensor:
    """Independent normal draws of the shape of ``like``, the same on every device."""
    generator = torch.Generator().manual_seed(stream_key(f"{stream}:{step}".encode(), "chain") >> 1)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def chosen_rows(stream: str, step: int, rows: int, size: int) -> NDArray[np.int64] | None:
    """The rows of a step's minibatch, drawn without replacement; None: all of them."""
    if size >= rows:
        return None
    draws = np.random.default_rng(stream_key(f"{stream}:{step}".encode(), "batch"))
    return draws.choice(rows, size, replace=False, shuffle=False)


def noise_share(step: float, nbeta: float, largest_noise: float, batch: int, rows: int) -> float:
    """Rho = eps nbeta^2 lambda_max(C) (1 - b/n) / (4 b), C the covariance of rows' gradients.

    The trace of the draws' covariance is inflated by about as much of itself.
    """
    return step * nbeta**2 * largest_noise * (1.0 - batch / rows) / (4.0 * batch)


def largest_step(
    curvature: float, nbeta: float, largest_noise: float, batch: int, rows: int, share: float, noise: float = 0.1
) -> float:
    """The step at which eps lambda_max(A) is ``share``, or a smaller one at which rho is no more than ``noise``.

    >>> largest_step(10.0, 5.0, 0.0, 8, 8, 0.1), round(largest_step(10.0, 5.0, 80.0, 1, 100, 0.1), 6)
    (0.01, 0.000202)
    """
    rho = noise_share(1.0, nbeta, largest_noise, batch, rows)
    return share / curvature if rho <= 0 else min(share / curvature, noise / rho)


def nbeta_near(
    rows: float, spread: float, start_loss: float, rise: float, most: float = math.inf
) -> tuple[float, float]:
    """Choose nbeta: n / ln n, less where minibatches allow only ``most``; and by how much the loss of draws rises then.

    On a quadratic the loss rises by d_eff / (2 nbeta), d_eff = sum_k h_k / (h_k + delta) <= tr H / delta, ``spread``.
    Where that bound is above ``rise`` of the loss to begin with, nbeta is what brings it there.

    >>> [round(v, 6) for v in nbeta_near(1000.0, 10.0, 1.0, 0.1)], nbeta_near(1000.0, 100.0, 1.0, 0.1, 50.0)
    ([144.764827, 0.034539], (500.0, 0.1))
    >>> nbeta_near(1000.0, 10.0, 1.0, 0.1, 60.0)
    (60.0, 0.08333333333333333)
    """
    usual = min(rows / math.log(rows) if rows > math.e else rows, most)
    least = spread / (2.0 * rise * start_loss) if start_loss > 0 else 0.0
    nbeta = max(usual, least)
    return nbeta, spread / (2.0 * nbeta)


def burn_in_of(step: float, gamma: float, least: int = 200, most: int = 2000) -> tuple[int, float]:
    """Steps to leave out at the beginning of a chain, and how many there should be: 10 / (eps gamma), at least 200.

    >>> burn_in_of(0.1, 1.0), burn_in_of(1e-3, 1.0), burn_in_of(0.1, 0.0)
    ((200, 200.0), (2000, 10000.0), (2000, inf))
    """
    wanted = max(float(least), 10.0 / (step * gamma)) if step * gamma > 0 else math.inf
    return int(min(most, math.ceil(min(wanted, most)))), wanted

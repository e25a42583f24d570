"""IP Ensemble in expectation (methods.md T29): a linear model with squared error, over 20,000 masks.

With predictions x.w and l_i = 1/2 (x_i.w - y_i)^2 the score of row i at w is mean_v (x_i.x_v) r_i(w) r_v(w), which is
quadratic in w: over masks of rate p, scaled so that their mean is theta, its mean is the value at theta plus
sum_j x_ij x_vj theta_j^2 p / (1 - p) in the place of r_i r_v.

python -m pytest tests/methods/test_dropped_mean.py
"""

from __future__ import annotations

import numpy as np
import torch

from influence_cli.maths.hashed_draws import drop


def test_t29_the_mean_over_masks_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    (x, xv), theta, rate, members = (rng.normal(size=(n, 6)) for n in (60, 9)), rng.normal(size=6), 0.3, 20_000
    y, yv = (of @ rng.normal(size=6) + rng.normal(size=len(of)) for of in (x, xv))
    plain = torch.from_numpy(theta)
    w = torch.stack([drop("w", plain, 0, k, rate, True) for k in range(members)]).numpy()
    r, rv = w @ x.T - y, w @ xv.T - yv  # [K, n], [K, m]
    scores = np.einsum("kv,iv->ki", rv, x @ xv.T) * r / len(xv)
    spread = np.einsum("ij,vj,j->iv", x, xv, theta**2 * rate / (1 - rate))
    closed = ((x @ xv.T) * (np.outer(x @ theta - y, xv @ theta - yv) + spread)).mean(1)
    error = (scores.mean(0) - closed) / (scores.std(0, ddof=1) / members**0.5)
    assert np.abs(error).max() < 4.0
    at_theta = ((x @ xv.T) * np.outer(x @ theta - y, xv @ theta - yv)).mean(1)
    assert np.abs((at_theta - closed) / (scores.std(0, ddof=1) / members**0.5)).max() > 10.0  # the check can tell

"""Linear models whose outputs have losses of their own, with an L2 penalty, to the optimum: float64, Newton steps.

    R(theta) = sum_i w_i sum_c phi(theta_c x_i, y_ic) / sum_i w_i + (decay / 2) |theta|^2

theta [C, d] holds a row an output; a bias is a column of ones in x, penalised as every other parameter is.  With phi
convex and decay > 0 R is strictly convex, and falls apart into one problem an output.  Of squared error one step is
exact: it is ridge regression, scikit-learn's ``Ridge(alpha)`` with decay = alpha / n but for its free intercept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.softmax_regression import AIM, STEPS, TOLERANCE, Fit, descend

Floats = NDArray[np.float64]
Parts = Callable[[Floats, Floats], tuple[Floats, Floats, Floats]]  # z, y [n] to losses, slopes and curvatures [n]


def squared(z: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """Half the squared error, its slope and curvature."""
    r = z - y
    return 0.5 * r * r, r, np.ones_like(r)


def huber(delta: float) -> Parts:
    """Huber's loss: squared up to an error of ``delta``, linear beyond."""

    def parts(z: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
        r = z - y
        size = np.abs(r)
        near = size <= delta
        value = np.where(near, 0.5 * r * r, delta * (size - 0.5 * delta))
        return value, np.clip(r, -delta, delta), near.astype(np.float64)

    return parts


def logistic(z: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """Binary cross-entropy of labels 0 and 1 with logits z."""
    signs = 2.0 * y - 1.0
    m = signs * z
    wrong = np.exp(-np.logaddexp(0.0, m))  # the probability of the other label
    return np.logaddexp(0.0, -m), -signs * wrong, wrong * (1.0 - wrong)


@dataclass(frozen=True, eq=False)
class Apart:
    """Inputs x [n, d], labels y [n, C], weights w [n], the loss of an output, and the penalty."""

    x: Floats
    y: Floats
    w: Floats
    parts: Parts
    decay: float

    def value(self, theta: Floats, c: int) -> tuple[float, Floats, Floats]:
        """R of output c at theta [d], its gradient [d] and the weighted curvatures [n]."""
        share = self.w / self.w.sum()
        loss, slope, bend = self.parts(self.x @ theta, self.y[:, c])
        r = float(share @ loss) + 0.5 * self.decay * float(theta @ theta)
        return r, self.x.T @ (share * slope) + self.decay * theta, share * bend


def fit_apart(problem: Apart, start: Floats | None = None) -> Fit:
    """The optimum theta [C, d], output by output; the steps are those of the output that took most.

    >>> x, y = np.array([[1.0, 1.0], [2.0, 1.0], [4.0, 1.0]]), np.array([[1.0], [3.0], [7.0]])
    >>> best = fit_apart(Apart(x, y, np.ones(3), squared, 1e-12))
    >>> best.theta.round(6).tolist(), best.converged
    ([[2.0, -1.0]], True)
    """
    count, d = problem.y.shape[1], problem.x.shape[1]
    theta = np.zeros((count, d)) if start is None else start.copy()
    norms, steps = np.zeros(count), 0
    for c in range(count):
        theta[c], norms[c], taken = _one(problem, theta[c], c)
        steps = max(steps, taken)
    return Fit(theta, float(np.sqrt((norms**2).sum())), steps)


def _one(problem: Apart, theta: Floats, c: int) -> tuple[Floats, float, int]:
    """The optimum of one output, the norm of the gradient left there, and the steps."""
    value, gradient, bend = problem.value(theta, c)
    # labels have a unit, and so has the gradient: what counts is its share of that at 0, where this is above 1
    unit = max(1.0, float(np.linalg.norm(problem.value(np.zeros_like(theta), c)[1])))
    norm = float(np.linalg.norm(gradient)) / unit
    for step in range(STEPS):
        if norm <= AIM:
            return theta, norm, step
        hessian = problem.x.T @ (problem.x * bend[:, None])
        hessian[np.diag_indices(len(theta))] += problem.decay
        direction = np.linalg.solve(hessian, -gradient).astype(np.float64)
        slope = float(gradient @ direction)
        found = descend(lambda new: problem.value(new, c), theta, value, direction, slope)
        if found is None:
            return theta, norm, step
        new, new_value, new_gradient, new_bend = found
        new_norm = float(np.linalg.norm(new_gradient)) / unit
        if norm <= TOLERANCE and new_norm > 0.5 * norm:  # rounding: no step is of use any more
            return theta, norm, step
        theta, value, gradient, bend, norm = new, new_value, new_gradient, new_bend, new_norm
    return theta, norm, STEPS

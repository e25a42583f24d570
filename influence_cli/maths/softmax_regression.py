"""Softmax regression with an L2 penalty, to its one optimum: full batch, float64, Newton steps.

    R(theta) = sum_i w_i l_i(theta) / sum_i w_i + (decay / 2) |theta|^2,    l_i = logsumexp(theta x_i) - (theta x_i)_y

theta [C, d] holds a row a class; a bias is a column of ones in x, penalised as every other parameter is (as SGD's
weight decay does).  With decay > 0 R is strictly convex, so the optimum depends on neither start nor seed.
scikit-learn's ``LogisticRegression(C)`` minimises sum_i l_i + |theta|^2 / (2 C), its intercept free of the penalty:
decay = 1 / (n C); for two classes it has one vector beta = theta_1 - theta_0, and |theta|^2 = |beta|^2 / 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TOLERANCE = 1e-10  # gradient norm at which the optimum counts as reached
AIM = 1e-13  # steps go on to here where rounding lets them
DENSE = 2000  # parameters up to which a Newton step is solved with the dense Hessian; above, by conjugate gradients
STEPS = 200


@dataclass(frozen=True)
class Fit:
    """An optimum theta [C, d], the norm of the gradient left there, and the steps it took."""

    theta: Floats
    gradient_norm: float
    steps: int

    @property
    def converged(self) -> bool:
        """Whether the gradient is as good as zero."""
        return self.gradient_norm <= TOLERANCE


@dataclass(frozen=True, eq=False)
class Regression:
    """Inputs x [n, d], labels y [n] below ``classes``, weights w [n] and the penalty."""

    x: Floats
    y: NDArray[np.int64]
    w: Floats
    classes: int
    decay: float

    def value(self, theta: Floats) -> tuple[float, Floats, Floats]:
        """R, its gradient [C, d] and the probabilities [n, C].

        >>> r = Regression(np.ones((2, 1)), np.array([0, 1]), np.ones(2), 2, 0.0)
        >>> bool(np.isclose(r.value(np.zeros((2, 1)))[0], np.log(2)))
        True
        """
        z = self.x @ theta.T
        z -= z.max(axis=1, keepdims=True)
        e = np.exp(z)
        total = e.sum(axis=1)
        rows = np.arange(len(self.y))
        losses = np.log(total) - z[rows, self.y]
        p = e / total[:, None]
        share = self.w / self.w.sum()
        residual = p * share[:, None]
        residual[rows, self.y] -= share
        r = float(share @ losses) + 0.5 * self.decay * float((theta * theta).sum())
        return r, residual.T @ self.x + self.decay * theta, p

    def hessian(self, p: Floats) -> Floats:
        """The Hessian [C d, C d]; blocks -(sum_i w_i p_a p_b x x^T) / sum w off the diagonal, rows of blocks sum to 0.

        On the diagonal that is sum_i w_i p_a (1 - p_a) x x^T / sum w, plus the penalty.
        """
        d, c = self.x.shape[1], self.classes
        h = np.zeros((c, d, c, d))
        share = self.w / self.w.sum()
        for a in range(c):
            for b in range(a + 1, c):
                block = self.x.T @ (self.x * (share * p[:, a] * p[:, b])[:, None])
                h[a, :, b, :] = h[b, :, a, :] = -block
                h[a, :, a, :] += block
                h[b, :, b, :] += block
        h = h.reshape(c * d, c * d)
        h[np.diag_indices(c * d)] += self.decay
        return h

    def product(self, p: Floats, v: Floats) -> Floats:
        """Hessian times v [C, d], without the Hessian."""
        t = self.x @ v.T
        inner = p * (t - (p * t).sum(axis=1, keepdims=True)) * (self.w / self.w.sum())[:, None]
        return inner.T @ self.x + self.decay * v

    def diagonal(self, p: Floats) -> Floats:
        """The Hessian's diagonal [C, d]."""
        share = (self.w / self.w.sum())[:, None]
        return (p * (1.0 - p) * share).T @ (self.x * self.x) + self.decay


def fit(problem: Regression, start: Floats | None = None) -> Fit:
    """The optimum, by Newton steps with backtracking; the best point where rounding ends the descent.

    >>> r = Regression(np.ones((2, 1)), np.array([0, 1]), np.array([3.0, 1.0]), 2, 1e-3)
    >>> best = fit(r)
    >>> best.converged, bool(best.theta[0, 0] > 0)
    (True, True)
    """
    theta = np.zeros((problem.classes, problem.x.shape[1])) if start is None else start.copy()
    value, gradient, p = problem.value(theta)
    norm = float(np.linalg.norm(gradient))
    for step in range(STEPS):
        if norm <= AIM:
            return Fit(theta, norm, step)
        direction = _newton(problem, p, gradient)
        slope = float((gradient * direction).sum())
        found = descend(problem.value, theta, value, direction, slope)
        if found is None:
            return Fit(theta, norm, step)
        new, new_value, new_gradient, new_p = found
        new_norm = float(np.linalg.norm(new_gradient))
        if norm <= TOLERANCE and new_norm > 0.5 * norm:  # rounding: no step is of use any more
            return Fit(theta, norm, step)
        theta, value, gradient, p, norm = new, new_value, new_gradient, new_p, new_norm
    return Fit(theta, norm, STEPS)


def _newton(problem: Regression, p: Floats, gradient: Floats) -> Floats:
    """Minus the inverse Hessian times the gradient."""
    if gradient.size <= DENSE:
        return np.linalg.solve(problem.hessian(p), -gradient.ravel()).astype(np.float64).reshape(gradient.shape)
    norm = float(np.linalg.norm(gradient))
    exactness = min(0.1, norm**0.5) * norm  # tighter as the optimum nears: faster than linear convergence
    return solved_by_products(problem, p, -gradient, exactness)


def solved_by_products(problem: Regression, p: Floats, b: Floats, exactness: float) -> Floats:
    """The inverse Hessian times b [C, d] to a residual norm of ``exactness``, by conjugate gradients.

    They are scaled by the Hessian's diagonal.
    """
    from scipy.sparse.linalg import LinearOperator, cg

    size, diagonal = b.size, problem.diagonal(p).ravel()

    def product(v: Floats) -> Floats:
        return problem.product(p, v.reshape(b.shape)).ravel()

    hessian = LinearOperator((size, size), matvec=product, dtype=np.float64)
    scaling = LinearOperator((size, size), matvec=lambda v: v.ravel() / diagonal, dtype=np.float64)
    x, _ = cg(hessian, b.ravel(), rtol=0.0, atol=exactness, maxiter=10 * size, M=scaling)
    return x.reshape(b.shape)


def descend(
    value_at: Callable[[Floats], tuple[float, Floats, Floats]],
    theta: Floats,
    value: float,
    direction: Floats,
    slope: float,
) -> tuple[Floats, float, Floats, Floats] | None:
    """The first of the steps 1, 1/2, 1/4, ... that lowers R enough, to rounding; None where none does.

    ``value_at`` gives R, its gradient, and what its Hessian is made of.
    """
    rounding = 4.0 * np.finfo(np.float64).eps * max(1.0, abs(value))
    length = 1.0
    for _ in range(40):
        new = theta + length * direction
        r, gradient, bend = value_at(new)
        if r <= value + 1e-4 * length * slope + rounding:
            return new, r, gradient, bend
        length *= 0.5
    return None

"""Solves with symmetric matrices, and what their spectrum says of them; all in float64.

A matrix A [d, d] with eigenvalues e_j and eigenvectors v_j; right-hand sides B [d, k].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky, solve_triangular

Floats = NDArray[np.float64]

SINGULAR = 1e-8  # smallest over largest eigenvalue at and below which a matrix is damped
DAMPING = 1e-3  # of the mean eigenvalue, where it is


class NotPositiveDefiniteError(Exception):
    """A Cholesky factorisation met a pivot that is not positive."""


def eigenvalues_of(matrix: Floats) -> Floats:
    """Eigenvalues [d] of a symmetric matrix, ascending.

    >>> eigenvalues_of(np.array([[2.0, 1.0], [1.0, 2.0]])).round(12).tolist()
    [1.0, 3.0]
    """
    return np.linalg.eigvalsh(matrix).astype(np.float64, copy=False)


def default_damping(eigenvalues: Floats) -> float:
    """0 where the smallest eigenvalue is above 1e-8 of the largest, else 1e-3 of the mean eigenvalue, at least 0.

    >>> default_damping(np.array([1.0, 3.0])), default_damping(np.array([0.0, 4.0]))
    (0.0, 0.002)
    """
    if eigenvalues.min() > SINGULAR * eigenvalues.max():
        return 0.0
    return max(0.0, DAMPING * float(eigenvalues.mean()))


def bounded_damping(trace: float, d: int, l2: float, share: float = DAMPING) -> float:
    """``default_damping`` of K + l2 I [d, d] where of K only the trace is known, and that no eigenvalue is negative.

    0 where l2, below which no eigenvalue is, is above 1e-8 of tr K + l2, above which none is; else ``share`` of the
    mean.

    >>> bounded_damping(4.0, 2, 0.1), bounded_damping(4.0, 2, 0.0)
    (0.0, 0.002)
    """
    if l2 > SINGULAR * (trace + l2):
        return 0.0
    return share * (trace / d + l2)


def condition_number(eigenvalues: Floats) -> float | None:
    """Largest over smallest absolute eigenvalue; None where the smallest is 0.

    >>> condition_number(np.array([-1.0, 4.0]))
    4.0
    """
    sizes = np.abs(eigenvalues)
    return None if sizes.min() == 0.0 else float(sizes.max() / sizes.min())


def rounding(eigenvalues: Floats) -> float:
    """Size below which an eigenvalue of a matrix with this spectrum is rounding: d eps of the largest."""
    return len(eigenvalues) * float(np.finfo(np.float64).eps * np.abs(eigenvalues).max())


def shifted(matrix: Floats, shift: float) -> Floats:
    """A + shift I, a copy."""
    out = matrix.copy()
    out[np.diag_indices_from(out)] += shift
    return out


def solve_positive(matrix: Floats, columns: Floats) -> Floats:
    """A^-1 B [d, k] by Cholesky.

    >>> solve_positive(np.diag([4.0, 16.0]), np.array([[4.0], [8.0]])).ravel().tolist()
    [1.0, 0.5]

    Raises:
        NotPositiveDefiniteError: A is not positive definite to rounding.
    """
    try:
        return np.asarray(cho_solve(cho_factor(matrix, lower=True), columns))
    except LinAlgError as error:
        raise NotPositiveDefiniteError(str(error)) from error


def solve_spectral(matrix: Floats, columns: Floats, how: str, damping: float) -> Floats:
    """sum_j v_j (v_j^T B) / (f(e_j) + damping) [d, k], with f clamping at 0 (``clamp``) or taking the size (``abs``).

    >>> solve_spectral(np.diag([-1.0, 4.0]), np.array([[1.0], [2.0]]), "abs", 0.0).ravel().tolist()
    [1.0, 0.5]
    """
    e, v = np.linalg.eigh(matrix)
    return v @ ((v.T @ columns) / (reshaped(e, how) + damping)[:, None])


def positive_form(matrix: Floats) -> Callable[[Floats], Floats]:
    """The map from columns v [d, k] to v^T A^-1 v [k], by one Cholesky factorisation: |L^-1 v|^2, never negative.

    >>> positive_form(np.diag([4.0, 16.0]))(np.array([[2.0], [4.0]])).tolist()
    [2.0]

    Raises:
        NotPositiveDefiniteError: A is not positive definite to rounding.
    """
    try:
        root = cholesky(matrix, lower=True)
    except LinAlgError as error:
        raise NotPositiveDefiniteError(str(error)) from error
    return lambda v: np.square(solve_triangular(root, v, lower=True)).sum(axis=0)


def spectral_form(matrix: Floats, how: str, damping: float) -> Callable[[Floats], Floats]:
    """The map from columns v [d, k] to sum_j (v_j^T v)^2 / (f(e_j) + damping) [k], f as in ``solve_spectral``.

    >>> spectral_form(np.diag([-1.0, 4.0]), "abs", 0.0)(np.array([[1.0], [2.0]])).tolist()
    [2.0]
    """
    e, vectors = np.linalg.eigh(matrix)
    shares = 1.0 / (reshaped(e, how) + damping)
    return lambda v: shares @ np.square(vectors.T @ v)


def reshaped(eigenvalues: Floats, how: str) -> Floats:
    """Eigenvalues as a mode takes them: max(e, 0) for ``clamp``, |e| for ``abs``, otherwise as they are.

    >>> [reshaped(np.array([-1.0, 4.0]), how).tolist() for how in ("clamp", "abs", "ggn")]
    [[0.0, 4.0], [1.0, 4.0], [-1.0, 4.0]]
    """
    if how == "clamp":
        return np.maximum(eigenvalues, 0.0)
    return np.abs(eigenvalues) if how == "abs" else eigenvalues

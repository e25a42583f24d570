"""Solves with symmetric matrices, and what their spectrum says of them; all in float64.

A matrix A [d, d] with eigenvalues e_j and eigenvectors v_j; right-hand sides B [d, k].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular

Floats = NDArray[np.float64]

SINGULAR = 1e-8  # smallest over largest eigenvalue at and below which a matrix is damped
DAMPING = 1e-3  # of the mean eigenvalue, where it is
SPECTRAL = ("clamp", "abs")  # modes that change eigenvalues


class NotPositiveDefiniteError(Exception):
    """A Cholesky factorisation met a pivot that is not positive."""


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


def spectrum(eigenvalues: Floats, inverted: Floats) -> dict[str, float | None]:
    """The ends of a spectrum, and the condition number of what is inverted: these eigenvalues, changed and damped.

    The latter is the largest over the smallest absolute eigenvalue; None where the smallest is 0.
    """
    sizes = np.abs(inverted)
    return {
        "smallest_eigenvalue": float(eigenvalues[0]),
        "largest_eigenvalue": float(eigenvalues[-1]),
        "condition_number": None if sizes.min() == 0.0 else float(sizes.max() / sizes.min()),
    }


def is_positive(eigenvalues: Floats) -> bool:
    """Whether the smallest eigenvalue is above d eps of the largest: below that it is rounding.

    >>> is_positive(np.array([1e-12, 1.0])), is_positive(np.array([1e-16, 1.0]))
    (True, False)
    """
    return bool(eigenvalues.min() > len(eigenvalues) * float(np.finfo(np.float64).eps * np.abs(eigenvalues).max()))


def shifted(matrix: Floats, shift: float) -> Floats:
    """A + shift I, a copy."""
    out = matrix.copy()
    out[np.diag_indices_from(out)] += shift
    return out


class DenseInverse:
    """P = (A + damping I)^-1, with eigenvalues as a mode takes them (see ``reshaped``), factorised once.

    >>> columns = np.array([[1.0], [2.0]])
    >>> p = DenseInverse(np.diag([-1.0, 4.0]), "abs", 0.0)
    >>> p.solve(columns).ravel().tolist(), p.form(columns).tolist()
    ([1.0, 0.5], [2.0])
    >>> p = DenseInverse(np.diag([0.0, 3.0]), "ggn", 1.0)
    >>> p.solve(columns).ravel().tolist(), p.form(columns).tolist()
    ([1.0, 0.5], [2.0])
    """

    def __init__(self, matrix: Floats, how: str, damping: float) -> None:
        """By eigenvectors where the mode changes eigenvalues, otherwise by Cholesky.

        Raises:
            NotPositiveDefiniteError: A + damping I is not positive definite to rounding, and the mode needs it to be.
        """
        self._spectral = how in SPECTRAL
        if self._spectral:
            e, self._vectors = np.linalg.eigh(matrix)
            self._values = reshaped(e, how) + damping
            return
        try:
            self._root = cholesky(shifted(matrix, damping), lower=True)
        except LinAlgError as error:
            raise NotPositiveDefiniteError(str(error)) from error

    def solve(self, columns: Floats) -> Floats:
        """P B [d, k]."""
        if self._spectral:
            return self._vectors @ ((self._vectors.T @ columns) / self._values[:, None])
        return np.asarray(cho_solve((self._root, True), columns))

    def form(self, columns: Floats) -> Floats:
        """b^T P b of every column b of B [d, k]; never negative."""
        if self._spectral:
            return (1.0 / self._values) @ np.square(self._vectors.T @ columns)
        return np.square(solve_triangular(self._root, columns, lower=True)).sum(axis=0)


def reshaped(eigenvalues: Floats, how: str) -> Floats:
    """Eigenvalues as a mode takes them: max(e, 0) for ``clamp``, |e| for ``abs``, otherwise as they are.

    >>> [reshaped(np.array([-1.0, 4.0]), how).tolist() for how in ("clamp", "abs", "ggn")]
    [[0.0, 4.0], [1.0, 4.0], [-1.0, 4.0]]
    """
    if how == "clamp":
        return np.maximum(eigenvalues, 0.0)
    return np.abs(eigenvalues) if how == "abs" else eigenvalues

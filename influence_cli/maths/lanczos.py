"""Lanczos vectors and Ritz pairs of a symmetric matrix A [d, d] that is seen through products alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

from influence_cli.maths.iterative import FORGETFUL, Floats, Interim, relative_norms

Product = Callable[[Floats], Floats]  # columns V [d, k] to A V

SMALL = 1e-6  # of the largest Ritz value by size: what is at or below counts as zero
BLOCK = 16  # basis vectors that are taken to float64 at once, at most
BLOCK_VALUES = 1 << 24  # and their values


@dataclass(frozen=True)
class Tridiagonal:
    """Lanczos vectors W [m, d] (orthonormal rows), and W A W^T as its diagonal and what stands beside it."""

    basis: NDArray[Any]  # [m, d], in the precision of the start vector
    diagonal: Floats  # [m]
    beside: Floats  # [m]: norm of what A w_j leaves outside of the first j + 1 vectors
    complete: bool  # whether the last of these is rounding: the rows span an invariant subspace

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it as arrays, to be stored."""
        complete = np.array([float(self.complete)])
        return {"basis": self.basis, "diagonal": self.diagonal, "beside": self.beside, "complete": complete}


def lanczos(
    product: Product, start: NDArray[Any], most: int, tolerance: float, interim: Interim = FORGETFUL
) -> Tridiagonal:
    """Up to ``most`` Lanczos vectors from ``start`` [d], each made orthogonal to all before it, twice.

    Where |A w_j less its projection on the first j + 1| <= tolerance |A w_j| they span an invariant subspace; every
    vector found is kept.  An eigenvalue that stands more than once is seen once.

    >>> found = lanczos(lambda v: np.diag([1.0, 4.0, 4.0]) @ v, np.ones(3), 3, 1e-8)
    >>> len(found.basis), found.complete, ritz(found.diagonal, found.beside)[0].round(12).tolist()
    (2, True, [1.0, 4.0])
    """
    d, state = len(start), interim.load()
    basis = np.empty((most, d), dtype=start.dtype)
    diagonal, beside, first, complete = np.zeros(most), np.zeros(most), 0, False
    if state is None:
        basis[0] = start / np.linalg.norm(start)
    else:
        first = len(state["diagonal"])
        basis[: first + 1], diagonal[:first], beside[:first] = state["basis"], state["diagonal"], state["beside"]
    for j in range(first, most):
        image = product(basis[j].astype(np.float64)[:, None])[:, 0]
        diagonal[j] = float(basis[j].astype(np.float64) @ image)
        size, image = float(np.linalg.norm(image)), image.astype(start.dtype)
        for _ in range(2):
            image = image - (basis[: j + 1] @ image) @ basis[: j + 1]
        beside[j] = float(np.linalg.norm(image))
        complete = bool(beside[j] <= tolerance * size)
        if complete or j + 1 == most:
            return Tridiagonal(basis[: j + 1], diagonal[: j + 1], beside[: j + 1], complete)
        basis[j + 1] = image / beside[j]
        m = j + 1
        interim.offer(lambda m=m: {"basis": basis[: m + 1], "diagonal": diagonal[:m], "beside": beside[:m]})
    raise AssertionError("no step was asked for")


def ritz(diagonal: Floats, beside: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues [m], ascending, and eigenvectors [m, m] (columns) of the tridiagonal matrix."""
    values, vectors = eigh_tridiagonal(diagonal, beside[: len(diagonal) - 1])
    return np.asarray(values, dtype=np.float64), np.asarray(vectors, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Ritz pairs of A + shift I in the rows of a basis, and which of them an inverse keeps."""

    basis: NDArray[Any]  # [m, d]
    values: Floats  # [m], ascending, with the shift
    vectors: Floats  # [m, m], in columns
    kept: NDArray[np.intp]  # [r], the largest by size first
    residuals: Floats  # [r]: what A leaves outside of the basis, over the largest value by size
    complete: bool  # whether the basis spans an invariant subspace

    @classmethod
    def of(cls, found: dict[str, NDArray[Any]], shift: float, most: int | None, keep_negative: bool) -> RitzPairs:
        """The pairs of the arrays of a ``Tridiagonal``; kept are ``most`` (None: all) of those that are not small."""
        plain, vectors = ritz(found["diagonal"], found["beside"])
        values = plain + shift
        sizes = np.abs(values)
        order = np.argsort(-sizes, kind="stable")
        wanted = sizes > SMALL * sizes.max()
        if not keep_negative:
            wanted &= values > 0
        kept = order[wanted[order]][:most]
        residuals = np.abs(found["beside"][-1] * vectors[-1, kept]) / sizes.max()
        return cls(found["basis"], values, vectors, kept, residuals, bool(found["complete"][0]))

    def facts(self) -> dict[str, Any]:
        """What is known of the spectrum, where any value is kept; negative are those below zero that are not small."""
        kept = self.values[self.kept]
        return {
            "vectors": len(self.values),
            "complete": self.complete,
            "kept": len(kept),
            "negative": int((self.values < -SMALL * np.abs(self.values).max()).sum()),
            "smallest_kept": float(kept.min()),
            "largest_kept": float(kept.max()),
            "ritz_residual": float(self.residuals.max()),
        }

    def invertible(self, damping: float) -> bool:
        """Whether no kept value with ``damping`` is small beside the others."""
        sizes = np.abs(self.values[self.kept] + damping)
        return bool(sizes.min() > SMALL * sizes.max())

    def inverse(self, q: Floats, damping: float, complement: bool) -> tuple[Floats, Floats]:
        """U (nu + damping)^-1 U^T q [d, k] and the share [k] of q's length that the kept vectors U hold.

        With ``complement`` the rest of q counts as in the direction of the smallest value kept.
        """
        chosen, vectors = self.values[self.kept] + damping, self.vectors[:, self.kept]
        inside = vectors.T @ _project(self.basis, q)  # U^T q [r, k]
        weights = 1.0 / chosen[:, None]
        outside = 1.0 / float(chosen[np.argmin(np.abs(self.values[self.kept]))]) if complement else 0.0
        u = _expand(self.basis, vectors @ ((weights - outside) * inside)) + outside * q
        return u, relative_norms(inside, q)


def _project(basis: NDArray[Any], columns: Floats) -> Floats:
    """W Q [m, k] for rows W [m, d], in float64 though they be in float32."""
    return np.concatenate([basis[some].astype(np.float64) @ columns for some in _blocks(basis)])


def _expand(basis: NDArray[Any], weights: Floats) -> Floats:
    """W^T A [d, k] for rows W [m, d] and A [m, k]."""
    total = np.zeros((basis.shape[1], weights.shape[1]))
    for some in _blocks(basis):
        total += basis[some].astype(np.float64).T @ weights[some]
    return total


def _blocks(basis: NDArray[Any]) -> list[slice]:
    """Some rows after another."""
    size = max(1, min(BLOCK, BLOCK_VALUES // basis.shape[1]))
    return [slice(first, first + size) for first in range(0, len(basis), size)]

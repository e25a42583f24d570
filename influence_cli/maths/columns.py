"""Inner products and norms of the columns of [d, k], whose bits do not depend on how they lie in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def dots(a: Floats, b: Floats) -> Floats:
    """Inner product of every column of [d, k] with that of the other; the same bits however they lie in memory.

    >>> dots(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [1.0, 1.0]])).tolist()
    [4.0, 4.0]
    """
    pairs = zip(np.ascontiguousarray(a.T), np.ascontiguousarray(b.T), strict=True)
    return np.array([np.einsum("i,i->", x, y) for x, y in pairs], dtype=np.float64)


def norms(columns: Floats) -> Floats:
    """Euclidean norm of every column of [d, k]."""
    return np.sqrt(dots(columns, columns))


def relative_norms(columns: Floats, to: Floats) -> Floats:
    """Norm of every column of [d, k] over that of the other; the norm itself where that is 0.

    >>> relative_norms(np.array([[1.0, 3.0]]), np.array([[2.0, 0.0]])).tolist()
    [0.5, 3.0]
    """
    sizes = norms(to)
    return norms(columns) / np.where(sizes > 0, sizes, 1.0)

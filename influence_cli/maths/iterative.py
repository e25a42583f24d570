"""What iterative computations share: where they leave their state, and inner products of columns.

A run that was stopped goes on from the last state that was written.  ``offer`` is cheap and called after every step;
whoever keeps states decides which of them to write down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
State = dict[str, NDArray[Any]]  # arrays by name that are never changed in place once offered


class Interim:
    """The state of one computation; this one keeps none."""

    def load(self) -> State | None:
        """The last state that was written, or None."""
        return None

    def offer(self, state: Callable[[], State]) -> None:
        """The computation is at a state that it can go on from."""


FORGETFUL = Interim()


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

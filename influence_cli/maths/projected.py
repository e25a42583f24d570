"""The damped inverse of a Gram matrix of projected gradients, and what is known of its spectrum."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RIDGE = 1e-6  # of the mean eigenvalue: the default
SMALL = 1e-12  # of the largest eigenvalue: below, one is rounding


class SingularError(Exception):
    """What is to be inverted has no inverse."""


def default_ridge(gram: Floats) -> float:
    """1e-6 of the mean eigenvalue.

    >>> default_ridge(np.diag([1.0, 3.0]))
    2e-06
    """
    return RIDGE * float(np.trace(gram)) / len(gram)


def solved(gram: Floats, ridge: float, columns: Floats) -> tuple[Floats, dict[str, Any]]:
    """(G + ridge I)^-1 V for columns V [k, j], and the condition number and rank of G.

    >>> solved(np.diag([1.0, 3.0]), 1.0, np.array([[2.0], [4.0]]))[0].tolist()
    [[1.0], [1.0]]

    Raises:
        SingularError: what is inverted has an eigenvalue that is rounding beside the largest.
    """
    values, vectors = np.linalg.eigh(gram)
    top = float(values[-1])
    damped = np.maximum(values, 0.0) + ridge
    if not damped[0] > SMALL * damped[-1]:
        raise SingularError
    rank = int((values > SMALL * top).sum())
    facts = {"rank": rank, "condition_number": float(damped[-1] / damped[0])}
    return vectors @ ((vectors.T @ columns) / damped[:, None]), facts

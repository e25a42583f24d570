"""Unrolled gradient descent where curvature stands still: what a segment of training does to a direction.

Descent with rates that sum to T on a loss with curvature sigma along an eigenvector takes a gradient that is added at
every step to F = (1 - exp(-T sigma)) / sigma of it at the end, and what was there at the start to exp(-T sigma) of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def gathered(sigma: Floats, travelled: float) -> Floats:
    """(1 - exp(-T sigma)) / sigma for sigma of at least 0; T where that is 0.

    >>> gathered(np.array([0.0, 1e-12, 1e9]), 3.0).round(9).tolist()
    [3.0, 3.0, 1e-09]
    """
    x = travelled * sigma
    small = x < 1e-12
    safe = np.where(small, 1.0, x)
    return travelled * np.where(small, 1.0 - 0.5 * x, -np.expm1(-safe) / safe)


def left(sigma: Floats, travelled: float) -> Floats:
    """exp(-T sigma), the share of a direction that is left of it.

    >>> left(np.array([0.0, 1e9]), 3.0).tolist()
    [1.0, 0.0]
    """
    return np.exp(-travelled * sigma)

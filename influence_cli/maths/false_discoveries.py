"""How many rows a rule by p-values flags that are clean: the Benjamini-Hochberg rule, and how often a gate trips.

Benjamini and Hochberg (1995): of m p-values in order, p_(1) <= ... <= p_(m), the rule at rate q rejects the first k,
where k is the largest with p_(k) <= k q / m.  Conformal p-values of one set of calibration rows are positively
dependent, so that at most a share q of what is rejected is clean on average (Bates et al. 2023, arXiv:2104.08279).

With n calibration rows and no ties, a row of the same distribution has p <= q where it scores below the k-th lowest of
them, k = floor(q (n + 1)).  The number of such rows among m is beta-binomial with parameters k and n + 1 - k.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def benjamini_hochberg(p: NDArray[np.float64], q: float) -> NDArray[np.bool_]:
    """Which of p-values [m] are rejected at a false discovery rate q.

    >>> benjamini_hochberg(np.array([0.9, 0.02, 0.04]), 0.1).tolist()
    [False, True, True]
    """
    ordered = np.sort(p)
    passing = np.flatnonzero(ordered <= q * np.arange(1, len(p) + 1) / max(len(p), 1) + 1e-12)
    return p <= ordered[passing[-1]] if len(passing) else np.zeros(len(p), dtype=bool)


def chance_of_more(allowed: int, rows: int, calibration: int, rate: float) -> float:
    """The probability that more than ``allowed`` of ``rows`` clean ones have a conformal p-value of at most ``rate``.

    >>> round(chance_of_more(0, 1, 99, 0.01), 6)  # one row, flagged where it is the lowest of a hundred
    0.01
    >>> chance_of_more(5, 5, 99, 0.01)
    0.0
    """
    k = math.floor(rate * (calibration + 1) + 1e-9)
    if k < 1 or allowed >= rows:
        return 0.0
    a, b = float(k), float(calibration + 1 - k)
    below = sum(
        math.exp(_log_choose(rows, j) + _log_beta(j + a, rows - j + b) - _log_beta(a, b)) for j in range(allowed + 1)
    )
    return min(max(0.0, 1.0 - below), 1.0)


def _log_choose(n: int, j: int) -> float:
    return -math.log(n + 1) - _log_beta(j + 1.0, n - j + 1.0)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

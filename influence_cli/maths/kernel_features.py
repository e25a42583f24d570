"""Features of which a linear function is a function of a kernel: a probe on them bends where a plain one cannot.

With x_i the standardised features of a row over their length, and landmarks l_1 to l_L among the rows (Nystroem):

    k(a, b) = exp(-WIDTH |a - b|^2 / m),  m the median of |l - l'|^2,    z_i = (k(x_i, l_1), ..., k(x_i, l_L)) K^(-1/2)

K [L, L] is k of the landmarks; directions in which it is as good as 0 are left out.  So z_i . z_j is nearly
k(x_i, x_j), and is it where either is a landmark.  At last z is given mean 0 over the rows.  Landmarks are named by the
caller, so that nothing is drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.corrected_probe import standardised

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WIDTH = 0.5
LANDMARKS = 1500
SMALLEST = 1e-6  # of the largest eigenvalue of K
BLOCK = 4096  # rows whose kernels are taken at once


def kernel_features(rows: NDArray[np.floating], others: NDArray[np.floating], at: Ints) -> tuple[Floats, Floats]:
    """Features z of rows [n, d] and of others [m, d], which are standardised as those are, by landmarks ``at``.

    >>> z, _ = kernel_features(np.array([[0.0], [1.0], [4.0]]), np.empty((0, 1)), np.arange(3))
    >>> bool(abs(z.mean(axis=0)).max() < 1e-9), z.shape[1] <= 3
    (True, True)
    """
    from scipy.linalg import eigh

    landmarks = _unit(standardised(rows[at], rows))
    apart = _squared(landmarks, landmarks)
    pairs = apart[np.triu_indices(len(at), 1)]
    middle = float(np.median(pairs)) if len(pairs) else 0.0
    scale = WIDTH / middle if middle > 0 else 0.0
    values, vectors = eigh(np.exp(-scale * apart))
    kept = values > SMALLEST * values[-1]
    root = vectors[:, kept] / np.sqrt(values[kept])

    def found(some: NDArray[np.floating]) -> Floats:
        z = np.empty((len(some), root.shape[1]))
        for first in range(0, len(some), BLOCK):
            block = slice(first, first + BLOCK)
            z[block] = np.exp(-scale * _squared(_unit(standardised(some[block], rows)), landmarks)) @ root
        return z

    own, theirs = found(rows), found(others)
    mean = own.mean(axis=0)
    return own - mean, theirs - mean


def _unit(x: Floats) -> Floats:
    length = np.sqrt((x * x).sum(axis=1, keepdims=True))
    return x / np.where(length > 0, length, 1.0)


def _squared(a: Floats, b: Floats) -> Floats:
    """Squared distances of vectors [n, d] and [m, d]."""
    found = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2.0 * a @ b.T
    return np.maximum(found, 0.0, out=found)

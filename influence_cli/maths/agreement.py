"""Whether class labels agree with what foretells them: against permuted labels, and against the most frequent class.

Of n rows with labels y and foretold classes f, with a_k rows labelled k and b_k foretold as k, labels that are permuted
agree in N / n rows, N = sum_k a_k b_k, with variance (N - sum_k a_k b_k (a_k + b_k) / n + N^2 / n^2) / (n - 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.bootstrap import wilson

Ints = NDArray[np.int64]
BEYOND = 1.96  # standard deviations


@dataclass(frozen=True)
class Agreement:
    """Shares of the rows: labels that are as foretold, that would be by chance, and of the most frequent class."""

    share: float
    by_chance: float
    most_frequent: float
    beyond_chance: bool  # more than 1.96 standard deviations of permuted labels above them
    beyond_most_frequent: bool  # Wilson's 95% interval of the share lies above the share of the most frequent class


def agreement(foretold: Ints, labels: Ints) -> Agreement:
    """Of foretold classes [n] and labels [n], neither of which is negative; no rows agree in nothing.

    >>> labels = np.array([0, 1] * 20)
    >>> found = agreement(labels, labels)
    >>> found.share, found.by_chance, found.beyond_chance, found.beyond_most_frequent
    (1.0, 0.5, True, True)
    >>> found = agreement(np.zeros(40, dtype=np.int64), labels)
    >>> found.share, found.by_chance, found.beyond_chance, found.beyond_most_frequent
    (0.5, 0.5, False, False)
    """
    n = len(labels)
    if not n:
        return Agreement(0.0, 0.0, 0.0, False, False)
    classes = int(max(foretold.max(), labels.max())) + 1
    a, b = (np.bincount(of, minlength=classes).astype(np.float64) for of in (labels, foretold))
    total, same = float(a @ b), int((foretold == labels).sum())
    variance = (total - float(a * b @ (a + b)) / n + (total / n) ** 2) / max(n - 1, 1)
    share, most = same / n, float(a.max()) / n
    beyond = variance > 0 and same - total / n > BEYOND * np.sqrt(variance)
    return Agreement(share, total / n**2, most, bool(beyond), wilson(share, n)[0] > most)

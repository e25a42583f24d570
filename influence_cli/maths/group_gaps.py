"""How differently a model treats groups of test rows: demographic-parity and equalised-odds gaps, hard and soft.

h_c(v) is 1 where class c is predicted for row v and 0 elsewhere (hard), or its probability (soft); mu_a is the mean of
h_c over the rows of group a, and gap(h_c) the mean over pairs of groups of |mu_a - mu_b|.

    demographic parity   gap(h_c)
    equalised odds       gap(h_c on rows of class c) + gap(h_c on all other rows)

For two classes c is the second, and the first would give the same; for more, the mean over classes is taken.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def gap(values: Floats, groups: Ints) -> float | None:
    """Mean over pairs of groups of the absolute difference of group means; None for fewer than two groups.

    >>> gap(np.array([1.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 1]))
    0.5
    """
    means = [float(values[groups == g].mean()) for g in np.unique(groups)]
    pairs = list(itertools.combinations(means, 2))
    return float(np.mean([abs(a - b) for a, b in pairs])) if pairs else None


def group_gaps(probabilities: Floats, labels: Ints, groups: Ints) -> dict[str, float]:
    """Both gaps, hard and soft, from probabilities [n, C]; rows of group -1 are left out, undefined gaps too.

    >>> p = np.array([[0.2, 0.8], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    >>> found = group_gaps(p, np.array([1, 0, 1, 0]), np.array([0, 0, 1, 1]))
    >>> found["dp_gap"], round(found["dp_gap_soft"], 3), found["eo_gap"]
    (0.5, 0.2, 1.0)
    """
    known = groups >= 0
    p, y, s = probabilities[known], labels[known], groups[known]
    predicted = p.argmax(axis=1)
    classes = range(1, 2) if p.shape[1] == 2 else range(p.shape[1])
    found: dict[str, float] = {}
    hard, soft = {c: (predicted == c).astype(np.float64) for c in classes}, {c: p[:, c] for c in classes}
    for suffix, h in (("", hard), ("_soft", soft)):
        parity = [gap(h[c], s) for c in classes]
        odds = [_both(gap(h[c][y == c], s[y == c]), gap(h[c][y != c], s[y != c])) for c in classes]
        for name, values in (("dp_gap", parity), ("eo_gap", odds)):
            defined = [v for v in values if v is not None]
            if len(defined) == len(values):
                found[name + suffix] = float(np.mean(defined))
    return found


def _both(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b

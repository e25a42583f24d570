"""Confident learning: how many labels are wrong, and between which classes (Northcutt et al., arXiv:1911.00068).

From out-of-fold probabilities p [n, C] and labels y [n].  The threshold of a class is the mean probability of it over
the rows labelled so (Eq. 2).  A row counts as (label y, truth k) if k is the most probable of the classes whose
threshold it reaches (Eq. 1); rows that reach none count for nothing.  Rows of the counts are scaled to the number of
rows with that label (Eq. 3), so that the joint sums to n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
VALUES_AT_ONCE = 4_000_000


@dataclass(frozen=True, eq=False)
class Joint:
    """How many rows have which label (row) and most likely which truth (column): [C, C], summing to n."""

    counts: Floats
    thresholds: Floats  # [C]; NaN of a class that no row is labelled with

    @property
    def wrong(self) -> float:
        """The estimated number of wrong labels: all that is off the diagonal."""
        return float(self.counts.sum() - np.trace(self.counts))


def thresholds(p: Floats, labels: Ints, times: Floats) -> Floats:
    """The mean of p_k over the rows labelled k, each as often as ``times`` [n] says: [C]; NaN where there is none."""
    own = np.take_along_axis(p, labels[:, None], axis=1)[:, 0]
    count = np.bincount(labels, weights=times, minlength=p.shape[1])
    total = np.bincount(labels, weights=times * own, minlength=p.shape[1])
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)


def likely_classes(p: Floats, at_least: Floats) -> Ints:
    """The most probable of the classes that reach their threshold [n]; -1 where none does."""
    found = np.empty(len(p), dtype=np.int64)
    step = max(1, VALUES_AT_ONCE // p.shape[1])
    for first in range(0, len(p), step):
        some = p[first : first + step]
        reached = np.where(some >= at_least, some, -1.0)  # no comparison with NaN holds
        best = reached.argmax(axis=1)
        found[first : first + step] = np.where(reached.max(axis=1) < 0, -1, best)
    return found


def joint_of(p: Floats, labels: Ints, times: Floats | None = None) -> Joint:
    """The joint of labels and truths, each row as often as ``times`` [n] says.

    A class none of whose rows counts for anything is taken to be right.

    >>> p = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.1, 0.9]])
    >>> joint_of(p, np.array([0, 0, 1, 1, 0])).counts.tolist()
    [[2.0, 1.0], [0.0, 2.0]]
    """
    times, classes = np.ones(len(p)) if times is None else times, p.shape[1]
    t = thresholds(p, labels, times)
    likely = likely_classes(p, t)
    known = likely >= 0
    cell = labels[known] * classes + likely[known]
    counts = np.bincount(cell, weights=times[known], minlength=classes * classes).reshape(classes, classes)
    counted = counts.sum(axis=1)
    np.fill_diagonal(counts, np.where(counted == 0, 1.0, counts.diagonal()))
    sizes = np.bincount(labels, weights=times, minlength=classes)
    return Joint(counts * (sizes / counts.sum(axis=1))[:, None], t)


def wrong_interval(p: Floats, labels: Ints, draws: int, seed: int) -> tuple[float, float]:
    """A 95% interval of the number of wrong labels: percentiles over bootstrap draws of rows.

    Thresholds and joint are taken anew in every draw; the models behind p are not trained anew.
    """
    rng, n = np.random.default_rng(seed), len(p)
    found = [
        joint_of(p, labels, np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)).wrong
        for _ in range(draws)
    ]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)

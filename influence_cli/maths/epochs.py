"""Statistics of rows [m] over epochs, which come one by one; where an epoch passed over a row its value is NaN.

A row that every epoch passed over has NaN.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def mean_and_spread(epochs: Iterable[Floats]) -> tuple[Floats, Floats]:
    """The mean [m] over the epochs that have a value, and the root of the mean squared deviation from it.

    >>> [v.tolist() for v in mean_and_spread([np.array([1.0, 5.0]), np.array([3.0, np.nan])])]
    [[2.0, 5.0], [1.0, 0.0]]
    """
    count = mean = squares = np.zeros(0)
    for k, values in enumerate(epochs):
        if k == 0:
            count, mean, squares = (np.zeros(len(values)) for _ in range(3))
        there = np.isfinite(values)
        count = count + there
        off = np.where(there, values - mean, 0.0)
        mean = mean + off / np.maximum(count, 1)
        squares = squares + off * np.where(there, values - mean, 0.0)
    never = count == 0
    return np.where(never, np.nan, mean), np.where(never, np.nan, np.sqrt(squares / np.maximum(count, 1)))


def mean_over_epochs(epochs: Iterable[Floats]) -> Floats:
    """The mean [m] over the epochs that have a value."""
    return mean_and_spread(epochs)[0]


def times_forgotten(epochs: Iterable[Floats]) -> tuple[Floats, Mask, Floats]:
    """Of margins: how often a row was right and then not; whether it was ever right; and how many epochs had it [m].

    A row is right where its margin is above 0.  An epoch that passed over a row says nothing of it.

    >>> times_forgotten([np.array([1.0, -1.0]), np.array([-1.0, -1.0]), np.array([2.0, -2.0])])[0].tolist()
    [1.0, 0.0]
    """
    times = seen = np.zeros(0)
    ever = before = np.zeros(0, dtype=bool)
    for k, margins in enumerate(epochs):
        if k == 0:
            times, seen = np.zeros(len(margins)), np.zeros(len(margins))
            ever, before = np.zeros(len(margins), dtype=bool), np.zeros(len(margins), dtype=bool)
        there = np.isfinite(margins)
        right = np.where(there, margins > 0, before)
        times, ever, before, seen = times + (before & ~right), ever | right, right, seen + there
    return np.where(seen > 0, times, np.nan), ever, seen

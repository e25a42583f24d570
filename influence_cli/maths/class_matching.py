"""Whether a model's classes stand in another order than the labels': a permutation that predicts far better.

Accuracy is the mean recall of the classes, so that a model which always says one class gains nothing.  A permutation
is found on one half of the rows and judged on the other, since one that fits noise predicts no better there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

GOOD_ENOUGH = 0.8  # mean recall above which nothing is looked for
FAR_BETTER = 0.2  # least gain in mean recall
SHARE_OF_PERFECT = 0.4  # of the way from guessing to perfect that a permutation has to get


@dataclass(frozen=True)
class Matching:
    """Which output [K] each class is likely to be, and the mean recall as the classes stand and by that order."""

    outputs: tuple[int, ...]
    as_it_is: float
    by_order: float


def find_matching(predicted: Ints, labels: Ints, outputs: int, orders: Sequence[Sequence[int]] = ()) -> Matching | None:
    """The order of the classes by which predicted outputs [n] fit labels [n] far better than as they stand, or None.

    ``orders`` are likely ones, which are preferred where they do as well.

    >>> labels = np.arange(120) % 4
    >>> find_matching(np.array([0, 2, 3, 1])[labels], labels, 4)
    Matching(outputs=(0, 2, 3, 1), as_it_is=0.25, by_order=1.0)
    >>> find_matching(np.zeros(120, dtype=np.int64), labels, 4) is None
    True
    """
    classes = int(labels.max(initial=-1)) + 1
    if len(labels) == 0 or outputs < max(classes, 2):
        return None
    halves = [_counts(predicted[half], labels[half], classes, outputs) for half in _halves(labels)]
    counts = halves[0] + halves[1]
    now = _recall(counts, np.arange(classes))
    most = float(_rates(counts).max(axis=1)[counts.sum(axis=1) > 0].mean())  # of any order, and more
    if now >= GOOD_ENOUGH or not _far_better(now, most, outputs, len(labels)):
        return None
    likely = [np.asarray(order, dtype=np.int64)[:classes] for order in orders]
    best = max(likely, key=lambda order: _recall(counts, order), default=None)
    found = _assigned(counts)
    reached = float(np.mean([_recall(other, _assigned(one)) for one, other in (halves, halves[::-1])]))
    if best is not None and _recall(counts, best) >= reached - 0.02:
        found, reached = best, _recall(counts, best)
    if not _far_better(now, reached, outputs, len(labels)):
        return None
    return Matching(tuple(found.tolist()), now, reached)


def _far_better(now: float, reached: float, outputs: int, rows: int) -> bool:
    chance = 1.0 / outputs
    noise = 2.0 * float(np.sqrt(0.25 / rows))
    return reached - now >= max(FAR_BETTER, 2 * noise) and reached - chance >= SHARE_OF_PERFECT * (1.0 - chance)


def _halves(labels: Ints) -> list[NDArray[np.bool_]]:
    """Every second row of each class, and the others."""
    order = np.argsort(labels, kind="stable")
    place = np.empty(len(labels), dtype=np.int64)
    starts = np.searchsorted(labels[order], labels[order])
    place[order] = np.arange(len(labels)) - starts
    return [place % 2 == 0, place % 2 == 1]


def _counts(predicted: Ints, labels: Ints, classes: int, outputs: int) -> Floats:
    """How often rows of each class are predicted as each output [K, C]."""
    counts = np.zeros((classes, outputs))
    np.add.at(counts, (labels, predicted), 1.0)
    return counts


def _rates(counts: Floats) -> Floats:
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)


def _recall(counts: Floats, order: Ints) -> float:
    """Mean over the classes that have rows of the share that is predicted as the output that the order says."""
    there = counts.sum(axis=1) > 0
    hits = _rates(counts)[np.arange(len(counts)), order]
    return float(hits[there].mean()) if there.any() else 0.0


def _assigned(counts: Floats) -> Ints:
    """The output of each class by which recalls sum to the most (Hungarian assignment); as it stands where all tie."""
    from scipy.optimize import linear_sum_assignment  # a third of a second, which a model that is right need not pay

    gains = _rates(counts)
    gains[np.arange(len(gains)), np.arange(len(gains))] += 1e-9
    return np.asarray(linear_sum_assignment(gains, maximize=True)[1], dtype=np.int64)

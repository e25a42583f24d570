"""Scores and losses as functions of cached logits and logit tangents, for any label, in float64.

With logits z [n, C], logit tangents t = J u [n, C] and p = softmax(z), the directional derivative of the row's
cross-entropy with label y along u is

    s(y) = (p - e_y) . t = sum_c p_c (t_c - t_y)

The second form is exact to rounding at any margin; the first loses up to all digits when p is nearly e_y.
Logits and tangents are cached without the label, so the score with every label is arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BLOCK = 65_536  # rows whose values in between are in memory at once
FEW = 8  # columns below which numpy adds them up one after another, in whatever layout


def by_blocks(of_rows: Callable[..., Floats], *arrays: NDArray[Any]) -> Floats:
    """A function of rows [n, ...] whose every row is its own, a block of rows at a time."""
    n = len(arrays[0])
    if n <= BLOCK:
        return of_rows(*arrays)
    first = of_rows(*(array[:BLOCK] for array in arrays))
    found = np.empty((n, *first.shape[1:]), first.dtype)
    found[:BLOCK] = first
    for start in range(BLOCK, n, BLOCK):
        found[start : start + BLOCK] = of_rows(*(array[start : start + BLOCK] for array in arrays))
    return found


def _max(z: Floats) -> Floats:
    """The largest of each row [n]."""
    return np.ascontiguousarray(z.T).max(axis=0) if z.shape[1] < FEW else z.max(axis=1)


def _sum(z: Floats) -> Floats:
    """The sum of each row [n]; of few columns by whole columns, which is quick and gives the same bits."""
    return np.ascontiguousarray(z.T).sum(axis=0) if z.shape[1] < FEW else z.sum(axis=1)


def softmax(logits: NDArray[np.floating]) -> Floats:
    """Probabilities [n, C].

    >>> softmax(np.array([[0.0, 0.0]]))
    array([[0.5, 0.5]])
    """
    return by_blocks(_softmax, logits)


def _softmax(logits: NDArray[np.floating]) -> Floats:
    z = logits.astype(np.float64)
    e = np.exp(z - _max(z)[:, None])
    return e / _sum(e)[:, None]


def cross_entropy(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Floats:
    """Each row's loss [n], no reduction: log sum_c exp(z_c - z_y).

    >>> bool(np.isclose(cross_entropy(np.array([[0.0, 0.0]]), np.array([1]))[0], np.log(2)))
    True
    """
    return by_blocks(_cross_entropy, logits, labels)


def _cross_entropy(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Floats:
    z = logits.astype(np.float64)
    gaps = z - np.take_along_axis(z, labels[:, None], axis=1)
    top = _max(gaps)
    return top + np.log(_sum(np.exp(gaps - top[:, None])))


def margin(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Floats:
    """z_y minus the largest other logit [n].

    >>> margin(np.array([[3.0, 1.0, 2.0]]), np.array([1])).tolist()
    [-2.0]
    """
    return by_blocks(_margin, logits, labels)


def _margin(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Floats:
    z = logits.astype(np.float64)
    own = np.take_along_axis(z, labels[:, None], axis=1)[:, 0]
    np.put_along_axis(z, labels[:, None], -np.inf, axis=1)
    return own - _max(z)


def label_scores(logits: NDArray[np.floating], tangents: NDArray[np.floating]) -> Floats:
    """The score the row would have with each label, [n, C]: s(c) = sum_k p_k (t_k - t_c).

    Tangents are taken relative to the most probable class m, so that s(m) = sum_{k != m} p_k (t_k - t_m) is a sum of
    small terms, not a difference of large ones.  Two labels' scores differ by t_a - t_c: the best has the least t.

    >>> label_scores(np.array([[0.0, 0.0]]), np.array([[1.0, -1.0]])).tolist()
    [[-1.0, 1.0]]
    >>> s = label_scores(np.array([[0.0, 100.0]]), np.array([[2.0, 1.0]]))  # naively 1 - 1 = 0
    >>> bool(np.isclose(s[0, 1], np.exp(-100.0), rtol=1e-12))
    True
    """
    return by_blocks(_label_scores, logits, tangents)


def _label_scores(logits: NDArray[np.floating], tangents: NDArray[np.floating]) -> Floats:
    p = _softmax(logits)
    t = tangents.astype(np.float64)
    gaps = t - np.take_along_axis(t, p.argmax(axis=1)[:, None], axis=1)
    return _sum(p * gaps)[:, None] - gaps


def of_label(scores: Floats, labels: NDArray[np.int64]) -> Floats:
    """The entry of each row's own label [n] in [n, C]."""
    return np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]


def most_probable(
    logits: NDArray[np.floating], other_than: NDArray[np.int64] | None, classes: int
) -> tuple[NDArray[np.int64], Floats]:
    """The most probable of the first ``classes`` [n], other than a label [n] if one is given, and its probability [n].

    NaN where that is not finite, and where there is no other class.  Probabilities [n, C] are in memory for some rows.

    >>> label, probability = most_probable(np.log([[0.6, 0.3, 0.1]]), np.array([0]), 3)
    >>> label.tolist(), probability.round(3).tolist()
    ([1], [0.3])
    """
    label, probability = np.empty(len(logits), np.int64), np.empty(len(logits))
    for first in range(0, len(logits), BLOCK):
        here = slice(first, first + BLOCK)
        among = softmax(logits[here])
        if other_than is not None:
            np.put_along_axis(among, other_than[here, None], -1.0, axis=1)
        among = among[:, :classes]
        label[here], highest = among.argmax(axis=1), among.max(axis=1)
        probability[here] = np.where(np.isfinite(highest) & (highest >= 0.0), highest, np.nan)
    return label, probability

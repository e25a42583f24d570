"""Scores and losses as functions of cached logits and logit tangents, for any label, in float64.

With logits z [n, C], logit tangents t = J u [n, C] and p = softmax(z), the directional derivative of the row's
cross-entropy with label y along u is

    s(y) = (p - e_y) . t = sum_c p_c (t_c - t_y)

The second form is exact to rounding at any margin; the first loses up to all digits when p is nearly e_y.
Logits and tangents are cached without the label, so the score with every label is arithmetic.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def softmax(logits: NDArray[np.floating]) -> Floats:
    """Probabilities [n, C].

    >>> softmax(np.array([[0.0, 0.0]]))
    array([[0.5, 0.5]])
    """
    z = logits.astype(np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def cross_entropy(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Floats:
    """Each row's loss [n], no reduction: log sum_c exp(z_c - z_y).

    >>> bool(np.isclose(cross_entropy(np.array([[0.0, 0.0]]), np.array([1]))[0], np.log(2)))
    True
    """
    z = logits.astype(np.float64)
    gaps = z - np.take_along_axis(z, labels[:, None], axis=1)
    top = gaps.max(axis=1)
    return top + np.log(np.exp(gaps - top[:, None]).sum(axis=1))


def margin(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Floats:
    """z_y minus the largest other logit [n].

    >>> margin(np.array([[3.0, 1.0, 2.0]]), np.array([1])).tolist()
    [-2.0]
    """
    z = logits.astype(np.float64)
    own = np.take_along_axis(z, labels[:, None], axis=1)[:, 0]
    others = z.copy()
    np.put_along_axis(others, labels[:, None], -np.inf, axis=1)
    return own - others.max(axis=1)


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
    p = softmax(logits)
    t = tangents.astype(np.float64)
    gaps = t - np.take_along_axis(t, p.argmax(axis=1)[:, None], axis=1)
    return (p * gaps).sum(axis=1, keepdims=True) - gaps


def of_label(scores: Floats, labels: NDArray[np.int64]) -> Floats:
    """The entry of each row's own label [n] in [n, C]."""
    return np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]

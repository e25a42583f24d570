"""Which rows become canaries, and which wrong label each gets: class by class, by hashes of ids.

Planted labels are drawn from the mean predicted probabilities of an earlier model (its confusion), or uniformly.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.errors import UsageError
from influence_cli.maths.labels import softmax

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
LEAST_LEFT = 5  # rows of a class that keep their label


def uniform_noise(classes: int) -> Floats:
    """Every other class alike [C, C].

    Raises:
        UsageError: there is no other class.
    """
    if classes < 2:
        raise UsageError("canaries need a second class, and the data have one", fix="leave --canaries out")
    return (1.0 - np.eye(classes)) / (classes - 1)


def confusion_noise(logits: NDArray[np.floating], labels: Ints) -> Floats:
    """Mean probability of every other class, by labelled class [C, C], rows summing to 1.

    A hundredth of the uniform noise is mixed in; a class without rows has nothing else.
    """
    classes = logits.shape[1]
    probability = softmax(logits)
    matrix = np.zeros((classes, classes))
    for c in np.unique(labels):
        matrix[c] = probability[labels == c].mean(axis=0)
    np.fill_diagonal(matrix, 0.0)
    total = matrix.sum(axis=1, keepdims=True)
    uniform = uniform_noise(classes)
    return np.where(total > 0, 0.99 * matrix / np.where(total > 0, total, 1.0) + 0.01 * uniform, uniform)


def plant(rows: Rows, may: NDArray[np.bool_], share: float, noise: Floats, seed: int) -> Ints:
    """Planted labels [n], -1 where the row keeps its own: floor(share * rows that may), about that share of each class.

    No class gives more than max(2 share, share + 0.05) of its rows, and each keeps at least five.  Which rows, and
    their labels, come from hashes of (seed, id): other rows do not matter, but for the numbers a class.

    Raises:
        UsageError: no row can be planted.
    """
    labels, sizes = rows.labels, np.bincount(rows.labels[may], minlength=len(noise))
    wanted = _by_class(sizes, share)
    planted = np.full(len(rows), -1, dtype=np.int64)
    place, draw = (_hashed(rows.ids, seed, what) for what in ("canary", "canary label"))
    order = np.argsort(place, kind="stable")
    for c, count in enumerate(wanted.tolist()):
        chosen = order[(may & (labels == c))[order]][:count]
        planted[chosen] = np.minimum(np.searchsorted(np.cumsum(noise[c]), draw[chosen], side="right"), len(noise) - 1)
    if not (planted >= 0).any():
        raise UsageError(f"a share of {share:.3g} of {int(may.sum())} rows is no canary", fix="raise --canaries")
    return planted


def _by_class(sizes: Ints, share: float) -> Ints:
    """Canaries of each class: its share, rounded by the largest remainder, within the guard."""
    exact = share * sizes
    most = np.minimum(np.floor(max(2 * share, share + 0.05) * sizes), sizes - LEAST_LEFT).clip(0).astype(np.int64)
    counts = np.minimum(np.floor(exact + 1e-9).astype(np.int64), most)
    left = int(np.floor(exact.sum() + 1e-9)) - int(counts.sum())
    for c in np.argsort(-(exact - np.floor(exact + 1e-9)), kind="stable").tolist():
        if left > 0 and counts[c] < most[c]:
            counts[c] += 1
            left -= 1
    return counts


def _hashed(ids: list[str], seed: int, what: str) -> Floats:
    """Uniform draws on [0, 1) from (seed, what, id) [n]; not the draws of the method ``random``."""
    salt = f"{seed}:{what}".encode()
    digests = [hashlib.blake2b(i.encode(), digest_size=8, key=salt).digest() for i in ids]
    return np.frombuffer(b"".join(digests), dtype="<u8") / 2.0**64

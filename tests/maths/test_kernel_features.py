"""Features of a kernel: their products are the kernel itself, and a linear function of them bends.

Reference: the kernel of every pair, by its equation.

python -m pytest tests/maths/test_kernel_features.py
"""

from __future__ import annotations

import numpy as np

from influence_cli.maths.corrected_probe import standardised
from influence_cli.maths.kernel_features import WIDTH, kernel_features


def drawn(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 5)) * [1, 2, 3, 4, 5]


def kernel(x: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of others [m, d] with rows x [n, d], pair by pair."""
    a, b = (standardised(v, x) for v in (others, x))
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    middle = np.median([((p - q) ** 2).sum() for k, p in enumerate(b) for q in b[:k]])
    return np.array([[np.exp(-WIDTH * ((p - q) ** 2).sum() / middle) for q in b] for p in a])


def test_products_are_the_centred_kernel_where_all_rows_are_landmarks() -> None:
    x, others = drawn(40, 0), drawn(7, 1)
    z, of_others = kernel_features(x, others, np.random.default_rng(2).permutation(40))
    own, theirs = kernel(x, x), kernel(x, others)
    wanted = own - own.mean(axis=0) - own.mean(axis=1, keepdims=True) + own.mean()
    np.testing.assert_allclose(z @ z.T, wanted, atol=2e-5)  # directions below 1e-6 of the largest are left out
    wanted = theirs - own.mean(axis=0) - theirs.mean(axis=1, keepdims=True) + own.mean()
    np.testing.assert_allclose(of_others @ z.T, wanted, atol=2e-5)


def test_the_order_of_rows_beside_the_landmarks_is_no_matter() -> None:
    x = drawn(60, 3)
    z, _ = kernel_features(x, x[:0], np.arange(30))
    moved, _ = kernel_features(x[np.r_[0:30, 59:29:-1]], x[:0], np.arange(30))
    order = np.r_[0:30, 59:29:-1]  # no matter: eigenvectors may turn round, and products stay
    np.testing.assert_allclose(moved @ moved.T, (z @ z.T)[np.ix_(order, order)], atol=1e-9)
    assert z.shape == (60, 30)


def test_rows_that_are_all_alike_have_no_features() -> None:
    z, others = kernel_features(np.ones((6, 3)), np.ones((2, 3)), np.arange(6))
    assert np.abs(z).max() < 1e-9
    assert np.abs(others).max() < 1e-9

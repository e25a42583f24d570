"""Confident learning (methods.md T56): a toy whose joint is known, and a loop over rows in plain Python.

python -m pytest tests/maths/test_confident.py
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from influence_cli.maths.confident import joint_of, likely_classes, thresholds, wrong_interval


def drawn(seed: int, n: int, classes: int, wrong: float = 0.12) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    """Out-of-fold probabilities, labels and how many of them are wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    z = rng.normal(size=(n, classes))
    z[np.arange(n), truth] += 3.0 + rng.normal(size=n)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    flipped = rng.random(n) < wrong
    labels = np.where(flipped, (truth + rng.integers(1, classes, n)) % classes, truth)
    return p, labels, int(flipped.sum())


def by_loop(p: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[list[float], list[int], list[list[float]]]:
    """Thresholds, likely classes and the calibrated joint, row by row."""
    n, classes = p.shape
    t = []
    for k in range(classes):
        own = [float(p[i, k]) for i in range(n) if labels[i] == k]
        t.append(math.fsum(own) / len(own) if own else math.inf)
    likely = []
    for i in range(n):
        reached = [(float(p[i, k]), -k) for k in range(classes) if p[i, k] >= t[k]]
        likely.append(-max(reached)[1] if reached else -1)
    counts = [[0.0] * classes for _ in range(classes)]
    for i in range(n):
        if likely[i] >= 0:
            counts[labels[i]][likely[i]] += 1
    for y in range(classes):
        total, size = sum(counts[y]), sum(int(label) == y for label in labels)
        counts[y] = [c * size / total for c in counts[y]] if total else [size * float(k == y) for k in range(classes)]
    return t, likely, counts


@pytest.mark.parametrize(("seed", "n", "classes"), [(0, 400, 3), (1, 700, 6), (2, 30, 10)])
def test_t56_counts_are_those_of_a_loop(seed: int, n: int, classes: int) -> None:
    p, labels, _ = drawn(seed, n, classes)
    labels[labels == classes - 1] = 0  # a class that no row is labelled with
    t, likely, counts = by_loop(p, labels)
    found = joint_of(p, labels)
    np.testing.assert_allclose(found.thresholds[:-1], t[:-1], rtol=1e-12)
    assert math.isnan(found.thresholds[-1])
    assert likely_classes(p, found.thresholds).tolist() == likely
    np.testing.assert_allclose(found.counts, counts, rtol=1e-12, atol=1e-12)
    assert found.counts.sum() == pytest.approx(n, rel=1e-12)
    assert found.wrong == pytest.approx(n - sum(counts[k][k] for k in range(classes)), rel=1e-12, abs=1e-9)


def test_t56_a_toy_whose_joint_is_known() -> None:
    """Models that are sure and right: the joint is that of labels and truths, exactly."""
    truth = np.repeat([0, 1, 2], [50, 30, 20])
    labels = truth.copy()
    labels[[0, 1, 2, 50, 80, 81]] = [1, 1, 2, 0, 1, 1]
    p = np.full((100, 3), 0.05)
    p[np.arange(100), truth] = 0.9
    joint = joint_of(p, labels).counts
    expected = np.zeros((3, 3))
    np.add.at(expected, (labels, truth), 1.0)
    np.testing.assert_allclose(joint, expected, atol=1e-12)
    assert joint_of(p, labels).wrong == pytest.approx(6, abs=1e-12)


def test_rows_that_count_twice_are_rows_twice() -> None:
    p, labels, _ = drawn(3, 60, 4)
    times = np.random.default_rng(0).integers(0, 4, 60)
    every = np.repeat(np.arange(60), times)
    weighted, repeated = joint_of(p, labels, times.astype(np.float64)), joint_of(p[every], labels[every])
    np.testing.assert_allclose(weighted.counts, repeated.counts, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(thresholds(p, labels, times.astype(float)), repeated.thresholds, rtol=1e-12)


def test_large_tables_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    p, labels, _ = drawn(4, 101, 5)
    t = thresholds(p, labels, np.ones(101))
    whole = likely_classes(p, t)
    monkeypatch.setattr("influence_cli.maths.confident.VALUES_AT_ONCE", 35)
    np.testing.assert_array_equal(likely_classes(p, t), whole)


def test_the_interval_holds_what_endlessly_many_rows_would_say() -> None:
    """In about 95 of 100 samples of one population of rows."""
    n, inside, draws = 400, 0, 40
    p, labels, _ = drawn(5, 50_000, 4)
    share = joint_of(p, labels).wrong / 50_000
    for k in range(draws):
        some, given, _ = drawn(100 + k, n, 4)
        low, high = wrong_interval(some, given, 60, k)
        inside += low <= share * n <= high
    assert 0.88 * draws <= inside <= draws
    assert wrong_interval(p[:n], labels[:n], 50, 3) == wrong_interval(p[:n], labels[:n], 50, 3)

"""Nearest neighbours and near pairs in blocks, against brute force over all pairs in float64.

python -m pytest tests/maths/test_neighbours.py
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from influence_cli.maths.neighbours import METRICS, NONE, Nearest, nearest, pairs_within

BLOCKS = [(1, 1), (7, 3), (1024, 4096)]


def distance(a: NDArray[np.floating], b: NDArray[np.floating], metric: str) -> float:
    """By the definition, with exact sums."""
    x, y = [float(v) for v in a], [float(v) for v in b]
    if metric == "euclidean":
        return math.dist(x, y)
    lengths = math.hypot(*x), math.hypot(*y)
    if 0.0 in lengths:
        return 0.0 if lengths == (0.0, 0.0) else 1.0
    return math.fsum((u / lengths[0] - v / lengths[1]) ** 2 for u, v in zip(x, y, strict=True)) / 2


def brute_force(
    a: NDArray[np.floating], b: NDArray[np.floating], k: int, metric: str, order: NDArray[np.int64], own: list[int]
) -> tuple[list[list[int]], list[list[float]]]:
    places, distances = [], []
    for i, row in enumerate(a):
        measured = [(distance(row, other, metric), int(order[j]), j) for j, other in enumerate(b) if j != own[i]]
        best = sorted(measured)[:k]
        places.append([j for _, _, j in best])
        distances.append([d for d, _, _ in best])
    return places, distances


def vectors(seed: int, n: int, d: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_neighbours_are_those_of_brute_force_whatever_the_blocks(metric: str, blocks: tuple[int, int]) -> None:
    a, b = vectors(0, 23), vectors(1, 31)
    order = np.random.default_rng(2).permutation(31)
    found = nearest(a, b, 5, metric, order=order, blocks=blocks)
    places, distances = brute_force(a, b, 5, metric, order, [NONE] * 23)
    assert found.places.tolist() == places
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("metric", METRICS)
def test_no_bit_depends_on_the_blocks(metric: str) -> None:
    a, b = vectors(3, 40, 17), vectors(4, 300, 17) * np.float32(1e3)
    runs = [nearest(a, b, 9, metric, blocks=blocks) for blocks in [*BLOCKS, (13, 100)]]
    for other in runs[1:]:
        assert np.array_equal(runs[0].places, other.places)
        assert np.array_equal(runs[0].distances, other.distances)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_equal_distances_are_in_the_given_order(metric: str, blocks: tuple[int, int]) -> None:
    """Few distinct vectors, so that nearly every neighbour is tied with others, beyond the k-th too."""
    few = np.random.default_rng(5).integers(0, 2, size=(60, 3)).astype(np.float32)
    order = np.random.default_rng(6).permutation(60)
    own = np.arange(60)
    found = nearest(few, few, 7, metric, order=order, own=own, blocks=blocks)
    places, _ = brute_force(few, few, 7, metric, order, own.tolist())
    exact = metric == "euclidean"  # sums of squares of whole numbers have no rounding
    if exact:
        assert found.places.tolist() == places
    shuffled = np.random.default_rng(7).permutation(60)
    again = nearest(few[shuffled], few[shuffled], 7, metric, order=order[shuffled], own=own, blocks=blocks)
    assert np.array_equal(order[found.places][shuffled], order[shuffled][again.places])


def test_a_row_is_not_its_own_neighbour_and_its_twin_is() -> None:
    x = vectors(8, 20)
    x[7] = x[3]
    found = nearest(x, x, 2, "euclidean", own=np.arange(20))
    assert not (found.places == np.arange(20)[:, None]).any()
    assert (found.places[3, 0], found.distances[3, 0]) == (7, 0.0)
    assert (found.places[7, 0], found.distances[7, 0]) == (3, 0.0)


def test_near_vectors_far_from_zero_are_told_apart() -> None:
    """The product loses all digits of these distances; the measured pairs lose none."""
    x = np.full((50, 4), 1e6) + np.random.default_rng(9).normal(size=(50, 4)) * 1e-6
    for metric in METRICS:
        found = nearest(x, x, 3, metric, own=np.arange(50), blocks=(8, 8))
        places, distances = brute_force(x, x, 3, metric, np.arange(50), list(range(50)))
        if metric == "euclidean":
            assert found.places.tolist() == places
        np.testing.assert_allclose(found.distances, distances, rtol=1e-3 if metric == "cosine" else 1e-12, atol=1e-30)


def test_zeros_have_a_direction_of_their_own() -> None:
    x = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    found = nearest(x, x, 4, "cosine", own=np.arange(5))
    assert found.places[0].tolist() == [1, 2, 3, 4]
    assert found.distances[0].tolist() == [0.0, 1.0, 1.0, 1.0]
    assert found.places[2].tolist() == [3, 0, 1, 4]
    assert found.distances[2].tolist() == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("metric", METRICS)
def test_vectors_that_are_not_finite_have_no_neighbours_and_are_none(metric: str) -> None:
    x = vectors(10, 12)
    x[4, 2], x[9, 0] = np.nan, np.inf
    found = nearest(x, x, 3, metric, own=np.arange(12), blocks=(5, 4))
    assert (found.places[[4, 9]] == NONE).all()
    assert np.isnan(found.distances[[4, 9]]).all()
    others = np.delete(np.arange(12), [4, 9])
    assert not np.isin(found.places[others], [4, 9]).any()
    assert (found.places[others] != NONE).all()


def test_fewer_vectors_than_neighbours_leave_places_empty() -> None:
    found: Nearest = nearest(vectors(11, 2), vectors(12, 3), 5, blocks=(1, 2))
    assert (found.places[:, 3:] == NONE).all()
    assert (np.sort(found.places[:, :3], axis=1) == np.arange(3)).all()
    with pytest.raises(ValueError, match="not positive"):
        nearest(vectors(11, 2), vectors(12, 3), 0)
    with pytest.raises(ValueError, match="unknown"):
        nearest(vectors(11, 2), vectors(12, 3), 1, "manhattan")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_pairs_within_a_limit_are_those_of_brute_force(metric: str, blocks: tuple[int, int]) -> None:
    x = vectors(13, 45, 3)
    x[40], x[44] = x[2], x[2]
    x[11, 1] = np.nan
    usable = [i for i in range(45) if i != 11]
    every = {(i, j): distance(x[i], x[j], metric) for i in usable for j in usable if i < j}
    limit = sorted(every.values())[60] * (1 + 1e-9)
    found = {
        (int(i), int(j)): float(d)
        for some in pairs_within(x, limit, metric, blocks=blocks)
        for i, j, d in zip(*some, strict=True)
    }
    expected = {pair: d for pair, d in every.items() if d <= limit}
    assert found.keys() == expected.keys()
    assert (2, 40) in found
    np.testing.assert_allclose([found[p] for p in expected], list(expected.values()), rtol=1e-9, atol=1e-15)

"""Agreement of labels with what foretells them, held against every permutation (maths.agreement).

python -m pytest tests/maths/test_agreement.py
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from influence_cli.maths.agreement import agreement


def test_what_is_beyond_chance_is_so_by_the_moments_of_all_permutations() -> None:
    foretold, labels = np.array([0, 0, 1, 2, 2, 0, 1]), np.array([0, 0, 1, 2, 2, 0, 0])
    every = np.array([(np.array(p) == foretold).sum() for p in permutations(labels.tolist())], dtype=np.float64)
    found = agreement(foretold, labels)
    assert found.by_chance == pytest.approx(every.mean() / 7)
    for moved in range(7):  # labels that agree less and less
        other = np.roll(labels, moved)
        wanted = (other == foretold).sum() > every.mean() + 1.96 * every.std()
        assert agreement(foretold, other).beyond_chance == wanted
    assert found.beyond_chance


def test_naming_one_class_is_no_agreement_and_random_labels_rarely_are() -> None:
    labels = np.repeat([0, 1], [95, 5])
    found = agreement(np.zeros(100, dtype=np.int64), labels)
    assert (found.share, found.most_frequent, found.beyond_chance, found.beyond_most_frequent) == (
        0.95,
        0.95,
        False,
        False,
    )
    weak = labels.copy()
    weak[:5] = 1  # beyond chance, and yet no better than always the most frequent class
    assert (agreement(weak, labels).beyond_chance, agreement(weak, labels).beyond_most_frequent) == (True, False)
    rng, told = np.random.default_rng(0), 0
    for _ in range(200):
        told += agreement(rng.integers(0, 4, 80), rng.integers(0, 4, 80)).beyond_chance
    assert told <= 12  # by chance 5 of 200


def test_no_rows_and_one_row_agree_in_nothing_that_counts() -> None:
    none = np.empty(0, dtype=np.int64)
    assert not agreement(none, none).beyond_chance
    assert not agreement(np.array([1]), np.array([1])).beyond_chance

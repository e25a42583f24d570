"""Probabilities averaged over deals of folds, and whether target labels look cleaner (averaged_probe).

python -m pytest tests/maths/test_averaged_probe.py
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from influence_cli.maths.averaged_probe import Labelled, averaged, looks_cleaner
from influence_cli.maths.corrected_probe import CorrectedProbe, Rows
from influence_cli.maths.labels import softmax

CLASSES, FOLDS = 3, 4


def drawn(n: int, seed: int, wrong: float) -> tuple[Labelled, np.ndarray]:
    """Rows of three groups of features, of which a share has a wrong label, in two deals; and their truths."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES, n)
    x = np.eye(CLASSES)[truth] * 2.0 + rng.normal(size=(n, CLASSES))
    y = np.where(rng.random(n) < wrong, (truth + rng.integers(1, CLASSES, n)) % CLASSES, truth)
    return Labelled(x - x.mean(axis=0), y, [rng.permutation(n) % FOLDS for _ in range(2)]), truth


def test_the_mean_is_that_of_the_logs_of_each_deal() -> None:
    rows, target = drawn(300, 0, 0.3)[0], drawn(90, 1, 0.0)[0]
    found = averaged(rows, target, CLASSES, FOLDS, 10)
    assert found.cleaner
    each = [
        CorrectedProbe(rows.dealt(k), target.dealt(k), CLASSES, FOLDS, 10).probabilities() for k in (0, 1)
    ]  # fmt: skip
    for mine, parts in ((found.p, [p for p, _ in each]), (found.of_target, [v for _, v in each])):
        np.testing.assert_allclose(mine, softmax(np.mean(np.log(parts), axis=0)), rtol=1e-7)


def test_no_probability_depends_on_the_label_of_its_row() -> None:
    rows, target = drawn(120, 2, 0.3)[0], drawn(60, 3, 0.3)[0]
    found = averaged(rows, target, CLASSES, FOLDS, 10)
    for k in (0, 17):
        y = rows.y.copy()
        y[k] = (y[k] + 1) % CLASSES
        other = averaged(replace(rows, y=y), target, CLASSES, FOLDS, 10)
        assert other.cleaner == found.cleaner
        np.testing.assert_allclose(other.p[k], found.p[k], rtol=1e-9)
        assert np.abs(other.p - found.p).max() > 1e-6


def test_target_rows_that_are_no_cleaner_are_plain_rows_in_the_second_deal() -> None:
    rows, target = drawn(400, 4, 0.4)[0], drawn(200, 5, 0.4)[0]
    found = averaged(rows, target, CLASSES, FOLDS, 10)
    assert not found.cleaner
    first, _ = CorrectedProbe(rows.dealt(0), target.dealt(0), CLASSES, FOLDS, 10).probabilities()
    both = Rows(*(np.concatenate(parts) for parts in zip(*(
        (r.x, r.y, r.folds[1]) for r in (rows, target)), strict=True)))  # fmt: skip
    second, _ = CorrectedProbe(both, target.dealt(1).where([]), CLASSES, FOLDS, 10).probabilities()
    np.testing.assert_allclose(found.p, softmax((np.log(first) + np.log(second[:400])) / 2), rtol=1e-7)


@pytest.mark.parametrize(("wrong", "of_target", "expected"), [(0.3, 0.0, 1.0), (0.3, 0.3, 0.05), (0.1, 0.3, 0.0)])
def test_how_often_target_labels_look_cleaner(wrong: float, of_target: float, expected: float) -> None:
    said = []
    for seed in range(60):
        (rows, truth), (target, of_held) = drawn(600, seed, wrong), drawn(300, 1000 + seed, of_target)
        said.append(looks_cleaner(np.eye(CLASSES)[truth], rows.y, np.eye(CLASSES)[of_held], target.y))
    assert np.mean(said) == pytest.approx(expected, abs=0.1)


def test_without_target_rows_nothing_is_in_doubt() -> None:
    rows, none = drawn(100, 6, 0.2)[0], Labelled(np.empty((0, CLASSES)), np.empty(0, int), [np.empty(0, int)] * 2)
    found = averaged(rows, none, CLASSES, FOLDS, 10)
    assert found.cleaner
    assert found.of_target.shape == (0, CLASSES)
    assert (found.p.argmax(axis=1) == drawn(100, 6, 0.2)[1]).mean() > 0.7

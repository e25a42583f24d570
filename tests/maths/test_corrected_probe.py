"""Probabilities that no label of a row's fold changes, and the number of wrong labels (corrected_probe, wrong_count).

Reference: ridge regression solved densely over the rows and target rows one by one; the mixture of its parts by hand.

python -m pytest tests/maths/test_corrected_probe.py
"""

from __future__ import annotations

import numpy as np
import pytest

from influence_cli.maths.corrected_probe import RIDGE, CorrectedProbe, Rows, _Ridge, confusion, standardised
from influence_cli.maths.ranking import Ladder, found
from influence_cli.maths.wrong_count import wrong_labels

FOLDS, CLASSES = 4, 3
NONE = Rows(np.empty((0, 6)), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


def drawn(rows: int, seed: int, wrong: float = 0.0) -> tuple[Rows, np.ndarray]:
    """Three clouds of points in six dimensions, dealt into folds, some labels wrong by one class; and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES, rows)
    x = rng.normal(size=(rows, 6)) + 1.6 * np.eye(6)[truth]
    labels = np.where(rng.random(rows) < wrong, (truth + 1) % CLASSES, truth)
    return Rows(standardised(x, x), labels, rng.permutation(rows) % FOLDS), truth


def average_precision(score: np.ndarray, wrong: np.ndarray) -> float:
    return float(found(Ladder.of(-score), wrong, np.ones((1, len(wrong)), np.int64)).average_precision()[0])


def margins(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    own = p[np.arange(len(labels)), labels]
    return np.log(own) - np.log(1 - own)


@pytest.mark.parametrize("target", [NONE, drawn(40, 5)[0]])
def test_no_label_of_a_fold_changes_the_probabilities_of_its_rows(target: Rows) -> None:
    rows, _ = drawn(160, 1, wrong=0.3)
    fold = 2
    other = Rows(rows.x, np.where(rows.fold == fold, (rows.y + 1) % CLASSES, rows.y), rows.fold)
    before, after = (CorrectedProbe(r, target, CLASSES, FOLDS, 10).probabilities()[0] for r in (rows, other))
    mine = rows.fold == fold
    assert np.array_equal(before[mine], after[mine])
    assert not np.allclose(before[~mine], after[~mine])  # they learn from the labels that are not theirs
    assert before.sum(axis=1) == pytest.approx(1.0)


def test_a_ridge_regression_is_that_of_the_rows_outside_and_of_weighted_target_rows() -> None:
    rows, target = drawn(90, 2, wrong=0.2)[0], drawn(15, 3)[0]
    ridge = _Ridge(CorrectedProbe(rows, target, CLASSES, FOLDS))
    assert ridge.weight == 3.0  # half of 90 rows over 15
    outside, theirs = (~np.isin(part.fold, [0, 3]) for part in (rows, target))
    x = np.concatenate([rows.x[outside], *[target.x[theirs]] * 3])
    y = np.eye(CLASSES)[np.concatenate([rows.y[outside], *[target.y[theirs]] * 3])] - 1 / CLASSES
    gram = x.T @ x
    gram += RIDGE * np.trace(gram) / 6 * np.eye(6)
    assert ridge.on_labels((3, 0)) == pytest.approx(np.linalg.solve(gram, x.T @ y), rel=1e-9)


def test_wrong_labels_are_found_better_than_by_a_probe_on_the_given_labels() -> None:
    rows, truth = drawn(1500, 4, wrong=0.35)
    p, _ = CorrectedProbe(rows, drawn(150, 6)[0], CLASSES, FOLDS, 30).probabilities()
    plain = np.empty_like(p)
    for f in range(FOLDS):
        used = rows.fold != f
        theta = np.linalg.lstsq(rows.x[used], np.eye(CLASSES)[rows.y[used]] - 1 / CLASSES, rcond=None)[0]
        plain[~used] = rows.x[~used] @ theta
    own = plain[np.arange(len(truth)), rows.y]
    others = np.where(np.eye(CLASSES)[rows.y] > 0, -np.inf, plain).max(axis=1)
    wrong = rows.y != truth
    assert average_precision(margins(p, rows.y), wrong) > average_precision(own - others, wrong) + 0.03


def test_the_order_of_rows_is_no_matter() -> None:
    rows, target = drawn(120, 7, wrong=0.2)[0], drawn(30, 8)[0]
    order = np.random.default_rng(0).permutation(120)
    moved = Rows(rows.x[order], rows.y[order], rows.fold[order])
    first, second = (CorrectedProbe(r, target, CLASSES, FOLDS, 10).probabilities()[0] for r in (rows, moved))
    assert second == pytest.approx(first[order], abs=1e-6)


def test_which_labels_are_mistaken_for_which_is_found_again() -> None:
    rng = np.random.default_rng(9)
    truth = rng.integers(0, CLASSES, 6000)
    matrix = np.array([[0.7, 0.2, 0.1], [0.0, 0.9, 0.1], [0.3, 0.1, 0.6]])
    labels = np.array([rng.choice(CLASSES, p=matrix[k]) for k in truth])
    sure = np.where(np.eye(CLASSES)[truth] > 0, 0.96, 0.02)
    assert confusion(sure, labels) == pytest.approx(matrix, abs=0.04)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4])
def test_the_number_of_wrong_labels_is_within_its_interval(share: float) -> None:
    rows, truth = drawn(2000, 10, wrong=share)
    target = drawn(400, 11)[0]
    p, of_target = CorrectedProbe(rows, target, CLASSES, FOLDS, 30).probabilities()
    said = wrong_labels(p, rows.y, of_target, target.y)
    low, high = said.interval
    assert said.tells
    assert low <= said.count <= high
    assert low <= (rows.y != truth).sum() <= high
    assert high - low < 350  # of 2,000, mistakes that are like what rows look like included


def test_the_number_is_the_mixture_of_what_right_and_wrong_target_labels_look_like() -> None:
    p, labels = np.array([[0.9, 0.1]] * 4 + [[0.2, 0.8]] * 4), np.array([0, 0, 0, 1, 1, 1, 1, 0])
    held, of_held = np.array([[0.7, 0.3]] * 30 + [[0.3, 0.7]] * 30), np.array([0] * 30 + [1] * 30)
    said = wrong_labels(p, labels, held, of_held)

    def doubted(prob: list[float], label: int) -> float:
        joint = np.array(prob) * said.matrix[:, label]
        return float(1 - joint[label] / joint.sum())

    mix = 0.625, 0.375  # of classes among the rows: the mean of p, [0.55, 0.45], is that of [0.7, 0.3] and [0.3, 0.7]
    right = mix[0] * doubted([0.7, 0.3], 0) + mix[1] * doubted([0.3, 0.7], 1)
    wrong = mix[0] * doubted([0.7, 0.3], 1) + mix[1] * doubted([0.3, 0.7], 0)
    mean = np.mean([doubted(row.tolist(), y) for row, y in zip(p, labels.tolist(), strict=True)])
    assert said.count == pytest.approx(8 * (mean - right) / (wrong - right), rel=1e-6)
    alone = wrong_labels(p, labels, held[:0], of_held[:0])
    assert alone.count == pytest.approx(8 * mean, rel=1e-6)
    assert alone.apart is None


@pytest.mark.parametrize("likeness", [0.0, 0.5])
def test_mistakes_that_are_made_where_rows_are_hard_are_counted_within_the_interval(likeness: float) -> None:
    """Half as many among the surer rows as among the others; towards what a row looks like, or towards any class."""
    rng, (rows, truth), target = np.random.default_rng(14), drawn(3000, 13), drawn(500, 15)[0]
    p, of_target = CorrectedProbe(rows, target, CLASSES, FOLDS, 30).probabilities()
    sure = p.max(axis=1) > np.median(p.max(axis=1))
    others = np.where(np.eye(CLASSES)[truth] > 0, 0.0, p**likeness)
    looks = np.array([rng.choice(CLASSES, p=row / row.sum()) for row in others])
    labels = np.where(rng.random(3000) < np.where(sure, 0.15, 0.3), looks, truth)
    said = wrong_labels(p, labels, of_target, target.y)
    low, high = said.interval
    assert low <= (labels != truth).sum() <= high
    assert low < said.count < high < 0.5 * len(labels)


def test_probabilities_that_say_nothing_tell_no_wrong_labels() -> None:
    rng = np.random.default_rng(12)
    p, held = (rng.dirichlet(np.ones(3), size=k) for k in (300, 100))
    said = wrong_labels(p, rng.integers(0, 3, 300), held, rng.integers(0, 3, 100))
    assert not said.tells

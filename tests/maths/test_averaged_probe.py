"""Probabilities averaged over deals of folds, and whether target labels look cleaner (averaged_probe).

python -m pytest tests/maths/test_averaged_probe.py
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.linear_model import Ridge

from influence_cli.maths.averaged_probe import Labelled, averaged, looks_cleaner, of_given_labels
from influence_cli.maths.corrected_probe import CorrectedProbe, Rows
from influence_cli.maths.labels import softmax
from influence_cli.maths.linear_probe import STRENGTHS

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


@pytest.mark.parametrize("held", [0, 60])
def test_given_labels_are_foretold_by_ridge_regressions_of_other_folds(held: int) -> None:
    rows, target, worth = drawn(240, 7, 0.3)[0], drawn(60, 9, 0.0)[0], 2.0
    target = Labelled(target.x[:held], target.y[:held], [fold[:held] for fold in target.folds])
    x, y = np.concatenate([rows.x, target.x]), np.concatenate([rows.y, target.y])
    x, wanted, weights = (x - x.mean(axis=0)) / x.std(axis=0), np.eye(CLASSES)[y], np.repeat([1.0, worth], [240, held])

    def fitted(used: np.ndarray, strength: float, at: np.ndarray) -> np.ndarray:
        made = Ridge(strength * weights[used].sum(), solver="cholesky")
        return np.asarray(made.fit(x[used], wanted[used], sample_weight=weights[used]).predict(x[at]))

    logs, strengths = [], list(STRENGTHS)
    for own, theirs in zip(rows.folds, target.folds, strict=True):
        fold, z, chosen = np.concatenate([own, theirs]), np.empty((240 + held, CLASSES)), []
        for k in range(FOLDS):
            following, mine = fold == (k + 1) % FOLDS, fold == k
            errors = [
                (weights[following, None] * (fitted(~mine & ~following, s, following) - wanted[following]) ** 2).sum()
                for s in strengths
            ]
            chosen.append(strengths[int(np.argmin(errors))])
            z[mine] = fitted(~mine, chosen[-1], mine)
        scales = np.linspace(0.5, 20.0, 4000)
        likely = [log_softmax(b * z[:240], axis=1)[np.arange(240), rows.y].sum() for b in scales]
        logs.append(log_softmax(scales[int(np.argmax(likely))] * z[:240], axis=1))
        strengths = [sorted(chosen)[FOLDS // 2]]
    found = of_given_labels(rows, target, worth, CLASSES, FOLDS)
    np.testing.assert_allclose(found, softmax(np.mean(logs, axis=0)), atol=2e-3)


def test_a_row_is_given_labels_without_its_own() -> None:
    rows = drawn(120, 8, 0.3)[0]
    none = Labelled(rows.x[:0], rows.y[:0], [rows.y[:0]])
    before = of_given_labels(replace(rows, folds=rows.folds[:1]), none, 1.0, CLASSES, FOLDS)
    mine = rows.folds[0] == 1
    other = Labelled(rows.x, np.where(mine, (rows.y + 1) % CLASSES, rows.y), rows.folds[:1])
    after = of_given_labels(other, none, 1.0, CLASSES, FOLDS)
    odds = [np.log(p[mine]) - np.log(p[mine]).mean(axis=1, keepdims=True) for p in (before, after)]
    ratio = odds[1] / odds[0]  # all labels decide one scale, and nothing else of a row's own
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-6)
    assert np.abs(after - before)[~mine].max() > 1e-3

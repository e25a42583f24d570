"""Two models on the same rows: differences against brute force, coverage, and words of trade-offs.

python -m pytest tests/maths/test_paired_rows.py
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from influence_cli.maths.arms import paired_difference, quadrant
from influence_cli.maths.paired_rows import ROWS, ROWS_AND_DRAWS, OnRows, difference_of_means, differences_on_rows

HIGHER = {"accuracy": True, "balanced_accuracy": True, "loss": False, "dp_gap": False, "eo_gap": False}


def model(seed: int, n: int = 400, better: float = 0.0) -> OnRows:
    """A model that is right a little more often than not, on rows with two labels and two groups."""
    rng = np.random.default_rng(seed)
    labels, groups = np.arange(n) % 2, np.arange(n) // 2 % 2
    logit = (2 * labels - 1) * (0.5 + better) + rng.normal(size=n)
    p = 1.0 / (1.0 + np.exp(-logit))
    return OnRows(np.stack([1 - p, p], axis=1), -np.log(np.where(labels == 1, p, 1 - p)), labels, groups)


def test_measures_are_those_of_the_rows_as_often_as_they_count() -> None:
    rows = model(0, 60)
    counts = np.random.default_rng(1).integers(0, 4, (3, 60))
    found = rows.measures(counts)
    for d, some in enumerate(counts):
        chosen = np.repeat(np.arange(60), some)
        y, g = rows.labels[chosen], rows.groups[chosen]  # type: ignore[index]
        hit, hard = rows.hits[chosen], rows.probability[chosen].argmax(axis=1)
        assert found["accuracy"][d] == pytest.approx(hit.mean())
        assert found["balanced_accuracy"][d] == pytest.approx(np.mean([hit[y == c].mean() for c in (0, 1)]))
        assert found["loss"][d] == pytest.approx(rows.losses[chosen].mean())
        assert found["dp_gap"][d] == pytest.approx(abs(hard[g == 0].mean() - hard[g == 1].mean()))
        gaps = [abs(hard[(g == 0) & (y == c)].mean() - hard[(g == 1) & (y == c)].mean()) for c in (0, 1)]
        assert found["eo_gap"][d] == pytest.approx(sum(gaps))


def test_a_model_against_itself_differs_by_nothing_and_a_better_one_is_better() -> None:
    a, b = model(0), model(0, better=1.0)
    same = differences_on_rows([a], [a], HIGHER)
    assert {(d["mean"], d["half_width"], d["verdict"]) for d in same.values()} == {(0.0, 0.0, "not resolved")}
    found = differences_on_rows([b], [a], HIGHER)
    assert found["accuracy"]["mean"] == pytest.approx(b.hits.mean() - a.hits.mean())
    assert (found["accuracy"]["verdict"], found["loss"]["verdict"]) == ("better", "better")
    assert differences_on_rows([a], [b], HIGHER)["accuracy"]["verdict"] == "worse"
    assert (found["accuracy"]["n"], found["accuracy"]["interval_over"]) == (400, ROWS)


def test_random_draws_of_a_control_widen_the_interval_by_how_far_they_differ() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(1, 500)), rng.normal(size=(5, 500))
    b += np.array([-1.0, -0.5, 0.0, 0.5, 1.0])[:, None]
    plain, drawn = difference_of_means(a, b, True), difference_of_means(a, b, True, random=True)
    assert drawn["mean"] == plain["mean"] == pytest.approx(a.mean() - b.mean())
    assert drawn["half_width"] > 2 * plain["half_width"]
    spread = b.mean(axis=1).std(ddof=1) / np.sqrt(5)
    assert drawn["half_width"] > 2.2 * spread  # Student's, with about 4 degrees of freedom
    assert drawn["interval_over"] == ROWS_AND_DRAWS


def test_the_interval_over_rows_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        a, b = (rng.random((1, 200)) < p for p in (0.8, 0.75))
        d = difference_of_means(a.astype(float), b.astype(float), True)
        covered += abs(d["mean"] - 0.05) <= d["half_width"]
    assert covered / 400 > 0.925


def test_a_few_rows_that_differ_resolve_nothing() -> None:
    a, b = np.ones((1, 300)), np.ones((1, 300))
    b[0, :3] = 0.0
    assert difference_of_means(a, b, True)["verdict"] == "not resolved"
    b[0, :30] = 0.0
    assert difference_of_means(a, b, True)["verdict"] == "better"


def test_differences_say_what_their_interval_is_over() -> None:
    assert paired_difference(np.array([1.0, 2.0]), np.array([0.0, 1.5]), True)["interval_over"] == "seeds"


@pytest.mark.parametrize(
    ("x", "y"),
    list(itertools.permutations(["accuracy", "fairness", "robustness", "balanced accuracy", "x", "y", "loss y "], 2)),
)
def test_words_of_a_trade_off_are_those_of_its_measures(x: str, y: str) -> None:
    assert quadrant(-1.0, 1.0, 0.5, 0.5, x, y) == f"trade-off: {x} down, {y} up"
    assert quadrant(1.0, -1.0, 0.5, 0.5, x, y) == f"trade-off: {x} up, {y} down"

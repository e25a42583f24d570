"""Verdicts on pages: whole words for every measure and direction, and what they say is what was measured.

python -m pytest tests/report/test_verdicts.py
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from influence_cli.maths.arms import mean_interval, paired_difference
from influence_cli.report.answers import answer_of_retrain
from influence_cli.report.page import page
from influence_cli.report.titles import title_of
from influence_cli.stages.retrain.arm_comparison import AXES, METRICS, pareto
from tests.report.test_report import Cells

STEP = {1: 0.05, 0: 0.0, -1: -0.05}  # what an edit changes in a measure
SPREAD = np.array([0.0, 0.002, -0.002])  # over seeds
WORDS = {  # by whether accuracy, and whether what it is held against, gets better
    (1, 1): "improvement", (-1, -1): "deterioration",
    (1, -1): "trade-off: accuracy up, {what} down", (-1, 1): "trade-off: accuracy down, {what} up",
}  # fmt: skip


def comparison(accuracy: int, axis: str, moved: int, name: str = "edit") -> dict[str, Any]:
    """A result of ``retrain``: one edit that moves accuracy, and another measure, up (1), down (-1) or not, surely."""
    values = {
        "no edit": {"accuracy": 0.8 + SPREAD, axis: 0.3 + SPREAD},
        name: {"accuracy": 0.8 + STEP[accuracy] + 0.5 * SPREAD, axis: 0.3 + STEP[moved] + 0.5 * SPREAD},
    }
    values[f"{name}: random trim"] = {"accuracy": 0.8 - SPREAD, axis: 0.3 - SPREAD}

    def between(a: str, b: str, measure: str) -> dict[str, Any]:
        return paired_difference(values[a][measure], values[b][measure], METRICS[measure])

    arms = {
        n: {
            "controls": name if "random" in n else None,
            "train_rows": 90,
            "edits": {} if n == "no edit" else {"trimmed": 10},
            "seeds": {str(k): {m: float(v[k]) for m, v in some.items()} for k in range(3)},
            "mean": {m: mean_interval(v) for m, v in some.items()},
        }
        for n, some in values.items()
    }
    metrics: dict[str, Any] = {"arms": arms, "test_rows": 100, "num_classes": 2}
    others = [n for n in values if n != name]
    metrics["comparison"] = {name: {o: {m: between(name, o, m) for m in ("accuracy", axis)} for o in others}}
    return {**metrics, "pareto": pareto(metrics, 0, between)}


@pytest.mark.parametrize("axis", AXES)
def test_every_combination_of_measures_and_directions_has_its_words(axis: str) -> None:
    for accuracy, moved in itertools.product((1, 0, -1), repeat=2):
        front = comparison(accuracy, axis, moved)["pareto"][axis]
        better = moved if METRICS[axis] else -moved
        expected = WORDS.get((accuracy, better), "not significant").format(what=AXES[axis])
        assert front["points"]["edit"]["verdict"] == expected


def test_a_verdict_stands_on_the_page_as_it_is_and_second_in_its_row() -> None:
    text = page(comparison(-1, "dp_gap", -1))
    verdict = "trade-off: accuracy down, fairness up"
    assert f'<b class="">{verdict}</b>' in text
    (row,) = [row for row in Cells(text).rows if any(verdict in cell for cell in row)]
    assert (row[0], row[1].strip()) == ("edit", verdict)
    better = [row for row in Cells(page(comparison(1, "dp_gap", 0))).rows if row[0] == "edit"]
    assert better[0][1].startswith("better +5.00 ± ")


@pytest.mark.parametrize(
    ("accuracy", "begins"), [(1, "edit helped: +5.00 ± "), (-1, "edit hurt: -5.00 ± "), (0, "edit is not resolved: ")]
)
def test_the_page_begins_with_the_question_and_its_answer(accuracy: int, begins: str) -> None:
    result = comparison(accuracy, "attacked_static", 0)
    text, answer = page(result), answer_of_retrain(result)
    assert answer.startswith(begins)
    assert f'<p class="answer">{answer}</p>' in text
    assert text.index("<h1>") < text.index('class="answer"') < text.index("<nav") < text.index("<table")
    assert title_of(result, "data/train.parquet") == "Does the edit edit of train.parquet help?"


def test_titles_say_what_was_asked() -> None:
    order = {"order": {"columns": ["ip", "loss"], "pairs": []}}
    detection = {n: {} for n in ("ip", "loss", "random")}
    asked = {
        "Do scores of ip and loss find wrong labels in train.parquet?": {"detection": detection},
        "Do scores of ip and loss find the wrong labels planted in train.parquet?": {
            "detection": {}, "canaries": [{"detection": detection}],
        },
        "Do the scores in old.parquet still hold at the checkpoint RUN?": {
            "recompute": True, "a": "x/old.parquet", "b": "y/RUN",
        },
        "Do a.parquet and b.parquet rank the same rows lowest?": {
            "comparison": {"ip": {}}, "a": "a.parquet", "b": "b.parquet",
        },
        "Do scores of ip foretell what training on train.parquet does?": {
            "refit": {}, "lds": {"columns": {"ip": {}, "random": {}}},
        },
        "Do the score tables of train.parquet agree?": {"stability": {}, **order},
        "Which rows of train.parquet are near-duplicates?": {"duplicates": {}},
        "How good is a model trained on train.parquet?": {"arms": {"all rows": {}}, "comparison": {}},
        "Do 4 edits of train.parquet help?": {"arms": {}, "comparison": {name: {} for name in "abcd"}},
    }  # fmt: skip
    for title, result in asked.items():
        assert title_of(result, "data/train.parquet") == title

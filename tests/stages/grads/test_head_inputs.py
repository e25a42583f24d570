"""The model before its last layer is run once for a row: what its check has kept serves factors and scores.

python -m pytest tests/stages/grads/test_head_inputs.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from influence_cli.curvature.head import Head, ModuleAlone
from influence_cli.engines.point import Point
from influence_cli.stages.grads import passes
from tests.opened import score
from tests.oracle import Problem, column, make_problem, relative_error

TRAIN, VAL = 600, 40  # rows; the few on which ways are compared are run some times more


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("head"), "mlp:5", (3,), classes=3, train=TRAIN, val=VAL)


@pytest.fixture
def run_whole(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each time that a whole model was run."""
    found, real = list[int](), Point.logits

    def counting(self: Point, x: Tensor, selected: Any = None) -> Tensor:
        if not isinstance(self.model, ModuleAlone):
            found.append(len(x))
        return real(self, x, selected)

    monkeypatch.setattr(Point, "logits", counting)
    return found


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((name, {"damping": 0.1}) for name in ("ekfac", "datainf", "cg")),
        ("gex", {"members": 3, "rate": 0.05, "epochs": 1.0}),  # whose head alone is trained on
    ],
)
def test_scores_are_those_of_the_whole_model_at_one_pass_a_row(
    problem: Problem, method: str, options: dict[str, Any], run_whole: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"methods": (method,), "params": "last", "options": {method: options}}
    found = score(problem.job(**asked))
    kept = sum(run_whole)
    monkeypatch.setattr(passes, "_head_inputs", lambda *_: None)
    run_whole.clear()
    expected = score(problem.job(**asked))
    assert kept < (3 if method == "gex" else 2) * TRAIN
    assert round((sum(run_whole) - kept) / TRAIN) == (3 if method == "gex" else 1)
    for name in ("score", "loss", "margin"):
        assert relative_error(column(found, name), column(expected, name)) < 1e-10


@pytest.mark.parametrize("method", ["ekfac", "exact", "cg"])
def test_factors_in_float64_take_the_inputs_that_the_model_gives_in_float32(
    problem: Problem, method: str, run_whole: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body is run once and in float32; what is fitted on its outputs is in float64, and so its solve."""
    seen, real = set[torch.dtype](), Point.logits

    def noting(self: Point, x: Tensor, selected: Any = None) -> Tensor:
        if not isinstance(self.model, ModuleAlone):
            seen.add(x.dtype)
        return real(self, x, selected)

    monkeypatch.setattr(Point, "logits", noting)
    asked: dict[str, Any] = {"methods": (method,), "params": "last", "options": {method: {"damping": 1e-3}}}
    table = score(problem.job(precision="fp32", **asked))
    assert seen == {torch.float32}
    assert sum(run_whole) < 2 * TRAIN
    exact = column(score(problem.job(precision="fp64", **asked)))
    assert relative_error(column(table), exact) < 2e-5
    monkeypatch.setattr(Head, "on", lambda *_: None)  # as if the model were run in float64 for the fit
    assert relative_error(column(score(problem.job(precision="fp32", **asked))), exact) < 2e-5  # no nearer by that


def test_rows_that_no_fit_has_seen_are_run_as_ever(problem: Problem, run_whole: list[int]) -> None:
    """A sample of the fit rows, all parameters, and factors that are stored: nothing is kept that could serve."""
    some = {"methods": ("ekfac",), "params": "last", "options": {"ekfac": {"damping": 0.1, "fit_sample": 50}}}
    score(problem.job(**some))
    assert sum(run_whole) >= 50 + TRAIN + VAL
    run_whole.clear()
    score(problem.job(methods=("ekfac",), options={"ekfac": {"damping": 0.1}}))
    assert sum(run_whole) >= 3 * TRAIN + VAL


def test_new_rows_beside_a_stored_factor(problem: Problem, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    asked: dict[str, Any] = {"methods": ("ekfac",), "params": "last", "store": str(tmp_path / "store")}
    once = column(score(problem.job(**asked)))
    other = score(problem.job(**asked, options={"ekfac": {"damping": 0.2}}))  # along another direction, one factor
    assert not np.array_equal(column(other), once)
    expected = score(problem.job(methods=("ekfac",), params="last", options={"ekfac": {"damping": 0.2}}))
    assert relative_error(column(other), column(expected)) < 1e-10

"""Optimizer lbfgs: the one optimum of penalised softmax regression (methods.md 1.4, 4.1).

Reference: scikit-learn's LogisticRegression, autograd's gradient, and the oracle's Newton steps.
Behavioural: start, seed and order do not matter, weights count as copies, and what has no optimum is refused.

    python -m pytest tests/model/test_convex.py
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

import influence_cli.maths.softmax_regression as softmax_regression
from influence_cli.data.open import open_manifest
from influence_cli.errors import ModelError, UsageError
from influence_cli.events import SILENT
from influence_cli.maths.softmax_regression import Regression, fit, solved_by_products
from influence_cli.model.build import build_model
from influence_cli.model.examples import Examples
from influence_cli.model.spec import ModelSpec
from influence_cli.model.train.convex import parameters_of, train_convex
from influence_cli.model.train.recipe import Recipe
from tests.cases import call_cli
from tests.oracle import refit

LBFGS = Recipe(optimizer="lbfgs", weight_decay=1e-3)


def drawn(classes: int, n: int = 80, d: int = 4, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Inputs [n, d] whose last column is 1, and labels that depend on them."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(size=(n, d - 1)) * [1.0, 3.0, 0.2], np.ones((n, 1))], axis=1)
    return x, (x @ rng.normal(size=(d, classes)) + rng.gumbel(size=(n, classes))).argmax(axis=1)


@pytest.mark.parametrize("decay", [1e-1, 1e-4])
def test_two_classes_are_scikit_learns_logistic_regression(decay: float) -> None:
    x, y = drawn(2)
    found = fit(Regression(x, y, np.ones(len(x)), 2, decay))
    # sum of losses + |beta|^2 / (2 C) with beta = theta_1 - theta_0 and |theta|^2 = |beta|^2 / 2
    theirs = LogisticRegression(C=2.0 / (len(x) * decay), fit_intercept=False, tol=1e-12, max_iter=10_000).fit(x, y)
    assert found.converged
    np.testing.assert_allclose(found.theta[1] - found.theta[0], theirs.coef_[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.theta.sum(axis=0), 0.0, atol=1e-9)


@pytest.mark.parametrize("decay", [1e-1, 1e-4])
def test_several_classes_are_scikit_learns_logistic_regression(decay: float) -> None:
    x, y = drawn(3)
    w = np.random.default_rng(1).uniform(0.5, 2.0, len(x))
    found = fit(Regression(x, y, w, 3, decay))
    theirs = LogisticRegression(C=1.0 / (w.sum() * decay), fit_intercept=False, tol=1e-12, max_iter=10_000)
    theirs.fit(x, y, sample_weight=w)
    np.testing.assert_allclose(found.theta, theirs.coef_, rtol=1e-5, atol=1e-6)


def test_the_start_does_not_matter() -> None:
    x, y = drawn(3)
    problem = Regression(x, y, np.ones(len(x)), 3, 1e-3)
    far = 5.0 * np.random.default_rng(2).normal(size=(3, 4))
    assert np.abs(fit(problem).theta - fit(problem, far).theta).max() < 1e-8


def test_large_problems_solve_the_same_steps_without_the_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = drawn(3)
    problem = Regression(x, y, np.ones(len(x)), 3, 1e-3)
    dense = fit(problem)
    monkeypatch.setattr(softmax_regression, "DENSE", 1)
    free = fit(problem)
    assert dense.converged
    assert free.converged
    assert np.abs(dense.theta - free.theta).max() < 1e-8


def test_gradient_hessian_product_and_diagonal_are_autograds() -> None:
    x, y = drawn(3, n=12)
    w = np.random.default_rng(1).uniform(0.5, 2.0, len(x))
    problem = Regression(x, y, w, 3, 0.05)
    theta = np.random.default_rng(3).normal(size=(3, 4))

    def objective(flat: torch.Tensor) -> torch.Tensor:
        losses = F.cross_entropy(torch.from_numpy(x) @ flat.view(3, 4).T, torch.from_numpy(y), reduction="none")
        return (torch.from_numpy(w) * losses).sum() / w.sum() + 0.5 * 0.05 * (flat @ flat)

    at = torch.from_numpy(theta).flatten()
    hessian = torch.autograd.functional.hessian(objective, at).numpy()  # type: ignore[union-attr]
    value, gradient, p = problem.value(theta)
    assert abs(value - float(objective(at))) < 1e-14
    jacobian = torch.autograd.functional.jacobian(objective, at).numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(gradient.ravel(), jacobian, atol=1e-14)
    np.testing.assert_allclose(problem.hessian(p), hessian, atol=1e-14)
    np.testing.assert_allclose(problem.diagonal(p).ravel(), np.diag(hessian), atol=1e-14)
    v = np.random.default_rng(4).normal(size=(3, 4))
    np.testing.assert_allclose(problem.product(p, v).ravel(), hessian @ v.ravel(), atol=1e-13)
    solved = solved_by_products(problem, p, v, 1e-13)
    np.testing.assert_allclose(solved.ravel(), np.linalg.solve(hessian, v.ravel()), rtol=1e-9, atol=1e-11)


def test_a_weight_of_two_is_a_row_twice() -> None:
    x, y = drawn(2)
    w = np.where(np.arange(len(x)) < 10, 2.0, 1.0)
    twice = np.concatenate([np.arange(len(x)), np.arange(10)])
    weighted = fit(Regression(x, y, w, 2, 1e-3)).theta
    copied = fit(Regression(x[twice], y[twice], np.ones(len(twice)), 2, 1e-3)).theta
    assert np.abs(weighted - copied).max() < 1e-9


def test_the_linear_model_is_trained_to_the_oracles_optimum(tabular: Path) -> None:
    rows = open_manifest(tabular).rows("train")
    spec = ModelSpec("linear", 3, "features", (5,))
    data = Examples(rows, spec, SILENT, "rows")
    ends = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_model(spec)
        train_convex(model, data, LBFGS)
        ends.append(parameters_of(model))
    oracle = build_model(spec).double()
    refit(oracle, torch.from_numpy(data.values).double(), torch.from_numpy(data.labels), LBFGS.weight_decay)
    assert np.abs(ends[0] - ends[1]).max() < 1e-8
    assert np.abs(ends[0] - parameters_of(oracle)).max() < 1e-8


def test_retrain_writes_a_run_folder_at_the_optimum(tmp_path: Path, tabular: Path) -> None:
    asked = [
        "retrain",
        tabular,
        "--model",
        "linear",
        "--optimizer",
        "lbfgs",
        "--weight-decay",
        "1e-3",
        "--raw-features",
    ]
    for name, seed in (("a", 0), ("b", 7)):
        ran = call_cli(*asked, "--seed", seed, "-o", name, cwd=tmp_path)
        assert ran.code == 0, ran.err
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(v.dtype == torch.float64 for v in a.values())
    assert all((a[k] - b[k]).abs().max() < 1e-8 for k in a)
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    assert run["recipe"] == {"optimizer": "lbfgs", "weight_decay": 1e-3, "lr": 1.0}
    assert (run["init"], run["pretrained"]) == (None, False)
    rows = open_manifest(tabular).rows("train")
    x = np.array([v for _, v in rows.manifest.payloads(rows.index)], dtype=np.float64)
    w, bias = (a[k].clone().requires_grad_() for k in ("head.weight", "head.bias"))
    loss = F.cross_entropy(torch.from_numpy(x) @ w.T + bias, torch.from_numpy(rows.labels))
    (loss + 0.5e-3 * ((w**2).sum() + (bias**2).sum())).backward()
    assert w.grad is not None
    assert bias.grad is not None
    assert float((w.grad**2).sum() + (bias.grad**2).sum()) ** 0.5 < 1e-10
    scored = call_cli(
        "score", "--method", "ip", tabular, "--checkpoint", "a", "--precision", "fp64", "-o", "s.parquet", cwd=tmp_path
    )
    assert scored.code == 0, scored.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "mlp:4"], "cannot train mlp:4"),
        (["--model", "linear", "--weight-decay", "0"], "--weight-decay above 0"),
        (["--model", "linear", "--seeds", "3"], "every seed gives the same model"),
        (["--model", "linear", "--augment", "shift"], "--augment has no meaning"),
    ],
)
def test_what_has_no_single_optimum_is_refused(tmp_path: Path, tabular: Path, flags: list[str], said: str) -> None:
    ran = call_cli("retrain", tabular, "--optimizer", "lbfgs", *flags, "-o", "run", cwd=tmp_path)
    assert ran.code == 2
    assert said in ran.err
    assert not (tmp_path / "run").exists()


def test_an_optimum_that_is_not_reached_is_an_error(tabular: Path) -> None:
    data = Examples(open_manifest(tabular).rows("train"), ModelSpec("linear", 3, "features", (5,)), SILENT, "rows")
    data.values = data.values * np.float32(1e12)
    with pytest.raises(ModelError, match="gradient norm"):
        train_convex(build_model(data.spec), data, dataclasses.replace(LBFGS, weight_decay=1e-12))


def test_what_does_not_change_the_fit_is_not_in_its_name() -> None:
    assert LBFGS.describe() == dataclasses.replace(LBFGS, epochs=3, lr=0.5, batch_size=7).describe()
    with pytest.raises(UsageError, match="augment"):
        dataclasses.replace(LBFGS, augment="shift")

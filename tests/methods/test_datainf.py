"""datainf against the dense formula in float64 (methods.md T08, T25, T26).

Reference: every row's inverse by itself, tensor by tensor, from autograd's row gradients.

    python -m pytest tests/methods/test_datainf.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from influence_cli.curvature.curvature import Curvature
from influence_cli.data.open import open_manifest
from influence_cli.data.tables import provenance
from influence_cli.errors import ModelError, UsageError
from influence_cli.methods import make_methods
from influence_cli.methods.datainf import DataInf
from influence_cli.settings import GradSpec
from tests.cases import Heard
from tests.methods.test_exact import PENALTY, Logistic
from tests.opened import describe_plan, missing_work, score
from tests.oracle import Problem, column, make_problem, relative_error, row_gradient


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("mlp"), "mlp:4", (5,), classes=3, train=40, val=12)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """Convolutions, some with groups, and norms."""
    return make_problem(tmp_path_factory.mktemp("net"), "test_efficientnet", (3, 32, 32), train=5, val=4)


def curvature(problem: Problem, batch_size: int = 7) -> Curvature:
    rows = open_manifest(str(problem.manifest)).rows("train")
    return Curvature(problem.model, problem.spec, rows, batch_size=batch_size)


def applied(c: Curvature, q: NDArray[np.float64], **options: Any) -> NDArray[np.float64]:
    method = DataInf(**{"precision": "fp64", **options})
    c.factor = method.fit(c).arrays
    return method.precondition(q, c)[0]


def rows_of(problem: Problem) -> list[dict[str, NDArray[np.float64]]]:
    """Every train row's gradient by tensor, flat."""
    problem.model.requires_grad_(True)
    x, y = problem.part("train")
    found = [row_gradient(problem.model, row, label) for row, label in zip(x, y.tolist(), strict=True)]
    problem.model.requires_grad_(False)
    return [{n: g.detach().numpy().ravel() for n, g in row.items()} for row in found]


def dense(
    problem: Problem, q: dict[str, NDArray[np.float64]], weights: NDArray[np.float64], l2: float, damping: float | None
) -> dict[str, NDArray[np.float64]]:
    """The formula as it stands; tensors of over 500 entries by the identity of Sherman and Morrison."""
    rows, n, u = rows_of(problem), weights.sum(), {}
    mean = {
        k: sum(w * (r[k] @ r[k]) for w, r in zip(weights, rows, strict=True)) / (n * len(v.ravel()))
        for k, v in q.items()
    }
    least = 1e-9 * max(mean.values())
    for name, v in q.items():
        flat, total = v.ravel(), np.zeros(v.size)
        lam = (max(0.1 * mean[name], least) if damping is None else damping) + l2
        for w, r in zip(weights, rows, strict=True):
            g = r[name]
            if len(g) <= 500:
                total += w * np.linalg.solve(np.outer(g, g) + lam * np.eye(len(g)), flat)
            else:
                total += w * (flat - g * (g @ flat) / (lam + g @ g)) / lam
        u[name] = total / n
    return u


@pytest.mark.parametrize(("l2", "damping"), [(0.0, None), (0.02, None), (0.02, 0.3)])
@pytest.mark.parametrize("name", ["mlp", "net"])
def test_t25_it_is_the_dense_formula_tensor_by_tensor(
    name: str, l2: float, damping: float | None, request: pytest.FixtureRequest
) -> None:
    problem: Problem = request.getfixturevalue(name)
    c = curvature(problem, batch_size=3)
    q = np.random.default_rng(0).normal(size=(c.size, 2))
    found = applied(c, q, l2=l2, damping=damping)
    for k in range(2):
        expected = dense(problem, c.by_name(q[:, k]), np.ones(len(c.rows)), l2, damping)
        for tensor, value in c.by_name(found[:, k]).items():
            assert relative_error(value.ravel(), expected[tensor]) < 1e-11


def test_t25_one_row_is_the_inverse_of_each_tensor(tmp_path: Path) -> None:
    problem = make_problem(tmp_path, "mlp:4", (5,), classes=3, train=1, val=4)
    c = curvature(problem)
    q = np.random.default_rng(0).normal(size=(c.size, 1))
    found = c.by_name(applied(c, q, damping=0.2)[:, 0])
    (row,) = rows_of(problem)
    for name, v in c.by_name(q[:, 0]).items():
        g = row[name]
        expected = np.linalg.solve(np.outer(g, g) + 0.2 * np.eye(len(g)), v.ravel())
        assert relative_error(found[name].ravel(), expected) < 1e-11


def test_t26_it_is_above_the_damped_inverse_of_the_mean_and_meets_it_where_damping_is_large(mlp: Problem) -> None:
    """Jensen: mean of inverses >= inverse of the mean, tensor by tensor; on P2, a tanh MLP that has not converged."""
    rows, c = rows_of(mlp), curvature(mlp)
    assert all(g.size for g in rows[0].values())
    q = np.random.default_rng(1).normal(size=(c.size, 1))
    errors = []
    for damping in (1e-3, 0.1, 10.0, 1e3, 1e5):
        found, of_tensors = c.by_name(applied(c, q, l2=0.0, damping=damping)[:, 0]), []
        for name, v in c.by_name(q[:, 0]).items():
            g = np.stack([row[name] for row in rows])
            inverse = np.linalg.solve(g.T @ g / len(g) + damping * np.eye(v.size), v.ravel())
            assert v.ravel() @ found[name].ravel() >= v.ravel() @ inverse * (1 - 1e-12)
            of_tensors.append(relative_error(found[name].ravel(), inverse))
        errors.append(max(of_tensors))
    assert errors[-1] < 1e-3
    assert errors[1:] == sorted(errors[1:], reverse=True)
    assert errors[0] > 0.1  # they differ where damping is small


def test_weights_count(tmp_path: Path) -> None:
    p = Logistic(tmp_path, weights=True)
    c = curvature(p.problem)
    kept = p.weights > 0
    c = Curvature(p.problem.model.eval(), p.problem.spec, c.rows.take(kept), batch_size=50)
    q = np.random.default_rng(0).normal(size=(c.size, 1))
    expected = dense(p.problem, c.by_name(q[:, 0]), p.weights, 0.01, None)
    for name, value in c.by_name(applied(c, q, l2=0.01)[:, 0]).items():
        assert relative_error(value.ravel(), expected[name]) < 1e-11


def test_large_damping_gives_the_ranks_of_ip(mlp: Problem) -> None:
    job = mlp.job(methods=("datainf", "ip"), options={"datainf": {"l2": 0.0, "damping": 1e7}})
    table = score(job)
    assert relative_error(column(table, "score_datainf_utility") * 1e7, column(table, "score_ip_utility")) < 1e-4


@pytest.mark.parametrize("seed", [0, 1])
def test_t08_refit_without_the_most_negative_row_lowers_phi(seed: int, tmp_path: Path) -> None:
    p = Logistic(tmp_path, seed=seed)
    scores = column(score(p.problem.job(methods=("datainf",), options={"datainf": {"l2": PENALTY}})))
    worst = int(np.argmin(scores))
    assert scores[worst] < 0
    assert p.rise(p.without(worst), p.n - 1) < 0
    assert p.rise(p.without(int(np.argmax(scores))), p.n - 1) > 0


def test_no_effect_is_claimed_and_the_summary_says_lambda(mlp: Problem) -> None:
    job = mlp.job(methods=("datainf",), options={"datainf": {"l2": 0.0}})
    job.listener = heard = Heard()
    table = score(job)
    assert "effect" not in table.column_names
    facts = provenance(table.schema)["curvature"]["datainf"]
    (note,) = [n for n in heard.notes if n.startswith("datainf: ")]
    assert "4 tensors of 39 parameters over 40 fit rows in fp64" in note
    assert f"lambda {facts['smallest_lambda']:.3g} to {facts['largest_lambda']:.3g} by the default rule" in note


def test_the_plan_has_two_passes_over_the_fit_rows(mlp: Problem) -> None:
    job = mlp.job(methods=("datainf",))
    step = describe_plan(job, missing_work(job))["steps"][0]
    assert step["fits"][0]["passes"] == 1
    assert step["solves"][0]["passes"] == 1.0


def test_order_and_batches_change_no_score(mlp: Problem) -> None:
    expected = score(mlp.job(methods=("datainf",)))
    by_id = dict(zip(expected["id"].to_pylist(), column(expected), strict=True))
    order = np.random.default_rng(0).permutation(len(mlp.ids))
    found = score(mlp.job(methods=("datainf",), manifest=mlp.permuted(order, "shuffled.parquet"), batch_size=3))
    assert relative_error(column(found), np.array([by_id[i] for i in found["id"].to_pylist()])) < 1e-12


def test_tensors_without_gradients_have_a_small_lambda_and_zero_is_refused(tmp_path: Path) -> None:
    problem = make_problem(tmp_path, "mlp:3", (4,), classes=3, train=12, val=5)
    with torch.no_grad():
        problem.model.get_parameter("layers.0.bias").fill_(-100.0)  # no unit is ever on
    c = curvature(problem)
    u = applied(c, np.ones((c.size, 1)))
    assert np.isfinite(u).all()
    with pytest.raises(ModelError, match="lambda is 0"):
        DataInf(damping=0.0).precondition(np.ones((c.size, 1)), c)


def test_options_that_cannot_be_are_refused() -> None:
    for bad in ({"precision": "bf16"}, {"damping": -1.0}, {"l2": -1.0}, {"other": "skip"}):
        with pytest.raises(UsageError):
            make_methods(GradSpec(("datainf",), options={"datainf": bad}))

"""Head-VM: against a dense float64 tuning of the last layer, and which target rows it looks at.

python -m pytest tests/methods/test_head_vm.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from influence_cli.curvature.tuned_head import tuning_rows
from influence_cli.errors import UsageError
from influence_cli.methods import make_methods
from influence_cli.settings import GradSpec
from tests.cases import call_cli
from tests.opened import describe_plan, missing_work, score
from tests.oracle import Problem, Softmax, column, make_problem, relative_error

METHOD = ("head-vm",)


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("vm"), "mlp:4", (5,), classes=3, train=30, val=50)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_inverse_hessian_form_at_the_minimum_on_half_of_the_target_rows(seed: int, mlp: Problem) -> None:
    job = mlp.job(methods=METHOD, options={"head-vm": {"l2": 0.02, "seed": seed}})
    (step,) = describe_plan(job, missing_work(job))["steps"]
    assert step["row_values_to_compute"] == {"tuned_head": 30}
    found = column(score(job))
    chosen = tuning_rows(job.target, seed)
    assert 15 <= len(chosen) <= 35

    def features(split: str) -> np.ndarray:
        x, _ = mlp.part(split)
        seen = []
        hook = mlp.model.get_submodule("head").register_forward_hook(lambda _, a, out: seen.append(a[0].detach()))
        mlp.model(x)
        hook.remove()
        return seen[0]

    (_, y), (_, yv) = mlp.part("train"), mlp.part("val")
    ids = {name: k for k, name in enumerate(i for i, s in zip(mlp.ids, mlp.splits, strict=True) if s == "val")}
    half = [ids[name] for name in chosen.ids]
    tuned = Softmax.of(features("val")[half], yv[half], 3)
    theta = tuned.fit(np.ones(len(half)), 0.02)
    h = tuned.hessian(theta, np.ones(len(half))) / len(half) + 0.02 * np.eye(theta.size)
    g = Softmax.of(features("train"), y, 3).gradients(theta)
    assert relative_error(found, -np.einsum("ij,ij->i", g, np.linalg.solve(h, g.T).T)) < 1e-8
    other = column(score(mlp.job(methods=METHOD, options={"head-vm": {"l2": 0.02, "seed": 7}})))
    assert relative_error(found, other) > 1e-3


def test_what_it_cannot_do_is_refused(mlp: Problem, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no minimum"):
        make_methods(GradSpec(methods=METHOD, options={"head-vm": {"l2": 0.0}}))
    few = make_problem(tmp_path / "few", "linear", (3,), classes=2, train=6, val=6)
    with pytest.raises(
        UsageError, match=r"half of the target rows: that is \d of 6 rows, and at least 10 are"
    ) as few_rows:
        score(few.job(methods=METHOD))
    assert "give 40 target rows or more" in str(few_rows.value.fix)
    where = ("--checkpoint", str(mlp.checkpoint), "--store", str(tmp_path / "store"), "-o", str(tmp_path / "p.parquet"))
    ran = call_cli("score", str(mlp.manifest), *where, "--method", "head-vm", "--per-target", cwd=tmp_path)
    assert ran.code == 2
    assert "head-vm is a value of a row" in " ".join(ran.err.split())


def test_a_linear_model_is_its_own_last_layer(tmp_path: Path) -> None:
    problem = make_problem(tmp_path, "linear", (3,), classes=3, train=20, val=40)
    job = problem.job(methods=METHOD, options={"head-vm": {"l2": 0.02}})
    found = column(score(job))
    chosen = tuning_rows(job.target, 0)
    (x, y), (xv, yv) = problem.part("train"), problem.part("val")
    ids = {name: k for k, name in enumerate(i for i, s in zip(problem.ids, problem.splits, strict=True) if s == "val")}
    half = [ids[name] for name in chosen.ids]
    tuned = Softmax.of(xv[half], yv[half], 3)
    theta = tuned.fit(np.ones(len(half)), 0.02)
    h = tuned.hessian(theta, np.ones(len(half))) / len(half) + 0.02 * np.eye(theta.size)
    g = Softmax.of(x, y, 3).gradients(theta)
    assert relative_error(found, -np.einsum("ij,ij->i", g, np.linalg.solve(h, g.T).T)) < 1e-8

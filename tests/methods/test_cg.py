"""Influence by conjugate gradients (methods.md T16, T17): what converges, what is refused, and what is said loudly.

python -m pytest tests/methods/test_cg.py
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from influence_cli.curvature.curvature import Curvature
from influence_cli.data.tables import provenance
from influence_cli.errors import ModelError, UsageError
from influence_cli.methods import make_methods
from influence_cli.methods.cg import CG
from influence_cli.settings import GradSpec
from tests.cases import Heard
from tests.methods.test_exact import PENALTY, Logistic
from tests.opened import describe_plan, missing_work, score
from tests.oracle import Problem, column, dense_curvature, make_problem, relative_error

METHOD = ("cg",)


@pytest.fixture(scope="module")
def p1(tmp_path_factory: pytest.TempPathFactory) -> Logistic:
    return Logistic(tmp_path_factory.mktemp("p1"))


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("mlp"), "mlp:4", (5,), classes=3, train=40, val=12)


def job_of(problem: Problem, heard: Heard | None = None, store: str | None = None, **options: Any) -> Any:
    job = problem.job(methods=METHOD, store=store, options={"cg": options})
    if heard is not None:
        job.listener = heard
    return job


@pytest.mark.parametrize("mode", ["ggn", "hessian"])
def test_t16_equals_exact_within_as_many_iterations_as_parameters(mode: str, p1: Logistic) -> None:
    table = score(job_of(p1.problem, l2=PENALTY, tolerance=1e-10, mode=mode))
    assert relative_error(column(table), p1.scores()) < 1e-8
    facts = provenance(table.schema)["curvature"]["cg"]
    assert facts["iterations"] <= 12
    assert facts["converged"] is True
    assert facts["residual"] <= 1e-10
    assert facts["damping"] == 0.0


def test_a_loose_tolerance_ends_sooner_and_within_it(mlp: Problem) -> None:
    expected = column(score(mlp.job(methods=("exact",), options={"exact": {"damping": 0.05}})))
    errors, iterations = [], []
    for tolerance in (1e-1, 1e-3, 1e-6):
        table = score(job_of(mlp, damping=0.05, tolerance=tolerance))
        facts = provenance(table.schema)["curvature"]["cg"]
        assert facts["residual"] <= tolerance
        errors.append(relative_error(column(table), expected))
        iterations.append(facts["iterations"])
    assert errors == sorted(errors, reverse=True)
    assert iterations == sorted(set(iterations))
    assert errors[-1] < 1e-5


def test_t17_negative_curvature_is_refused_with_a_bound_and_what_to_do(mlp: Problem) -> None:
    """P2's kind: a network that has not converged, whose Hessian is indefinite."""
    x, y = mlp.part("train")
    e = np.linalg.eigvalsh(dense_curvature(mlp.model, x, y, torch.ones(40, dtype=torch.float64), "hessian"))
    assert e[0] < -0.01
    with pytest.raises(ModelError, match="negative curvature") as raised:
        score(job_of(mlp, mode="hessian", damping=0.0))
    assert "cg.mode=ggn" in raised.value.fix
    assert "cg.damping" in raised.value.fix
    bound = float(raised.value.what.split("p.Ap is ")[1].split(" ")[0])
    assert e[0] - 1e-9 <= bound <= 0
    enough = score(job_of(mlp, mode="hessian", damping=1.1 * abs(float(e[0])), max_iterations=400))
    assert np.isfinite(column(enough)).all()
    exact = mlp.job(methods=("exact",), options={"exact": {"mode": "damp", "damping": 1.1 * abs(float(e[0]))}})
    assert relative_error(column(enough), column(score(exact))) < 1e-2


def test_a_solve_that_has_not_converged_is_warned_of_cold_and_warm(mlp: Problem) -> None:
    for _ in range(2):
        heard = Heard()
        table = score(job_of(mlp, heard, "unconverged", damping=1e-3, max_iterations=3))
        (said,) = [w for w in heard.warnings if w.startswith("cg: ")]
        assert "has not converged: after 3 iterations" in said
        assert "cg.max_iterations" in said
        assert any("NOT CONVERGED" in note for note in heard.notes)
        assert provenance(table.schema)["curvature"]["cg"]["converged"] is False
    quiet = Heard()
    score(job_of(mlp, quiet, damping=0.05))
    assert not [w for w in quiet.warnings if w.startswith("cg: ")]


def test_a_solve_that_is_worse_than_none_is_refused(mlp: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that are not of one symmetric matrix, as a model that is not deterministic gives them."""
    product, rng = Curvature.product, np.random.default_rng(0)

    def noisy(self: Curvature, kind: Any, columns: Any) -> Any:
        return product(self, kind, columns) + 10.0 * np.abs(columns).mean() * rng.normal(size=columns.shape) + columns

    monkeypatch.setattr(Curvature, "product", noisy)
    with pytest.raises(ModelError, match=r"went nowhere|negative curvature"):
        score(job_of(mlp, damping=0.05))


def test_a_singular_curvature_without_damping_is_never_passed_for_solved(tmp_path: Path) -> None:
    """Softmax regression without l2: the part of q in the range is solved for, and the rest has no component."""
    p = Logistic(tmp_path, penalty=0.0)
    table = score(job_of(p.problem, damping=0.0, tolerance=1e-8))
    dense = p.train.hessian(p.theta, np.ones(200)) / 200
    q = p.target.gradients(p.theta).mean(axis=0)
    expected = p.train.gradients(p.theta) @ (np.linalg.pinv(dense, 1e-10) @ q)
    assert relative_error(column(table), expected) < 1e-6
    assert provenance(table.schema)["curvature"]["cg"]["converged"] is True


@pytest.mark.parametrize(
    "options",
    [
        {"tolerance": 0}, {"tolerance": 1}, {"max_iterations": 0}, {"mode": "fisher"}, {"precision": "bf16"},
        {"fit_sample": 0}, {"damping": -1}, {"l2": -1}, {"iterations": 3},
    ],
)  # fmt: skip
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make_methods(GradSpec(methods=METHOD, options={"cg": options}))


def test_by_default_scores_do_not_show_the_batch_size_in_float64(mlp: Problem) -> None:
    """Rounding differs from batch size to batch size, and a solve that ends early shows it as large as it ends."""
    found = []
    for batch_size in (None, 7, 1):
        job = job_of(mlp)
        job.runtime = dataclasses.replace(job.runtime, batch_size=batch_size)
        table = score(job)
        facts = provenance(table.schema)["curvature"]["cg"]
        assert (facts["tolerance"], facts["converged"]) == (1e-8, True)
        found.append(column(table))
    assert max(relative_error(f, found[0]) for f in found) < 1e-6


def test_defaults_are_by_the_precision_of_products() -> None:
    assert CG().ends(1000) == (1e-8, 1000)
    assert CG().ends(1_000_000) == CG(precision="fp32").ends(10) == (1e-4, 100)
    assert CG(tolerance=1e-3, max_iterations=7, precision="fp32").ends(10) == (1e-3, 7)


@pytest.mark.parametrize("mode", ["ggn", "hessian"])
def test_t16_a_preconditioned_solve_equals_exact(mode: str, p1: Logistic) -> None:
    table = score(job_of(p1.problem, l2=PENALTY, tolerance=1e-10, mode=mode, preconditioner="ekfac"))
    assert relative_error(column(table), p1.scores()) < 1e-8
    facts = provenance(table.schema)["curvature"]["cg"]
    assert facts["converged"] is True
    assert facts["preconditioner"] == "ekfac"


def test_a_preconditioned_solve_takes_fewer_passes_and_shares_ekfacs_factor(tmp_path: Path) -> None:
    p = make_problem(tmp_path, "mlp:16,12", (10,), classes=5, train=200, val=30)
    options = {"tolerance": 0.05, "damping": 4e-6}
    plain = score(p.job(store="one", methods=METHOD, options={"cg": options}))
    both = {"cg": {**options, "preconditioner": "ekfac"}, "ekfac": {"labels": "exact"}}
    job = p.job(store="one", methods=("cg", "ekfac"), options=both)
    helped = score(job)
    few, many = (provenance(t.schema)["curvature"]["cg"] for t in (helped, plain))
    assert few["residual"] <= 0.05
    assert few["iterations"] < 0.7 * many["iterations"]
    factors = list((p.folder / "one" / "factors").glob("*.safetensors"))
    assert len(factors) == 2  # the trace, and one of EKFAC for both methods
    (step,) = describe_plan(new := p.job(store="two", methods=METHOD, options=both), missing_work(new))["steps"]
    assert [fit["method"] for fit in step["fits"]] == ["cg", "ekfac (of cg)"]
    assert [solve["method"] for solve in step["solves"]] == ["cg"]


def test_without_a_preconditioner_what_is_stored_is_called_as_before_there_was_one() -> None:
    plain = CG().describe()
    assert "preconditioner" not in plain
    assert "by" not in plain
    assert CG(preconditioner="ekfac").describe()["preconditioner"] == "ekfac"
    with pytest.raises(UsageError, match="preconditioner"):
        make_methods(GradSpec(methods=METHOD, options={"cg": {"preconditioner": "kfac"}}))

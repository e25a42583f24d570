"""Influence in the sharp directions of curvature (methods.md T21).

python -m pytest tests/methods/test_arnoldi.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from influence_cli.data.tables import provenance
from influence_cli.errors import ModelError, UsageError
from influence_cli.methods import make_methods
from influence_cli.methods.arnoldi import Arnoldi
from influence_cli.settings import GradSpec
from tests.methods.test_exact import PENALTY, Logistic
from tests.opened import missing_work, score
from tests.oracle import Problem, column, dense_curvature, make_problem, relative_error, row_gradients

METHOD = ("arnoldi",)
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("mlp"), "mlp:4", (5,), classes=3, train=40, val=12)


def scored(problem: Problem, **options: Any) -> Any:
    return score(problem.job(methods=METHOD, options={"arnoldi": options}))


def spectrum(problem: Problem, kind: str) -> tuple[Floats, Floats]:
    x, y = problem.part("train")
    return np.linalg.eigh(dense_curvature(problem.model, x, y, torch.ones(len(y), dtype=torch.float64), kind))


def gradients(problem: Problem, split: str) -> Floats:
    order = [n for n, _ in problem.model.named_parameters()]
    every = row_gradients(problem.model, *problem.part(split))
    return np.stack([torch.cat([g[n].flatten() for n in order]).numpy() for g in every])


def by_the_oracle(
    problem: Problem, kind: str, r: int, l2: float, damping: float, *, complement: bool = False, negative: bool = False
) -> Floats:
    """Scores from the dense matrix's own eigenvectors: the r largest by size, above 1e-6 of the largest."""
    e, v = spectrum(problem, kind)
    e = e + l2
    large = np.abs(e) > 1e-6 * np.abs(e).max()
    kept = [k for k in np.argsort(-np.abs(e)) if large[k] and (negative or e[k] > 0)][:r]
    u, nu = v[:, kept], e[kept]
    q = gradients(problem, "val").mean(axis=0)
    out = u @ ((u.T @ q) / (nu + damping))
    if complement:
        out = out + (q - u @ (u.T @ q)) / (nu[np.argmin(np.abs(nu))] + damping)
    return gradients(problem, "train") @ out


def test_t21_every_pair_equals_exact(tmp_path_factory: pytest.TempPathFactory) -> None:
    p = Logistic(tmp_path_factory.mktemp("p1"))
    table = scored(p.problem, l2=PENALTY, r="all")
    assert relative_error(column(table), p.scores()) < 1e-8
    facts = provenance(table.schema)["curvature"]["arnoldi"]
    assert facts["complete"] is True
    assert facts["vectors"] == 7  # rank 6, and one vector of the null space
    assert facts["share_of_direction"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kind", "r", "l2", "damping", "extra"),
    [
        ("ggn", 5, 0.0, 0.0, {}),
        ("ggn", 5, 0.0, 0.1, {}),
        ("ggn", 3, 0.02, 0.05, {"complement": True}),
        ("hessian", 6, 0.0, 0.1, {}),
        ("hessian", 30, 0.0, 0.1, {}),
    ],
)
def test_the_pairs_kept_are_the_dense_matrixs_own(
    kind: str, r: int, l2: float, damping: float, extra: dict[str, bool], mlp: Problem
) -> None:
    found = column(scored(mlp, mode=kind, r=str(r), l2=l2, damping=damping, **extra))
    expected = by_the_oracle(mlp, kind, r, l2, damping, complement=extra.get("complement", False))
    assert relative_error(found, expected) < 1e-7


def test_negative_curvature_is_left_out_unless_kept_and_counted(mlp: Problem) -> None:
    e = spectrum(mlp, "hessian")[0]
    table = scored(mlp, mode="hessian", r="all", l2=0.0, damping=3.0)
    facts = provenance(table.schema)["curvature"]["arnoldi"]
    assert facts["negative"] == int((e < -1e-6 * e.max()).sum()) > 0
    assert facts["smallest_kept"] > 0
    kept = scored(mlp, mode="hessian", r="all", l2=0.0, damping=3.0, keep_negative=True)
    assert relative_error(column(kept), by_the_oracle(mlp, "hessian", 99, 0.0, 3.0, negative=True)) < 1e-6
    assert relative_error(column(kept), column(table)) > 1e-4
    exactly = {"mode": "hessian", "keep_negative": True, "l2": 0.0, "damping": float(-e[0]) * (1 + 1e-9)}
    with pytest.raises(ModelError, match="cannot be inverted") as raised:
        scored(mlp, r="all", **exactly)
    assert "arnoldi.damping" in raised.value.fix


def test_what_is_said_of_the_span_is_measured(mlp: Problem) -> None:
    e, v = spectrum(mlp, "ggn")
    q = gradients(mlp, "val").mean(axis=0)
    leading = v[:, np.argsort(-e)[:4]]
    facts = provenance(scored(mlp, r="4", l2=0.0).schema)["curvature"]["arnoldi"]
    assert facts["largest_kept"] == pytest.approx(e[-1], rel=1e-9)
    assert facts["smallest_kept"] == pytest.approx(np.sort(e)[-4], rel=1e-6)
    assert facts["kept"] == 4
    assert 0 < facts["share_of_direction"] <= float(((leading.T @ q) ** 2).sum() / (q @ q)) + 1e-9  # worst of halves
    few = provenance(scored(mlp, k=6, r="6", l2=0.0).schema)["curvature"]["arnoldi"]
    assert (few["vectors"], few["complete"]) == (6, False)
    assert few["ritz_residual"] > facts["ritz_residual"]


def test_a_basis_that_does_not_fit_is_refused_before_any_pass_with_what_to_do(mlp: Problem) -> None:
    job = mlp.job(methods=METHOD, options={"arnoldi": {"max_gigabytes": 5e-6}})
    with pytest.raises(UsageError, match="39 vectors of 39 parameters") as raised:
        missing_work(job)
    assert "arnoldi.k=" in raised.value.fix
    assert "--params last" in raised.value.fix
    k = int(raised.value.fix.split("arnoldi.k=")[1].split(",")[0])
    assert Arnoldi(k=k).costs(0, 39).factor_bytes <= 5e-6 * 1e9
    assert missing_work(mlp.job(methods=METHOD, options={"arnoldi": {"max_gigabytes": 5e-6, "k": k}}))
    assert Arnoldi(max_gigabytes=1.0).describe() == Arnoldi().describe()
    assert Arnoldi(k=50).costs(0, 11_000_000).factor_bytes == 50 * 11_000_000 * 4 + 16 * 11_000_000


@pytest.mark.parametrize(
    "options",
    [
        {"r": "0"}, {"r": "some"}, {"r": -3}, {"k": 0}, {"seed": -1}, {"max_gigabytes": 0}, {"mode": "emp"},
        {"rank": 3},
    ],
)  # fmt: skip
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make_methods(GradSpec(methods=METHOD, options={"arnoldi": options}))


def test_r_may_be_a_number_or_all() -> None:
    for given in (7, "7", "all"):
        method = make_methods(GradSpec(methods=METHOD, options={"arnoldi": {"r": given}}))["arnoldi"]
        assert isinstance(method, Arnoldi)
        assert method.r == str(given)

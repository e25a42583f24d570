"""ekfac against dense Fishers in float64 (methods.md T08, T22, T23, T24).

Reference: the Fisher of every layer from gradients of every label, row by row.  Behavioural: labels are drawn by row
key, what has no factors is named and treated as asked, factors are shared by modes, dampings and objectives.

    python -m pytest tests/methods/test_ekfac.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from influence_cli.curvature.curvature import Curvature
from influence_cli.data.open import open_manifest
from influence_cli.data.tables import provenance
from influence_cli.errors import ModelError, UsageError
from influence_cli.methods import make_methods
from influence_cli.methods.ekfac import EKFAC
from influence_cli.settings import GradSpec
from tests.cases import Heard, call_cli, write
from tests.methods.test_exact import PENALTY, Logistic
from tests.opened import describe_plan, missing_work, score
from tests.oracle import Problem, column, dense_curvature, make_problem, relative_error

EXACT: dict[str, Any] = {"labels": "exact", "precision": "fp64"}


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("mlp"), "mlp:4", (5,), classes=3, train=40, val=12)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """Convolutions and BatchNorm."""
    return make_problem(tmp_path_factory.mktemp("net"), "test_resnet", (3, 32, 32), train=6, val=4)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """Depthwise convolutions."""
    return make_problem(tmp_path_factory.mktemp("grouped"), "test_efficientnet", (3, 32, 32), train=4, val=3)


def curvature(problem: Problem, params: str = "all", batch_size: int = 7, model: nn.Module | None = None) -> Curvature:
    rows = open_manifest(str(problem.manifest)).rows("train")
    return Curvature(model or problem.model, problem.spec, rows, params, batch_size=batch_size)


def table(problem: Problem, listener: Heard | None = None, params: str = "all", **options: Any) -> Any:
    job = problem.job(methods=("ekfac",), options={"ekfac": {"l2": 0.0, **options}}, params=params)
    if listener is not None:
        job.listener = listener
    return score(job)


def blocks_of(problem: Problem, factor: dict[str, NDArray[Any]], c: Curvature) -> list[tuple[NDArray[Any], ...]]:
    """(columns of the dense matrix in the order [O, I + 1], Q_S kron Q_A, Lam) of every layer."""
    ends, found = np.cumsum([0, *c.sizes]).tolist(), []
    for k in range(sum(n.endswith(".lam") for n in factor)):
        weight, bias = (int(v) for v in factor[f"{k}.place"])
        lam = factor[f"{k}.lam"]
        place = np.arange(ends[weight], ends[weight + 1]).reshape(len(lam), -1)
        if bias >= 0:
            place = np.concatenate([place, np.arange(ends[bias], ends[bias + 1])[:, None]], axis=1)
        found.append((place.ravel(), np.kron(factor[f"{k}.q_s"], factor[f"{k}.q_a"]), lam))
    return found


# -- identities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "net"])
def test_t22_eigenvalues_and_application_are_those_of_the_dense_fisher(
    name: str, request: pytest.FixtureRequest
) -> None:
    problem: Problem = request.getfixturevalue(name)
    params = "all" if name == "mlp" else "conv1.0.weight"
    c = curvature(problem, params, batch_size=4)
    c.factor = EKFAC(**EXACT).fit(c).arrays
    fisher = fisher_of(problem, list(c.layout))
    q = np.random.default_rng(0).normal(size=(c.size, 2))
    u, facts = EKFAC(**EXACT, l2=0.02).precondition(q, c)
    assert facts["covered"] == c.size
    for place, basis, lam in blocks_of(problem, c.factor, c):
        rotated = np.diag(basis.T @ fisher[np.ix_(place, place)] @ basis)
        assert relative_error(lam.ravel(), rotated) < 1e-11
        shifted = lam.ravel() + 0.02 + 0.1 * lam.mean()
        assert relative_error(u[place].ravel(), (basis @ (basis.T @ q[place] / shifted[:, None])).ravel()) < 1e-11


def fisher_of(problem: Problem, names: list[str]) -> NDArray[np.float64]:
    """From a gradient for every row and label, weighted by its probability."""
    x, _ = problem.part("train")
    parameters = [dict(problem.model.named_parameters())[n].requires_grad_(True) for n in names]
    total = 0.0
    for row in x:
        z = problem.model(row[None])[0]
        logs = z.log_softmax(0)
        for value in logs:
            g = torch.cat([v.flatten() for v in torch.autograd.grad(value, parameters, retain_graph=True)])
            total = total + value.exp().detach() * torch.outer(g, g)
    problem.model.requires_grad_(False)
    assert isinstance(total, torch.Tensor)
    return (total / len(x)).numpy()


def test_the_dense_fisher_of_the_tests_is_the_gauss_newton_matrix(mlp: Problem) -> None:
    x, y = mlp.part("train")
    expected = dense_curvature(mlp.model, x, y, torch.ones(len(y), dtype=torch.float64), "ggn")
    found = fisher_of(mlp, [n for n, _ in mlp.model.named_parameters()])
    assert relative_error(found.ravel(), expected.ravel()) < 1e-12


def test_t23_ekfac_is_nearer_to_the_fisher_than_kfac(mlp: Problem, net: Problem) -> None:
    for problem, params in ((mlp, "all"), (net, "conv1.0.weight")):
        c = curvature(problem, params)
        factor = EKFAC(**EXACT).fit(c).arrays
        fisher = fisher_of(problem, list(c.layout))
        for k, (place, basis, lam) in enumerate(blocks_of(problem, factor, c)):
            block = fisher[np.ix_(place, place)]
            kfac = np.outer(factor[f"{k}.e_s"], factor[f"{k}.e_a"])
            errors = [np.linalg.norm(block - basis @ np.diag(v.ravel()) @ basis.T) for v in (lam, kfac)]
            assert errors[0] < errors[1] * (1 - 1e-6)


def test_t24_one_row_of_one_layer_is_exact(tmp_path: Path) -> None:
    problem = make_problem(tmp_path, "linear", (5,), classes=3, train=1, val=6)
    expected = column(score(problem.job(methods=("exact",), options={"exact": {"l2": 0.0, "damping": 0.1}})))
    assert relative_error(column(table(problem, damping=0.1, **EXACT)), expected) < 1e-11
    kfac = column(table(problem, damping=0.1, mode="kfac", **EXACT))
    assert relative_error(kfac, expected) < 1e-11


def test_sampled_labels_come_near_to_exact_ones_with_draws(mlp: Problem) -> None:
    c = curvature(mlp)
    exact = EKFAC(**EXACT).fit(c).arrays
    errors = []
    for draws in (1, 100):
        found = EKFAC(draws=draws).fit(c).arrays
        traces = [np.array([f[f"{k}.lam"].sum() for k in range(2)]) for f in (found, exact)]
        errors.append(relative_error(traces[0], traces[1]))
    assert errors[1] < 0.1
    assert errors[1] < errors[0]


def test_scores_are_nearer_to_the_block_diagonal_inverse_than_those_of_ip(mlp: Problem) -> None:
    c = curvature(mlp)
    fisher = fisher_of(mlp, list(c.layout))
    q = np.random.default_rng(3).normal(size=(c.size, 1))
    c.factor = EKFAC(**EXACT).fit(c).arrays
    u, _ = EKFAC(**EXACT, damping=0.05).precondition(q, c)
    blocks = np.zeros_like(fisher)
    for place, _, _ in blocks_of(mlp, c.factor, c):
        blocks[np.ix_(place, place)] = fisher[np.ix_(place, place)]
    expected = np.linalg.solve(blocks + 0.05 * np.eye(c.size), q)
    assert float(np.corrcoef(u[:, 0], expected[:, 0])[0, 1]) > float(np.corrcoef(q[:, 0], expected[:, 0])[0, 1]) + 0.05


# -- signs and effects ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_t08_refit_without_the_most_negative_row_lowers_phi(seed: int, tmp_path: Path) -> None:
    p = Logistic(tmp_path, seed=seed)
    scores = column(table(p.problem, l2=PENALTY))
    worst = int(np.argmin(scores))
    assert scores[worst] < 0
    assert p.rise(p.without(worst), p.n - 1) < 0
    assert p.rise(p.without(int(np.argmax(scores))), p.n - 1) > 0


@pytest.mark.parametrize("weights", [False, True])
def test_effects_follow_refits_and_are_too_small(weights: bool, tmp_path: Path) -> None:
    p = Logistic(tmp_path, weights=weights)
    found = table(p.problem, l2=PENALTY)
    assert relative_error(column(found, "effect"), column(found) / p.n) < 1e-15
    rows = np.flatnonzero(p.weights == 1.0)[:60]
    effect, true = column(found, "effect")[rows], np.array([p.rise(p.without(int(k)), p.n) for k in rows])
    assert stats.spearmanr(effect, true).statistic > 0.9
    assert 0.3 < np.polyfit(true, effect, 1)[0] < 1.0


# -- what changes nothing ------------------------------------------------------------------------------------------


def test_order_and_batches_change_no_score(mlp: Problem) -> None:
    expected = dict(zip(table(mlp)["id"].to_pylist(), column(table(mlp)), strict=True))
    order = np.random.default_rng(0).permutation(len(mlp.ids))
    shuffled = mlp.permuted(order, "shuffled.parquet")
    job = mlp.job(methods=("ekfac",), options={"ekfac": {"l2": 0.0}}, manifest=shuffled, batch_size=3)
    found = score(job)
    got = np.array([expected[i] for i in found["id"].to_pylist()])
    assert relative_error(column(found), got) < 1e-10
    other = column(table(mlp, seed=1))
    assert relative_error(other, column(table(mlp))) > 1e-3


def test_more_rows_than_fit_sample_are_left_out_by_key(mlp: Problem) -> None:
    heard = Heard()
    few = table(mlp, heard, fit_sample=15)
    assert provenance(few.schema)["curvature"]["ekfac"]["product_rows"] == 15
    assert "over 15 of 40 fit rows" in " ".join(heard.notes)
    assert relative_error(column(few), column(table(mlp))) > 1e-3


def test_single_precision_is_near_double(net: Problem) -> None:
    single, double = (column(table(net, precision=p, labels="exact")) for p in ("fp32", "fp64"))
    assert relative_error(single, double) < 1e-3


# -- what has no factors -------------------------------------------------------------------------------------------


def test_what_has_no_factors_is_named_and_treated_as_asked(net: Problem) -> None:
    c = curvature(net)
    c.factor = EKFAC(**EXACT).fit(c).arrays
    q = np.ones((c.size, 1))
    by = {other: c.by_name(EKFAC(**EXACT, other=other).precondition(q, c)[0][:, 0]) for other in ("identity", "zero")}
    others = [list(c.layout)[int(k)] for k, _ in c.factor["others"]]
    norms = {n for n, m in net.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert others == [n for n in c.layout if n.rpartition(".")[0] in norms]
    fisher = fisher_of(net, ["bn1.weight", "bn1.bias"])
    mean = float(np.trace(fisher)) / len(fisher)
    assert relative_error(by["identity"]["bn1.weight"], np.ones(len(fisher) // 2) / (1.1 * mean)) < 1e-11
    for name in c.layout:
        assert (np.abs(by["zero"][name]).max() == 0.0) == (name in others)
        assert np.abs(by["identity"][name]).min() > 0.0
    heard = Heard()
    table(net, heard)
    (said,) = [w for w in heard.warnings if w.startswith("ekfac: ")]
    assert f"no Kronecker factors for {others[0]}, {others[1]}" in said
    assert f"of {c.size:,} selected parameters" in said
    with pytest.raises(UsageError, match="no Kronecker factors for") as refused:
        table(net, other="refuse")
    assert "other=identity" in str(refused.value.fix)


def test_t24_grouped_convolutions_are_not_factored(grouped: Problem) -> None:
    convolutions = {n: m for n, m in grouped.model.named_modules() if isinstance(m, nn.Conv2d)}
    c = curvature(grouped)
    others = EKFAC().fit(c).facts["others"]
    for name, module in convolutions.items():
        assert (f"{name}.weight" in others) == (module.groups > 1)
    assert any(m.groups > 1 for m in convolutions.values())


# -- cost, options, errors -----------------------------------------------------------------------------------------


def test_modes_dampings_and_objectives_share_one_factor(mlp: Problem) -> None:
    jobs = [
        mlp.job(methods=("ekfac",), options={"ekfac": o})
        for o in ({}, {"mode": "kfac"}, {"damping": 0.3}, {"l2": 0.2}, {"other": "zero"}, {"labels": "exact"})
    ]
    names = [job.factor("ekfac", job.members[0]) for job in jobs]
    assert len(set(names[:5])) == 1
    assert names[5] != names[0]


def test_the_plan_says_what_fitting_costs(mlp: Problem) -> None:
    job = mlp.job(methods=("ekfac",), options={"ekfac": {"fit_sample": 30}})
    (fit,) = describe_plan(job, missing_work(job))["steps"][0]["fits"]
    assert (fit["rows"], fit["passes"]) == (30, 2)
    assert fit["bytes"] > 0
    score(job)
    assert describe_plan(job, missing_work(job))["steps"][0]["fits"] == []


def test_options_that_cannot_be_are_refused() -> None:
    for bad in ({"mode": "x"}, {"labels": "own"}, {"draws": 0}, {"damping": -1.0}, {"other": "skip"}, {"seed": -1}):
        with pytest.raises(UsageError):
            make_methods(GradSpec(("ekfac",), options={"ekfac": bad}))


def test_a_layer_without_gradients_is_damped_by_the_rule_and_refused_without(tmp_path: Path) -> None:
    problem = make_problem(tmp_path, "mlp:3", (4,), classes=3, train=12, val=5)
    with torch.no_grad():
        problem.model.get_parameter("layers.0.bias").fill_(-100.0)  # no unit is ever on
    c = curvature(problem)
    c.factor = EKFAC().fit(c).arrays
    u, _ = EKFAC().precondition(np.ones((c.size, 1)), c)
    assert np.isfinite(u).all()
    with pytest.raises(ModelError, match="singular"):
        EKFAC(damping=0.0).precondition(np.ones((c.size, 1)), c)


@pytest.mark.parametrize("method", ["ekfac", "source"])
def test_a_model_none_of_whose_chosen_parameters_has_a_factor_is_told_of(method: str, tmp_path: Path) -> None:
    texts = [f"a text {'abc'[k % 3] * 3} of row {k}" for k in range(50)]
    splits = ["train"] * 30 + ["val"] * 10 + ["test"] * 10
    write(pa.table({"id": [str(k) for k in range(50)], "text": texts, "split": splits}), tmp_path / "m.parquet")
    asked = ("--model", "gpt:1x16", "--epochs", 2, "--keep-checkpoints", 2, "--record", "moments", "-o", "RUN")
    assert call_cli("retrain", "m.parquet", *asked, cwd=tmp_path).code == 0
    asked = ("--checkpoint", "RUN", "--params", "last", "--method", method, "-o", "s.parquet")
    asked = (*asked, *(("--set", "source.segments=2") if method == "source" else ()))
    ran = call_cli("score", "m.parquet", *asked, cwd=tmp_path)  # its head is its embedding, which has no factors
    assert ran.code == 0, ran.err
    assert "(0%) are covered; there are no Kronecker factors for tokens.weight" in ran.err
    assert "no curvature enters these scores, select other --params" in ran.err

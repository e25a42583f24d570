"""Exact influence (methods.md T08, T10, T11, T12, T13, T14, T15).

Reference: softmax regression in closed form, refitted without a row or with other weights; dense curvature row by row
from autograd; the proximal Bregman response found by Newton steps.  Behavioural: batch sizes and ways to the Jacobian
agree, damping is stated and never silent, what cannot work is refused with what to do.

    python -m pytest tests/methods/test_exact.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from influence_cli.curvature.curvature import Curvature
from influence_cli.curvature.jacobians import Jacobians
from influence_cli.data.open import open_manifest
from influence_cli.data.tables import provenance
from influence_cli.errors import InfluenceError, ManifestError, ModelError, UsageError
from influence_cli.maths.inverse import DenseInverse, default_damping
from influence_cli.methods import make_methods
from influence_cli.methods.exact import MODES, Exact
from influence_cli.model.build import build_model
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import GradSpec
from tests.cases import Heard, write
from tests.opened import score
from tests.oracle import (
    Problem,
    Softmax,
    column,
    dense_curvature,
    flat,
    make_problem,
    relative_error,
    row_gradients,
    save_checkpoint,
    split_names,
    write_manifest,
)

EXACT = ("exact",)
PENALTY = 0.01


# -- P1: logistic regression, n 200, d 5 + intercept ---------------------------------------------------------------


class Logistic:
    """P1 fitted to convergence, with its rows' closed form."""

    def __init__(self, folder: Path, penalty: float = PENALTY, seed: int = 0, weights: bool = False) -> None:
        rng = np.random.default_rng(seed)
        folder.mkdir(parents=True, exist_ok=True)
        features = rng.normal(size=(300, 5)).astype(np.float32)
        slope = np.array([1.5, -1.0, 0.5, 0.0, 0.3])
        labels = (features @ slope + 0.2 + 0.5 * rng.logistic(size=300) > 0).astype(np.int64)
        splits = np.array(split_names(200, 100))
        train = np.flatnonzero(splits == "train")
        self.flipped = rng.choice(train, 12, replace=False)
        labels[self.flipped] = 1 - labels[self.flipped]
        every = rng.choice([0.0, 0.5, 1.0, 3.0], 300) if weights else np.ones(300)
        spec = ModelSpec("linear", 2, "features", (5,))
        inputs, targets = torch.from_numpy(features).double(), torch.from_numpy(labels)
        ids = [f"row-{k:04d}" for k in range(300)]
        self.problem = Problem(folder, spec, build_model(spec).double(), inputs, targets, splits, ids, features)
        columns = {"weight": every} if weights else {}
        write_manifest(self.problem.manifest, features, labels, splits.tolist(), ids, **columns)
        self.train, self.target = (Softmax.of(*self.problem.part(s), 2) for s in ("train", "val"))
        self.weights, self.penalty = every[train], penalty
        self.theta = self.train.fit(self.weights, penalty)
        self.train.into(self.problem.model, self.theta)
        save_checkpoint(self.problem.checkpoint, self.problem.model, spec)
        self.phi = self.target.losses(self.theta).mean()

    @property
    def n(self) -> float:
        return float(self.weights.sum())

    def table(self, **options: Any) -> pa.Table:
        options = {"l2": self.penalty, **options}
        return score(self.problem.job(methods=EXACT, options={"exact": options}))

    def scores(self, **options: Any) -> NDArray[np.float64]:
        return column(self.table(**options), "score")

    def rise(self, weights: NDArray[np.float64], divisor: float) -> float:
        """By how much Phi rises when the objective is minimised anew with other weights."""
        theta = self.train.fit(weights, self.penalty, self.theta, divisor)
        return float(self.target.losses(theta).mean() - self.phi)

    def without(self, row: int, by: float = 1.0) -> NDArray[np.float64]:
        weights = self.weights.copy()
        weights[row] -= by
        return weights


@pytest.fixture(scope="module")
def p1(tmp_path_factory: pytest.TempPathFactory) -> Logistic:
    return Logistic(tmp_path_factory.mktemp("p1"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_t08_refit_without_the_most_negative_row_lowers_phi(seed: int, tmp_path: Path) -> None:
    p = Logistic(tmp_path, seed=seed)
    scores = p.scores()
    worst = int(np.argmin(scores))
    assert scores[worst] < 0
    assert np.flatnonzero(p.problem.splits == "train")[worst] in p.flipped
    assert p.rise(p.without(worst), p.n - 1) < 0
    assert p.rise(p.without(int(np.argmax(scores))), p.n - 1) > 0


def test_t10_sum_and_mean_conventions_and_the_constants_of_raw_loo_and_renorm(p1: Logistic) -> None:
    """raw = n times the sum convention's; effect = raw / n (loo); renorm_loo is loo plus one constant for all rows."""
    table = p1.table(damping=0.03)
    raw, effect = column(table, "score"), column(table, "effect")
    q = p1.target.gradients(p1.theta).mean(axis=0)
    g = p1.train.gradients(p1.theta)
    summed = p1.train.hessian(p1.theta, p1.weights) + p1.n * (p1.penalty + 0.03) * np.eye(12)
    assert relative_error(raw, p1.n * (g @ np.linalg.solve(summed, q))) < 1e-10
    assert relative_error(effect, raw / 200) < 1e-15
    renorm = (g + p1.penalty * p1.theta.ravel()) @ np.linalg.solve(summed, q)
    constant = renorm - effect
    assert np.ptp(constant) < 1e-10 * np.abs(effect).max()
    rows = np.argsort(raw)[[0, 40, 160, 199]]
    undamped = column(p1.table(), "effect") + p1.penalty * float(
        p1.theta.ravel() @ np.linalg.solve(summed - p1.n * 0.03 * np.eye(12), q)
    )
    true = np.array([p1.rise(p1.without(k), p1.n - 1) for k in rows])
    assert np.abs(true - undamped[rows]).max() < 0.1 * np.abs(true).max()  # a retrainer that divides by n - 1


@pytest.mark.parametrize("weights", [False, True])
def test_t11_infinitesimal_jackknife(weights: bool, tmp_path: Path) -> None:
    """Phi after training with w_i - eps and w_i + eps: their difference times n / (2 eps) is the score.

    One-sided differences approach it in proportion to eps; the central one is an order better.
    """
    p = Logistic(tmp_path, weights=weights)
    scores, eps = p.scores(), 1e-4
    rows = np.flatnonzero(p.weights >= eps)[:60]
    down, up = (np.array([p.rise(p.without(k, by), p.n) * p.n / by for k in rows]) for by in (eps, -eps))
    assert relative_error(scores[rows], (down + up) / 2) < 1e-6
    assert relative_error(scores[rows], down) < (5e-5 if weights else 1e-5)
    ten = np.array([p.rise(p.without(k, 10 * eps), p.n) * p.n / (10 * eps) for k in rows])
    assert 9 < relative_error(scores[rows], ten) / relative_error(scores[rows], down) < 11


def test_t12_leave_one_out(p1: Logistic) -> None:
    effect = column(p1.table(), "effect")
    true = np.array([p1.rise(p1.without(k), p1.n - 1) for k in range(200)])
    slope = np.polyfit(effect, true, 1)[0]
    assert stats.pearsonr(effect, true).statistic >= 0.99
    assert stats.spearmanr(effect, true).statistic >= 0.99
    assert 0.9 <= slope <= 1.1
    kept_divisor = np.array([p1.rise(p1.without(k), p1.n) for k in range(200)])
    assert (np.sign(effect) == np.sign(kept_divisor)).mean() >= 0.99
    assert np.linalg.norm(effect - kept_divisor) < 0.1 * np.linalg.norm(kept_divisor)


def test_t13_ridge_leave_one_out_with_the_leverage_factor() -> None:
    """P3, on the solver alone (squared error is no row loss of the tool): exact with 1 / (1 - h_ii)."""
    rng = np.random.default_rng(0)
    n, d, penalty = 60, 6, 0.1
    x, y = rng.normal(size=(n, d)), rng.normal(size=n)
    hessian = x.T @ x / n + penalty * np.eye(d)
    inverse = DenseInverse(hessian, "ggn", 0.0)
    theta = inverse.solve((x.T @ y / n)[:, None])[:, 0]
    steps = inverse.solve((x * (x @ theta - y)[:, None]).T) / n  # [d, n]: (1/n) H^-1 g_i
    leverage = (x * inverse.solve(x.T).T).sum(axis=1) / n
    for i in range(n):
        kept = np.arange(n) != i
        without = np.linalg.solve(x[kept].T @ x[kept] / n + penalty * np.eye(d), x[kept].T @ y[kept] / n)
        assert np.abs(without - theta - steps[:, i] / (1 - leverage[i])).max() < 1e-10


def test_t14_scores_sum_to_zero_at_an_unpenalised_optimum(tmp_path: Path) -> None:
    p = Logistic(tmp_path, penalty=0.0)
    for options in ({}, {"damping": 0.1}, {"mode": "clamp"}, {"mode": "emp"}):
        scores = p.scores(**options)
        assert abs(scores.sum()) < 1e-8 * np.abs(scores).sum()
    away = Logistic(tmp_path / "penalised", penalty=0.05)
    scores = away.scores()
    assert abs(scores.sum()) > 1e-3 * np.abs(scores).sum()


# -- P2: a network that has not converged ----------------------------------------------------------------------------


class Net:
    """A small network of any layers on random features, with the manifest that its curvature is fitted on."""

    def __init__(self, folder: Path, model: nn.Module, width: int, classes: int, n: int, weights: bool = True) -> None:
        torch.manual_seed(0)
        rng = np.random.default_rng(1)
        features, labels = rng.normal(size=(n, width)).astype(np.float32), rng.integers(0, classes, n)
        every = rng.choice([0.5, 1.0, 2.0], n) if weights else np.ones(n)
        self.path = write_manifest(folder / "fit.parquet", features, labels, ["train"] * n, weight=every)
        self.model, self.x, self.y = (
            model.double().eval(),
            torch.from_numpy(features).double(),
            torch.from_numpy(labels),
        )
        self.w, self.spec = torch.from_numpy(every), ModelSpec("net", classes, "features", (width,))

    def curvature(self, **how: Any) -> Curvature:
        return Curvature(self.model, self.spec, open_manifest(self.path).rows("train"), **how)


def tanh() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))


class Recurrent(nn.Module):
    """An LSTM over pairs of features: its kernel has no batching rule over rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.view(len(x), -1, 2))[0][:, -1])


@pytest.fixture(scope="module")
def p2(tmp_path_factory: pytest.TempPathFactory) -> Net:
    return Net(tmp_path_factory.mktemp("p2"), tanh(), 3, 3, 30)


def test_t15_proximal_bregman_response(tmp_path: Path) -> None:
    """min mean KL(p_hat || p) + delta/2 |theta - theta_hat|^2 - (eps/n) l_i: (Phi(theta_eps) - Phi)/eps -> s_i/n."""
    net, delta, eps = Net(tmp_path, tanh(), 3, 3, 30, weights=False), 0.1, 0.01
    shapes = {n: p.shape for n, p in net.model.named_parameters()}
    start = torch.cat([p.detach().flatten() for p in net.model.parameters()])
    rng = np.random.default_rng(5)
    x_v, y_v = torch.from_numpy(rng.normal(size=(20, 3))), torch.from_numpy(rng.integers(0, 3, 20))

    def logits(theta: Tensor, x: Tensor) -> Tensor:
        parts = zip(shapes.items(), theta.split([s.numel() for s in shapes.values()]), strict=True)
        return torch.func.functional_call(net.model, {n: v.view(s) for (n, s), v in parts}, (x,))

    def phi(theta: Tensor) -> Tensor:
        return F.cross_entropy(logits(theta, x_v), y_v)

    with torch.no_grad():
        anchor = logits(start, net.x).softmax(1)

    def response(row: int) -> Tensor:
        def objective(theta: Tensor) -> Tensor:
            kl = (anchor * (anchor.log() - logits(theta, net.x).log_softmax(1))).sum(1).mean()
            own = F.cross_entropy(logits(theta, net.x[row : row + 1]), net.y[row : row + 1])
            return kl + delta / 2 * ((theta - start) ** 2).sum() - eps / 30 * own

        theta = start
        for _ in range(6):
            gradient = torch.autograd.functional.jacobian(objective, theta)
            theta = theta - torch.linalg.solve(
                torch.autograd.functional.hessian(objective, theta, vectorize=True), gradient
            )
        assert torch.autograd.functional.jacobian(objective, theta).abs().max() < 1e-12
        return theta

    curvature, method = net.curvature(), Exact(mode="ggn", damping=delta, l2=0.0)
    curvature.factor = method.fit(curvature).arrays
    q = torch.autograd.functional.jacobian(phi, start).numpy()[:, None]
    u = method.precondition(q, curvature)[0][:, 0]
    rows = range(0, 30, 3)
    gradients = [torch.cat([v.flatten() for v in g.values()]).numpy() for g in row_gradients(net.model, net.x, net.y)]
    scores = np.array([gradients[k] @ u for k in rows])
    found = np.array([float(phi(response(k)) - phi(start)) / eps * 30 for k in rows])
    assert relative_error(scores, found) < 5e-3


KINDS = ("ggn", "hessian", "empirical")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["reverse", "forward"])
def test_dense_curvature_is_the_oracles_whatever_the_batch_size(kind: Any, way: Any, p2: Net) -> None:
    expected = dense_curvature(p2.model, p2.x, p2.y, p2.w, kind)
    first = p2.curvature(way=way).dense(kind)
    assert relative_error(first[0], expected) < 1e-12
    rows = np.stack([torch.cat([v.flatten() for v in g.values()]).numpy() for g in row_gradients(p2.model, p2.x, p2.y)])
    assert relative_error(first[1], p2.w.numpy() @ rows / p2.w.sum().item()) < 1e-12
    for size in (1, 7, 30):
        other = p2.curvature(way=way, batch_size=size).dense(kind)
        assert relative_error(other[0], first[0]) < 1e-12
        assert relative_error(other[1], first[1]) < 1e-12


def test_a_batch_is_taken_in_blocks_that_bound_the_memory(p2: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = p2.curvature().dense("ggn")
    sizes: list[int] = []
    take = Jacobians.of_rows

    def counted(self: Jacobians, x: Tensor) -> Tensor:
        sizes.append(len(x))
        return take(self, x)

    monkeypatch.setattr(Jacobians, "of_rows", counted)
    monkeypatch.setattr("influence_cli.curvature.dense.JACOBIAN_VALUES", 4 * 3 * whole[0].shape[0])
    small = p2.curvature().dense("ggn")
    assert max(sizes) == 4
    assert sum(sizes) == 30
    assert relative_error(small[0], whole[0]) < 1e-12


def test_a_model_that_cannot_be_batched_over_rows_takes_the_other_way(tmp_path: Path) -> None:
    net = Net(tmp_path, Recurrent(), 6, 3, 8)
    with pytest.raises((RuntimeError, NotImplementedError)):
        net.curvature(way="reverse").dense("ggn")
    for kind in KINDS:
        expected = dense_curvature(net.model, net.x, net.y, net.w, kind)
        assert relative_error(net.curvature().dense(kind)[0], expected) < 1e-12


@pytest.mark.parametrize("batch_size", [3, 256])
def test_products_are_the_dense_matrix_times_the_columns(batch_size: int, p2: Net) -> None:
    v = np.random.default_rng(0).normal(size=(p2.curvature().size, 4))
    curvature = p2.curvature(batch_size=batch_size)
    for kind in ("ggn", "hessian"):
        found = curvature.product(kind, v)
        assert relative_error(found, dense_curvature(p2.model, p2.x, p2.y, p2.w, kind) @ v) < 1e-12
        assert relative_error(found, curvature.product(kind, v)) == 0  # from memory the second time


def test_a_direction_is_flat_and_back_in_one_order(p2: Net) -> None:
    curvature = p2.curvature()
    v = np.arange(curvature.size, dtype=np.float64)
    named = curvature.by_name(v)
    assert curvature.flat(dict(reversed(named.items()))).tolist() == v.tolist()
    theta = torch.cat([p.detach().flatten() for p in p2.model.parameters()]).numpy()
    assert np.array_equal(curvature.theta, theta)


# -- modes, damping and l2 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("mlp"), "mlp:4", (5,), classes=3, train=40, val=12)


DEFINED_AS = {
    "ggn": "ggn",
    "damp": "hessian",
    "clamp": "hessian",
    "abs": "hessian",
    "fisher": "fisher",
    "emp": "empirical",
}


def by_the_oracle(problem: Problem, mode: str, l2: float, damping: float | None) -> tuple[NDArray[np.float64], float]:
    """Scores of the train rows from dense matrices and the loop, and the damping used."""
    x, y = problem.part("train")
    dense = dense_curvature(problem.model, x, y, torch.ones(len(y), dtype=torch.float64), DEFINED_AS[mode])
    e, v = np.linalg.eigh(dense + l2 * np.eye(len(dense)))
    e = {"clamp": np.maximum(e, 0), "abs": np.abs(e)}.get(mode, e)
    if damping is None:
        damping = 0.0 if e.min() > 1e-8 * e.max() else 1e-3 * float(e.mean())
    order = [n for n, _ in problem.model.named_parameters()]

    def vector(g: dict[str, Tensor]) -> NDArray[np.float64]:
        return torch.cat([g[n].flatten() for n in order]).numpy()

    q = np.mean([vector(g) for g in row_gradients(problem.model, *problem.part("val"))], axis=0)
    u = v @ ((v.T @ q) / (e + damping))
    return np.array([vector(g) @ u for g in row_gradients(problem.model, x, y)]), damping


@pytest.mark.parametrize(
    ("mode", "l2", "damping"),
    [
        ("ggn", 0.0, None), ("ggn", 0.01, None), ("ggn", 0.0, 0.5), ("damp", 0.1, 0.9), ("clamp", 0.0, None),
        ("clamp", 0.05, 0.01), ("abs", 0.0, 0.02), ("abs", 0.01, None), ("fisher", 0.0, 0.1), ("emp", 0.02, None),
    ],
)  # fmt: skip
def test_every_mode_equals_the_dense_oracle(mode: str, l2: float, damping: float | None, mlp: Problem) -> None:
    expected, used = by_the_oracle(mlp, mode, l2, damping)
    options = {"mode": mode, "l2": l2, "damping": damping}
    table = score(mlp.job(methods=EXACT, options={"exact": options}))
    assert relative_error(column(table, "score"), expected) < 1e-8
    facts = provenance(table.schema)["curvature"]["exact"]
    assert facts["damping"] == pytest.approx(used, rel=1e-9)
    assert (facts["mode"], facts["l2"], facts["damping_by_rule"]) == (mode, l2, damping is None)


def test_every_mode_has_an_oracle() -> None:
    assert set(DEFINED_AS) == set(MODES)


def test_scores_do_not_depend_on_the_batch_size(mlp: Problem) -> None:
    first = score(mlp.job(methods=EXACT))
    for size in (1, 7):
        assert relative_error(column(score(mlp.job(methods=EXACT, batch_size=size))), column(first)) < 1e-10


def test_selected_parameters_alone_are_inverted(mlp: Problem) -> None:
    table = score(mlp.job(methods=EXACT, params="last", options={"exact": {"damping": 0.2}}))
    names = ["head.weight", "head.bias"]
    x, y = mlp.part("train")
    keep = np.concatenate([np.full(p.numel(), n in names) for n, p in mlp.model.named_parameters()])
    dense = dense_curvature(mlp.model, x, y, torch.ones(len(y), dtype=torch.float64), "ggn")[np.ix_(keep, keep)]

    def vectors(split: str) -> NDArray[np.float64]:
        every = row_gradients(mlp.model, *mlp.part(split), names)
        return np.stack([torch.cat([g[n].flatten() for n in names]).numpy() for g in every])

    u = np.linalg.solve(dense + 0.2 * np.eye(len(dense)), vectors("val").mean(axis=0))
    assert relative_error(column(table), vectors("train") @ u) < 1e-10
    assert provenance(table.schema)["curvature"]["exact"]["parameters"] == 15


def test_scores_of_two_objectives_mean_add_up(mlp: Problem, tmp_path: Path) -> None:
    """P is linear: with half of the target each, the mean of the scores is the score of both."""
    target = np.flatnonzero(mlp.splits == "val")

    def scored(rows: NDArray[np.int64], name: str) -> NDArray[np.float64]:
        labels, splits = mlp.labels.numpy()[rows], ["val"] * len(rows)
        path = write_manifest(tmp_path / name, np.asarray(mlp.payloads)[rows], labels, splits)
        return column(score(mlp.job(methods=EXACT, target=str(path))))

    halves = scored(target[:6], "a.parquet"), scored(target[6:], "b.parquet")
    assert relative_error((halves[0] + halves[1]) / 2, scored(target, "c.parquet")) < 1e-12


def test_the_default_rule_damps_only_what_is_singular() -> None:
    assert default_damping(np.array([1e-7, 1.0])) == 0.0
    assert default_damping(np.array([1e-8, 1.0])) == pytest.approx(0.5e-3)
    assert default_damping(np.array([-1.0, 0.5])) == 0.0  # a negative mean damps nothing, and the solve says so


def test_an_indefinite_hessian_is_an_error_that_names_the_eigenvalue_and_ggn(mlp: Problem) -> None:
    x, y = mlp.part("train")
    e = np.linalg.eigvalsh(dense_curvature(mlp.model, x, y, torch.ones(len(y), dtype=torch.float64), "hessian"))
    assert e[0] < -0.01
    job = mlp.job(methods=EXACT, options={"exact": {"mode": "damp"}})
    with pytest.raises(ModelError) as raised:
        score(job)
    assert f"{e[0]:.5g}"[:6] in raised.value.what
    assert "mode=ggn" in raised.value.fix
    kept = mlp.job(methods=EXACT, options={"exact": {"mode": "damp", "damping": 1.1 * abs(float(e[0]))}})
    assert np.isfinite(column(score(kept))).all()


def test_a_singular_curvature_without_damping_is_an_error_and_is_never_damped_silently(mlp: Problem) -> None:
    with pytest.raises(ModelError, match="singular") as raised:
        score(mlp.job(methods=EXACT, options={"exact": {"damping": 0.0}}))
    assert "exact.damping" in raised.value.fix


@pytest.mark.parametrize(
    "options",
    [{"mode": "newton"}, {"damping": -1}, {"l2": -0.1}, {"max_parameters": 0}, {"max_parameters": 1.5}, {"scale": 1}],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make_methods(GradSpec(methods=EXACT, options={"exact": options}))


def test_too_many_parameters_are_refused_before_any_pass_with_what_to_do(mlp: Problem) -> None:
    from tests.opened import missing_work

    heard = Heard()
    job = mlp.job(methods=EXACT, options={"exact": {"max_parameters": 38}})
    job.listener = heard
    with pytest.raises(UsageError, match="39 by 39") as raised:
        missing_work(job)
    for said in ("--params last", "ip", "exact.max_parameters=39"):
        assert said in raised.value.fix
    assert heard.spans == []
    assert np.isfinite(column(score(mlp.job(methods=EXACT, options={"exact": {"max_parameters": 39}})))).all()


@pytest.mark.parametrize("what", ["logits", "derivatives"])
@pytest.mark.parametrize("mode", ["ggn", "damp"])
def test_a_fit_row_that_is_not_finite_is_named(what: str, mode: str, mlp: Problem) -> None:
    features = np.asarray(mlp.payloads).copy()
    row = int(np.flatnonzero(mlp.splits == "train")[3])
    features[row] = 3e38
    model = mlp.model
    if what == "logits":
        import copy

        model = copy.deepcopy(mlp.model)
        with torch.no_grad():
            model.get_parameter("head.weight").mul_(1e300)
    path = write_manifest(mlp.folder / f"{what}.parquet", features, mlp.labels.numpy(), mlp.splits.tolist(), mlp.ids)
    curvature = Curvature(model, mlp.spec, open_manifest(path).rows("train"), batch_size=7)
    kind = MODES[mode]
    if what == "derivatives":
        curvature.point.model.register_forward_hook(lambda _m, x, z: z + (x[0].sum(1, keepdim=True) / 1e30).exp())
    with pytest.raises(ManifestError) as raised:
        curvature.dense(kind)
    assert mlp.ids[row] in raised.value.where


def test_rows_of_weight_zero_are_left_out_of_the_fit_and_of_n(tmp_path: Path) -> None:
    p = Logistic(tmp_path, weights=True)
    table = p.table()
    said = provenance(table.schema)
    assert said["fit_rows"]["rows"] == int((p.weights > 0).sum()) < 200
    assert said["fit_rows"]["weight"] == pytest.approx(p.n)
    assert relative_error(column(table, "effect"), column(table) / p.n) < 1e-15
    hessian = p.train.hessian(p.theta, p.weights) / p.n + p.penalty * np.eye(12)
    q = p.target.gradients(p.theta).mean(axis=0)
    assert relative_error(column(table), p.train.gradients(p.theta) @ np.linalg.solve(hessian, q)) < 1e-10


def test_the_report_is_the_spectrum_and_the_gradient_of_the_training_objective(mlp: Problem) -> None:
    heard = Heard()
    job = mlp.job(methods=EXACT, options={"exact": {"l2": 0.02}})
    job.listener = heard
    facts = provenance(score(job).schema)["curvature"]["exact"]
    x, y = mlp.part("train")
    dense = dense_curvature(mlp.model, x, y, torch.ones(len(y), dtype=torch.float64), "ggn") + 0.02 * np.eye(39)
    e = np.linalg.eigvalsh(dense)
    assert facts["smallest_eigenvalue"] == pytest.approx(e[0], rel=1e-9)
    assert facts["largest_eigenvalue"] == pytest.approx(e[-1], rel=1e-9)
    assert facts["condition_number"] == pytest.approx(e[-1] / e[0], rel=1e-9)
    g = torch.stack([flat(g) for g in row_gradients(mlp.model, x, y)]).mean(0)
    theta = flat({n: p.detach() for n, p in mlp.model.named_parameters()})
    assert facts["gradient_norm"] == pytest.approx(float((g + 0.02 * theta).norm()), rel=1e-9)
    assert (facts["fit_rows"], facts["parameters"]) == (40, 39)
    (note,) = [n for n in heard.notes if n.startswith("exact: ")]
    assert f"{facts['condition_number']:.3g}" in note
    assert f"{facts['gradient_norm']:.3g}" in note
    (stored,) = job.store.factors.known().values()
    assert stored["facts"]["largest_eigenvalue"] == pytest.approx(e[-1] - 0.02, rel=1e-9)
    assert stored["facts"]["gradient_norm"] == pytest.approx(float(g.norm()), rel=1e-9)


def test_reliability_is_of_the_methods_own_scores(mlp: Problem) -> None:
    """Both halves' scores from the oracle's P, ranked: what is reported for exact, and not what is for ip."""
    from influence_cli.engines.buckets import bucket_of

    options = {"exact": {"damping": 0.001}}
    said = provenance(score(mlp.job(methods=EXACT, options=options)).schema)["noise"]["utility"]["reliability"]
    x, y = mlp.part("train")
    dense = dense_curvature(mlp.model, x, y, torch.ones(len(y), dtype=torch.float64), "ggn")
    order = [n for n, _ in mlp.model.named_parameters()]

    def vectors(split: str) -> NDArray[np.float64]:
        every = row_gradients(mlp.model, *mlp.part(split))
        return np.stack([torch.cat([g[n].flatten() for n in order]).numpy() for g in every])

    even = bucket_of(open_manifest(mlp.manifest).rows("val").payload_keys) % 2 == 0
    target, train = vectors("val"), vectors("train")
    inverse = np.linalg.inv(dense + 0.001 * np.eye(len(dense)))
    a, b = (train @ inverse @ target[half].mean(axis=0) for half in (even, ~even))
    assert said == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    plain = provenance(score(mlp.job()).schema)["noise"]["utility"]["reliability"]
    both = provenance(score(mlp.job(methods=("ip", "exact"), options=options)).schema)["noise"]["utility"][
        "reliability"
    ]
    assert both == plain != said


def test_an_ill_conditioned_curvature_is_warned_of_in_float32(mlp: Problem) -> None:
    heard = Heard()
    job = mlp.job(methods=EXACT, precision="fp32", options={"exact": {"damping": 1e-9}})
    job.listener = heard
    score(job)
    assert any("condition number" in w and "--precision fp64" in w for w in heard.warnings)
    quiet = Heard()
    job = mlp.job(methods=EXACT, precision="fp32", options={"exact": {"damping": 0.1}})
    job.listener = quiet
    score(job)
    assert [w for w in quiet.warnings if "accuracy" not in w] == []


def test_single_precision_agrees_with_double(mlp: Problem) -> None:
    options = {"exact": {"damping": 0.05}}
    double, single = (score(mlp.job(methods=EXACT, precision=p, options=options)) for p in ("fp64", "fp32"))
    assert relative_error(column(single), column(double)) < 1e-4


def test_only_the_first_methods_effect_is_in_the_table(mlp: Problem) -> None:
    both = score(mlp.job(methods=("exact", "ip")))
    assert provenance(both.schema)["effect"] is True
    assert both.column_names.index("effect") == both.column_names.index("score") + 1
    assert column(both, "effect").tolist() == (column(both, "score_exact_utility") / 40).tolist()
    other = score(mlp.job(methods=("ip", "exact")))
    assert provenance(other.schema)["effect"] is False
    assert "effect" not in other.column_names
    assert "score_exact_utility" in other.column_names


def test_errors_are_ours(mlp: Problem) -> None:
    with pytest.raises(InfluenceError):
        score(mlp.job(methods=EXACT, fit_rows=str(mlp.folder / "gone.parquet")))


# -- real data -----------------------------------------------------------------------------------------------------

ON_BANK: dict[str, dict[str, Any]] = {"exact": {}, "cg": {}, "lissa": {"batch": 256}, "arnoldi": {"r": "all"}}
BANK = Path(__file__).parents[3] / "shared" / "data" / "bank" / "manifest.parquet"


@pytest.mark.shared_data
@pytest.mark.skipif(not BANK.exists(), reason=f"no {BANK.parent.name} data beside the checkout")
@pytest.mark.parametrize("label", ["label", "label_flip20"])
def test_effect_predicts_leave_one_out_refits_on_bank(label: str, tmp_path: Path) -> None:
    """Logistic regression on 18,292 rows: 20 rows, each left out of a refit to convergence, by every such method."""
    table, penalty = pq.read_table(BANK), 1e-3
    table = table.set_column(table.column_names.index("label"), "label", table.column(label))
    write(table.select(["id", "split", "features", "label"]), tmp_path / "manifest.parquet")
    features = np.stack(table.column("features").to_numpy(zero_copy_only=False)).astype(np.float32)
    labels, splits = table.column("label").to_numpy(), np.array(table.column("split").to_pylist())
    spec = ModelSpec("linear", 2, "features", (features.shape[1],))
    problem = Problem(
        tmp_path, spec, build_model(spec).double(), torch.from_numpy(features).double(),
        torch.from_numpy(labels.copy()), splits, table.column("id").to_pylist(), features,
    )  # fmt: skip
    train, target = (Softmax.of(*problem.part(s), 2) for s in ("train", "val"))
    n = len(train.y)
    theta = train.fit(np.ones(n), penalty)
    save_checkpoint(problem.checkpoint, train.into(problem.model, theta), spec)
    phi = target.losses(theta).mean()
    options = {name: {"l2": penalty, **given} for name, given in ON_BANK.items()}
    scored = score(problem.job(methods=tuple(ON_BANK), options=options, allow_overlap=True))
    effects = {name: column(scored, f"score_{name}_utility") / n for name in ON_BANK}
    assert np.array_equal(effects["exact"], column(scored, "effect"))
    said = provenance(scored.schema)["curvature"]
    for name, facts in said.items():
        assert (facts["damping"], facts["fit_rows"]) == (0.0, n), name
        assert facts["gradient_norm"] < 1e-12
    assert said["cg"]["converged"]
    assert said["arnoldi"]["complete"]
    order = np.argsort(effects["exact"])
    rows = [*order[:8].tolist(), *order[-8:].tolist(), *order[n // 5 :: n // 5][:4].tolist()]
    true = []
    for row in rows:
        weights = np.ones(n)
        weights[row] = 0.0
        true.append(target.losses(train.fit(weights, penalty, theta)).mean() - phi)
    for name, effect in effects.items():
        assert 0.9 <= np.polyfit(effect[rows], true, 1)[0] <= 1.1, name
        assert stats.pearsonr(effect[rows], true).statistic >= 0.99, name

"""Local Bayesian influence (methods.md T44, T45, T46) against chains written out in float64, and dense influence.

python -m pytest tests/methods/test_bif.py
"""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from influence_cli.data.open import open_manifest
from influence_cli.data.tables import provenance
from influence_cli.errors import ModelError, UsageError
from influence_cli.maths.langevin import ChainState, Gradient, Law, advanced, chosen_rows, noise
from influence_cli.methods.bif import BIF
from influence_cli.methods.stored import Chain
from influence_cli.model.losses import CROSS_ENTROPY
from influence_cli.settings import GradSpec
from influence_cli.stages.grads.chains import ChainRunner
from influence_cli.stages.grads.further import open_fit_rows
from influence_cli.stages.grads.further_report import doubts_of
from influence_cli.stages.grads.member_model import Models
from influence_cli.stages.grads.phi_values import PhiValues
from influence_cli.stages.score.stored import StoredRows
from influence_cli.store.maintenance import examine
from tests.cases import Heard, at_once, call_cli, job_of, write
from tests.opened import Opened, fill, missing_work, score
from tests.oracle import (
    Problem,
    Softmax,
    column,
    make_problem,
    relative_error,
    write_manifest,
)

FACTS = {"nbeta": 2.0, "diverged": None}
NBETA, DELTA, STEP, CHAINS, DRAWS, BURN, THIN = 40.0, 0.3, 0.004, 2, 12, 5, 2
OPTIONS = {
    "nbeta": NBETA, "damping": DELTA, "step": STEP, "chains": CHAINS, "draws": DRAWS, "burn_in": BURN, "thin": THIN,
}  # fmt: skip


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("bif"), "mlp:5", (3,), classes=3, train=30, val=12)


def job(problem: Problem, options: dict[str, Any] | None = None, **more: Any) -> Opened:
    return problem.job(methods=("bif",), options={"bif": {**OPTIONS, **(options or {})}}, **more)


def loops(problem: Problem, sampler: str = "sgld", batch: int = 30, l2: float = 0.0, last: bool = False) -> np.ndarray:
    """Losses of train rows and, last, Phi [C, T, n + 1] at the draws, by autograd and the update as it is written."""
    (x, y), (xv, yv) = problem.part("train"), problem.part("val")
    keys = open_manifest(str(problem.manifest)).rows("train").row_keys
    order = np.array(sorted(range(len(keys)), key=lambda k: keys[k].tobytes()))
    found = np.zeros((CHAINS, DRAWS, len(x) + 1))
    for c in range(CHAINS):
        model = copy.deepcopy(problem.model)
        own = [p for n, p in model.named_parameters() if not last or n.startswith("head.")]
        start = torch.nn.utils.parameters_to_vector(own).detach().clone()
        w, v = start.clone(), torch.zeros_like(start)
        for t in range(1, BURN + DRAWS * THIN + 1):
            torch.nn.utils.vector_to_parameters(w, own)
            chosen = chosen_rows(f"bif:0:{c}", t - 1, len(x), batch)
            rows = order if chosen is None else order[chosen]
            loss = F.cross_entropy(model(x[rows]), y[rows])
            g = torch.cat([p.flatten() for p in torch.autograd.grad(loss, own)]) + l2 * w
            scale = torch.ones_like(w)
            if sampler == "rmsprop":
                v = 0.99 * v + 0.01 * g**2 if t <= BURN else v
                scale = 1 / ((v / (1 - 0.99 ** min(t, BURN))).sqrt() + 0.1)
            drift = NBETA * g + DELTA * NBETA * (w - start)
            w = w - STEP / 2 * scale * drift + (STEP * scale).sqrt() * noise(f"bif:0:{c}", t - 1, w)
            if t > BURN and (t - BURN) % THIN == 0:
                torch.nn.utils.vector_to_parameters(w, own)
                with torch.no_grad():
                    losses = [F.cross_entropy(model(x), y, reduction="none"), F.cross_entropy(model(xv), yv)[None]]
                    found[c, (t - BURN) // THIN - 1] = torch.cat(losses).numpy()
    return found


def pooled(draws: np.ndarray, correlation: bool = False) -> np.ndarray:
    off = draws - draws.mean(1, keepdims=True)  # within each chain
    products = (off[..., :-1] * off[..., -1:]).sum((0, 1))
    if correlation:
        return products / np.sqrt((off[..., :-1] ** 2).sum((0, 1)) * (off[..., -1] ** 2).sum())
    return NBETA * products / (draws.shape[0] * (draws.shape[1] - 1))


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, {}),
        ({"batch": 8}, {"batch": 8}),
        ({"sampler": "rmsprop", "l2": 0.05}, {"sampler": "rmsprop", "l2": 0.05}),
        ({"batch": 8, "params": "last"}, {"batch": 8, "last": True}),
    ],
)
def test_scores_are_covariances_over_chains_written_out(problem: Problem, options: dict, how: dict) -> None:
    params = options.get("params", "all")
    given = {k: v for k, v in options.items() if k != "params"}
    table = score(job(problem, given, params=params), per_member=True)
    draws = loops(problem, **how)
    assert relative_error(column(table), pooled(draws)) < 1e-9
    assert relative_error(column(table, "score_utility_1"), pooled(draws[1:])) < 1e-9
    np.testing.assert_allclose(column(table, "effect"), column(table) / 30, rtol=1e-12)
    facts = provenance(table.schema)["further"]["bif"]
    assert facts["gamma"] == pytest.approx(DELTA * NBETA)
    assert facts["objectives"]["utility"]["draws"] == CHAINS * DRAWS


def test_the_correlation_is_of_the_same_draws(problem: Problem, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    fill(job(problem, store=str(tmp_path / "store")))
    case = job(problem, {"norm": "correlation"}, store=str(tmp_path / "store"))
    assert all(w.nothing for w in missing_work(case))
    table = score(case)
    assert relative_error(column(table), pooled(loops(problem), correlation=True)) < 1e-9
    assert "effect" not in table.column_names


def test_t46_batches_of_rows_change_nothing_and_chains_come_one_by_one(problem: Problem, tmp_path: Path) -> None:
    straight = column(score(job(problem)))
    np.testing.assert_allclose(column(score(job(problem, batch_size=7))), straight, rtol=1e-10, atol=1e-13)
    (tmp_path / "store").mkdir()
    fill(job(problem, {"chains": 1}, store=str(tmp_path / "store")))
    more = job(problem, store=str(tmp_path / "store"))
    assert [f.what for w in missing_work(more) for f in w.further] == ["chain 2"]
    np.testing.assert_array_equal(column(score(more)), straight)
    order = np.random.default_rng(1).permutation(len(problem.ids))
    table = score(job(problem, manifest=problem.permuted(order, "other.parquet")))
    place = {i: k for k, i in enumerate(table.column("id").to_pylist())}
    own = [i for i, s in zip(problem.ids, problem.splits, strict=True) if s == "train"]
    np.testing.assert_allclose(column(table)[[place[i] for i in own]], straight, rtol=1e-9)


def test_a_chain_that_was_stopped_goes_on_from_where_it_was(problem: Problem, tmp_path: Path) -> None:
    straight = column(score(job(problem, {"sampler": "rmsprop"})))
    (tmp_path / "store").mkdir()

    def stop() -> None:
        raise KeyboardInterrupt

    case = job(problem, {"sampler": "rmsprop"}, store=str(tmp_path / "store"))
    case.listener = Heard(stop, BURN + 9, "bif chain 2")
    with pytest.raises(KeyboardInterrupt):
        fill(case)
    again = job(problem, {"sampler": "rmsprop"}, store=str(tmp_path / "store"))
    heard = again.listener = Heard(None, 0, "bif chain 2")
    np.testing.assert_array_equal(column(score(again)), straight)
    assert heard.advances == BURN + DRAWS * THIN - (BURN + 9)


def test_new_rows_are_observed_along_the_same_chains(problem: Problem, tmp_path: Path) -> None:
    """With a pinned fit set; the others keep their moments."""
    few = [k for k, s in enumerate(problem.splits) if s != "train" or k % 5]
    payloads = problem.payloads[few]  # pyright: ignore[reportArgumentType, reportCallIssue]
    labels, splits, ids = problem.labels.numpy()[few], problem.splits[few].tolist(), [problem.ids[k] for k in few]
    part = write_manifest(tmp_path / "few.parquet", payloads, labels, splits, ids)
    (tmp_path / "store").mkdir()
    pinned: dict[str, Any] = {"fit_rows": str(problem.manifest), "store": str(tmp_path / "store")}
    fill(job(problem, manifest=part, **pinned))
    case = job(problem, **pinned)
    lacking = {len(keys) for w in missing_work(case) for keys in w.in_pass("chains").values()}
    assert lacking == {sum(s == "train" and not k % 5 for k, s in enumerate(problem.splits))}
    np.testing.assert_allclose(column(score(case)), column(score(job(problem))), rtol=1e-12)


def test_t45_with_much_data_it_is_influence_at_the_same_damping(problem: Problem) -> None:
    """Logistic regression, n 200, 4 chains of 5,000 draws side by side; the limit of large damping is ip."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(250, 5)) * np.array([0.3, 0.6, 1.0, 1.5, 2.0])
    x, y = torch.from_numpy(x), torch.from_numpy((x @ rng.normal(size=5) + rng.normal(size=250) > 0).astype(np.int64))
    x, y, xv, yv = x[:200], y[:200], x[200:], y[200:]
    fit, target = Softmax.of(x, y, 2), Softmax.of(xv, yv, 2)
    theta = fit.fit(np.ones(200), 0.01)
    g, q, hessian = fit.gradients(theta), target.gradients(theta).mean(0), fit.hessian(theta, np.ones(200) / 200)
    inputs = [torch.from_numpy(s.x) for s in (fit, target)]
    labels = [y.expand(4, -1), yv.expand(4, -1)]
    start = torch.from_numpy(theta.ravel())

    def losses(w: torch.Tensor, of: int) -> torch.Tensor:
        z = torch.einsum("kcd,nd->knc", w.view(4, 2, -1), inputs[of])
        return F.cross_entropy(z.transpose(1, 2), labels[of], reduction="none")

    def gradient(w: torch.Tensor, step: int) -> tuple[float, torch.Tensor]:
        p = torch.einsum("kcd,nd->knc", w.view(4, 2, -1), inputs[0]).softmax(2) - F.one_hot(y, 2)
        return 0.0, torch.einsum("knc,nd->kcd", p, inputs[0]).reshape(4, -1) / 200

    def scores(nbeta: float, delta: float, draws: int) -> np.ndarray:
        top = nbeta * (float(np.linalg.eigvalsh(hessian)[-1]) + delta)
        law, state = Law(nbeta, nbeta * delta, 0.6 / top), ChainState(0, start.repeat(4, 1))
        every = np.zeros((4, draws, 201))
        for t in range(draws + 50):
            state, _ = advanced(state, law, gradient, start, "t45")
            if t >= 50:
                every[:, t - 50, :200], every[:, t - 50, 200] = losses(state.w, 0), losses(state.w, 1).mean(1)
        chains: list[Chain] = []
        for chain in every:
            off = chain - chain.mean(0)
            of_phi = (off * off[:, -1:]).sum(0)[:-1]
            chains.append(Chain(chain.mean(0), (off**2).sum(0)[:-1], of_phi, chain[:, -1], FACTS | {"nbeta": nbeta}))
        stored = SimpleNamespace(objectives=("utility",), chains=lambda _: chains)
        return BIF().score(stored, open_manifest(str(problem.manifest)).rows("train"), CROSS_ENTROPY)[0].values  # pyright: ignore[reportArgumentType]

    exact = g @ np.linalg.solve(hessian + 0.05 * np.eye(len(hessian)), q)
    found = scores(1e5, 0.05, 5000)
    assert spearman(found, exact) > 0.97
    assert np.polyfit(exact, found, 1)[0] == pytest.approx(1.0, abs=0.2)
    ip = g @ q
    assert spearman(ip, exact) < spearman(found, exact) - 0.01
    assert np.corrcoef(100.0 * scores(1e5, 100.0, 500), ip)[0, 1] > 0.95


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def test_values_of_objectives_are_those_of_the_target_pass(tmp_path: Path) -> None:
    """Of means of rows, of groups and of attacked rows; chains of several objectives share the draws."""
    problem = make_problem(tmp_path, "mlp:5", (3,), classes=2, train=30, val=80)
    groups = ["a" if k % 3 else "b" for k in range(110)]
    manifest = write_manifest(
        tmp_path / "g.parquet", problem.payloads, problem.labels.numpy(), problem.splits.tolist(), problem.ids,
        group=groups,
    )  # fmt: skip
    objectives = ("utility", "fairness", "robustness")
    more = {"robustness": {"attack": "fgsm"}}
    case = problem.job(
        methods=("ip", "bif"), objectives=objectives, options={"bif": OPTIONS, **more}, manifest=manifest
    )
    table = score(case)
    noise_of = provenance(table.schema)["noise"]
    run, session = case.run, case.session
    models = Models(run, session)
    curvature = open_fit_rows(run, session, models.final())
    values = PhiValues(run, session, curvature, models.final(), objectives).at(curvature.point.selected)
    assert list(values) == list(objectives)
    for name in objectives:
        assert values[name] == pytest.approx(noise_of[name]["phi"], rel=1e-10)
    alone = problem.job(methods=("bif",), objectives=("fairness",), options={"bif": OPTIONS}, manifest=manifest)
    np.testing.assert_allclose(column(score(alone)), column(table, "score_bif_fairness"), rtol=1e-9)


def test_step_damping_and_temperature_follow_their_rules(problem: Problem) -> None:
    """Damping and step by the largest eigenvalue, nbeta by how far the loss may rise; what is given stays."""
    from tests.oracle import dense_curvature

    x, y = problem.part("train")
    g = dense_curvature(problem.model, x, y, torch.ones(30, dtype=torch.float64), "ggn")
    largest, start = np.linalg.eigvalsh(g)[-1], F.cross_entropy(problem.model(x), y).item()

    def facts(**options: Any) -> dict[str, Any]:
        case = problem.job(methods=("bif",), options={"bif": {"draws": 4, "chains": 1, "burn_in": 0, **options}})
        case.listener = heard
        return provenance(score(case).schema)["further"]["bif"]

    heard = Heard()
    found = facts()
    assert found["largest_eigenvalue"] == pytest.approx(largest, rel=0.02)
    assert found["damping"] == pytest.approx(0.05 * found["largest_eigenvalue"])
    spread = np.trace(g) / found["damping"]
    assert found["nbeta"] == pytest.approx(spread / (2 * 0.05 * start), rel=1e-6)  # n / ln n is 8.8
    assert found["most_rise"] == pytest.approx(0.05 * start, rel=1e-6)
    top = found["nbeta"] * found["largest_eigenvalue"] + found["gamma"]
    assert found["step"] == pytest.approx(0.5 / top)
    assert found["thin"] == 8
    for said in ("R-hat", "nbeta 375.5 by the default rule", "training loss"):
        assert any(said in text for text in heard.notes)
    said = next(text for text in heard.warnings if "effective draws, below 100" in text)
    least = max(1.0, found["objectives"]["utility"]["least_effective_draws"])
    assert int(said.split("--set bif.draws=")[1]) >= 4 * 100 / least  # of 4; draws further apart were still 4
    near = facts(damping=1e3)
    assert near["nbeta"] == pytest.approx(30 / math.log(30))
    given = facts(nbeta=40.0, damping=0.3)
    assert (given["nbeta"], given["gamma"]) == (40.0, 12.0)
    assert given["step"] == pytest.approx(0.5 / (40.0 * given["largest_eigenvalue"] + 12.0))
    free = facts(burn_in=None)
    assert free["burn_in"] == math.ceil(10 / (free["step"] * free["gamma"])) == 420


def test_what_is_proposed_for_doubted_chains_is_enough() -> None:
    """Effective draws grow with a chain, and R^2 - 1 falls with it; a table's column tells which chains."""
    law = {"thin": 8, "damping": 0.05, "start_loss": 0.8}
    of = {"chains": 2, "draws": 1000, "worst_rhat": 1.02, "least_effective_draws": 2.0, "mean_loss": 0.8}
    origin = {"score_is": "score_utility", "further": {"bif": {**law, "objectives": {"utility": of}}}}
    of["learning_coefficient"] = 1.0
    (few,) = doubts_of(origin, "score")
    assert few.startswith("bif, utility: only 2 effective draws")
    assert "--set bif.thin=500, or --set bif.draws=31250" in few  # 62.5 times: 50 and a quarter
    assert doubts_of(origin, "score_bif_utility") == [few]
    assert doubts_of(origin, "score_ip_utility") == doubts_of({}, "score") == []
    of.update(worst_rhat=1.5, least_effective_draws=200.0)
    (apart,) = doubts_of(origin, "score")
    assert "--set bif.thin=60, or --set bif.draws=3721" in apart  # (1.5^2 - 1) / (1.1^2 - 1) = 5.95
    of.update(worst_rhat=1.0, learning_coefficient=-236.0)
    (below,) = doubts_of(origin, "score")
    assert "a next try is --set bif.damping=12" in below
    assert "train it longer" in below
    of.update(learning_coefficient=1.0)
    assert doubts_of(origin, "score") == []


def test_scores_of_doubted_chains_are_to_be_looked_at_and_curate_says_why(problem: Problem, tmp_path: Path) -> None:
    where = ("--checkpoint", str(problem.checkpoint), "--store", "store", "-o", "s.parquet")
    few = [word for o in ("draws=4", "chains=1", "burn_in=0", "thin=1") for word in ("--set", f"bif.{o}")]
    ran = call_cli("score", str(problem.manifest), *where, "--method", "bif", *few, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "scores are mostly noise" in " ".join(ran.err.split())
    step = next(line for line in ran.err.splitlines() if line.startswith("next: "))
    assert "--report review.html" in step
    edited = call_cli("curate", "s.parquet", "--budget", "2", "-o", "c.parquet", cwd=tmp_path)
    assert edited.code == 0, edited.err
    assert "scores are mostly noise" in " ".join(edited.err.split())


def test_draws_that_leave_the_checkpoint_are_warned_of_with_the_number_to_set(problem: Problem) -> None:
    case = problem.job(methods=("bif",), options={"bif": {"nbeta": 1.0, "draws": 20, "chains": 2, "burn_in": 400}})
    heard = case.listener = Heard()
    facts = provenance(score(case).schema)["further"]["bif"]
    of = facts["objectives"]["utility"]
    assert of["mean_loss"] > 1.5 * facts["start_loss"]
    said = next(text for text in heard.warnings if "draws are far from the checkpoint" in text)
    assert float(said.split("--set bif.nbeta=")[1]) == pytest.approx(
        of["learning_coefficient"] / (0.1 * facts["start_loss"]), rel=0.05
    )


def test_t44_noise_of_minibatches_is_measured_warned_of_and_refused(problem: Problem) -> None:
    x, y = problem.part("train")
    from tests.oracle import flat, row_gradients

    g = torch.stack([flat(v) for v in row_gradients(problem.model, x, y)])
    largest = float(torch.linalg.eigvalsh(g.T @ g / 30 - torch.outer(g.mean(0), g.mean(0)))[-1])
    step = 4 * 3 * 0.4 / (NBETA**2 * largest * (1 - 3 / 30))  # rho 0.4 with 3 rows
    case = job(problem, {"batch": 3, "step": step})
    heard = case.listener = Heard()
    facts = provenance(score(case).schema)["further"]["bif"]
    assert facts["noise_share"] == pytest.approx(0.4, rel=0.02)
    assert any("noise of minibatches is 0.4" in text for text in heard.warnings)
    with pytest.raises(UsageError, match="of the law's own spread") as raised:
        fill(job(problem, {"batch": 3, "step": 3 * step}))
    assert "bif.force=true" in raised.value.fix
    fill(job(problem, {"batch": 3, "step": 3 * step, "force": True}))
    default = provenance(score(job(problem, {"batch": 3, "step": None})).schema)["further"]["bif"]
    assert default["noise_share"] <= 0.1 + 1e-12


def test_t44_an_unstable_step_is_refused(problem: Problem) -> None:
    with pytest.raises(UsageError, match="is unstable") as raised:
        fill(job(problem, {"step": 1.0}))
    assert "bif.step=" in raised.value.fix


def lost(rows: int) -> Chain:
    """A chain that left the finite numbers at its third step."""
    none = np.full(rows, np.nan)
    return Chain(none, none, none, np.zeros(2), {"diverged": 3, "step": 0.5})


def test_chains_that_left_the_finite_numbers_are_in_no_score(problem: Problem) -> None:
    rng, good = np.random.default_rng(0), FACTS

    class Injected:
        objectives = ("utility",)

        def chains(self, objective: str) -> list[Chain]:
            kept = [Chain(*rng.normal(size=(3, 4)), rng.normal(size=6), good) for _ in range(2)]  # pyright: ignore[reportCallIssue]
            self.kept = [c.products for c in kept]
            return [*kept, lost(4)]

    stored = Injected()
    rows = open_manifest(str(problem.manifest)).rows("train")
    (found,) = BIF().score(stored, rows, CROSS_ENTROPY)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(found.values, 2.0 * (stored.kept[0] + stored.kept[1]) / 10)
    assert found.by_member is not None
    assert len(found.by_member) == 2
    stored.chains = lambda objective: [lost(4)]
    with pytest.raises(ModelError, match="no chain has stayed finite") as raised:
        BIF().score(stored, rows, CROSS_ENTROPY)  # pyright: ignore[reportArgumentType]
    assert raised.value.fix == "--set bif.step=0.05 (it was 0.5)"


def test_a_chain_that_diverges_is_stored_said_and_left_out(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost_in_the_second(state: ChainState, law: Law, gradient: Gradient, centre: torch.Tensor, stream: str) -> Any:
        state, loss = advanced(state, law, gradient, centre, stream)
        return state, (float("nan") if stream == "bif:0:1" else loss)

    monkeypatch.setattr("influence_cli.stages.grads.chains.advanced", lost_in_the_second)
    case = job(problem)
    heard = case.listener = Heard()
    found = column(score(case))
    assert any("1 chains have left the finite numbers" in text for text in heard.warnings)
    monkeypatch.undo()
    np.testing.assert_array_equal(found, column(score(job(problem, {"chains": 1}))))


def test_chains_are_drawn_by_several_processes(problem: Problem, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for only in (2, 1):
        fill(job(problem, {"only": only}, store=str(tmp_path / "store")))
    case = job(problem, store=str(tmp_path / "store"))
    assert all(w.nothing for w in missing_work(case))
    np.testing.assert_array_equal(column(score(case)), column(score(job(problem))))


@pytest.mark.filterwarnings("ignore:.*fork")
def test_processes_that_run_at_once_share_a_store(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chain is drawn by one process, whether they are asked for one by one or all by both, and they are the same.

    What several processes have done is in a file, a word each.
    """
    straight, store = column(score(job(problem))), str(tmp_path / "store")
    (tmp_path / "store").mkdir()
    at_once(*(functools.partial(fill, job(problem, {"only": k}, store=store)) for k in (1, 2)))
    case = job(problem, store=store)
    assert all(w.nothing for w in missing_work(case))
    np.testing.assert_array_equal(column(score(case)), straight)
    (tmp_path / "other").mkdir()
    drawn, real = tmp_path / "drawn", ChainRunner.run_chain

    def noted(self: Any, number: int, interim: Any) -> Any:
        with drawn.open("a") as file:
            file.write(f"{number} ")
        return real(self, number, interim)

    monkeypatch.setattr(ChainRunner, "run_chain", noted)
    both = [functools.partial(fill, job(problem, store=str(tmp_path / "other"))) for _ in range(2)]
    at_once(*both)
    assert sorted(drawn.read_text().split()) == ["0", "1"]
    np.testing.assert_array_equal(column(score(job(problem, store=str(tmp_path / "other")))), straight)
    assert examine(tmp_path / "other").damaged == []


def test_what_bif_cannot_do_is_refused(problem: Problem) -> None:
    given = ("score", str(problem.manifest), "--checkpoint", str(problem.checkpoint), "--no-store", "--method", "bif")
    both = ("--objective", "utility", "--objective", "robustness", "--set", "robustness.attack=fgsm")
    quick = ("--set", "bif.draws=4", "--set", "bif.chains=1", "--set", "bif.burn_in=0")
    for more, said in (
        (("--per-target",), "bif"),
        (("--relative",), "--relative"),
        ((*both, *quick, "--combine", "linear"), "bif has no directions"),
        (("--set", "bif.sampler=hmc"), "sampler 'hmc'"),
        (("--set", "bif.draws=3"), "draws=3 is below 4"),
        (("--set", "bif.damping=-1"), "damping=-1.0 is negative"),
    ):
        ran = call_cli(*given, *more, "-o", str(problem.folder / "refused.parquet"), cwd=problem.folder)
        assert ran.code == 2, ran.err
        assert said in ran.err


def test_a_loss_of_the_task_needs_damping_and_step() -> None:
    from influence_cli.model.losses.own import OwnLoss

    own = OwnLoss(lambda z, y: F.cross_entropy(z, y, reduction="none"))
    with pytest.raises(UsageError, match="a loss of its own") as raised:
        BIF().check_loss(own, "fp32")
    assert "bif.step=X" in raised.value.fix
    BIF(damping=0.1, step=0.1).check_loss(own, "fp32")


def test_texts_of_several_lengths_and_their_twins(tmp_path: Path) -> None:
    """At a step of nearly nothing draws are the checkpoint itself; Phi there is what the target pass measures."""
    from tests.texts import saved, sentences

    table = sentences(40, 30, 0)
    twins = [f"very {t}" if k % 2 else None for k, t in enumerate(table.column("text").to_pylist())]
    manifest = write(table.append_column("twin", pa.array(twins)), tmp_path / "m.parquet")
    saved(tmp_path / "hf")
    objectives = ("utility", "flip-fairness")
    options = {"step": 1e-16, "nbeta": 40.0, "damping": 1.0, "draws": 4, "chains": 1, "burn_in": 1, "batch": 16}
    given = {"bif": options, "flip-fairness": {"column": "twin"}, "gex": {"rate": 1e-9, "members": 2, "batch": 16}}
    spec = GradSpec(methods=("bif", "ip", "gex"), objectives=objectives, options=given, precision="fp64")
    case = job_of(manifest, tmp_path / "hf", None, spec=spec, batch_size=8)
    scores = score(case)
    known = provenance(scores.schema)["noise"]
    stored = StoredRows(case.run, case.session, "bif")
    for objective in objectives:
        (chain,) = stored.chains(objective)
        np.testing.assert_allclose(chain.mean, column(scores, "loss"), rtol=1e-5)
        np.testing.assert_allclose(chain.phi, known[objective]["phi"], rtol=1e-5)
        by_member = [StoredRows(case.run, case.session, "gex").phi(m, objective) for m in case.run.members_of["gex"]]
        np.testing.assert_allclose(by_member, known[objective]["phi"], rtol=1e-5)
    assert set(provenance(scores.schema)["further"]) == {"bif", "gex"}

"""What cg, lissa and arnoldi share: the sign, effects, precision, samples of fit rows, cost in the plan, resuming.

python -m pytest tests/curvature/test_products.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from influence_cli.curvature.curvature import Curvature
from influence_cli.curvature.minibatches import sample_by_keys
from influence_cli.data.open import open_manifest
from influence_cli.data.tables import provenance
from influence_cli.methods import make_methods
from influence_cli.methods.cg import CG
from influence_cli.settings import GradSpec
from influence_cli.store.maintenance import collect, list_entries
from tests.cases import Heard, call_cli, examples, job_of, verify
from tests.methods.test_exact import PENALTY, Logistic, Net, tanh
from tests.opened import describe_plan, missing_work, score
from tests.oracle import Problem, column, dense_curvature, make_problem, relative_error
from tests.stages.grads.test_memo import Bench, append, relabel, reorder

OPTIONS: dict[str, dict[str, Any]] = {  # near the inverse, each in its way
    "cg": {"tolerance": 1e-10},
    "lissa": {"batch": 50, "depth": 600},
    "arnoldi": {"r": "all"},
}
NEAR = {"cg": 1e-8, "lissa": 0.05, "arnoldi": 1e-8}
EVERY = tuple(OPTIONS)


@pytest.fixture(scope="module")
def p1(tmp_path_factory: pytest.TempPathFactory) -> Logistic:
    return Logistic(tmp_path_factory.mktemp("p1"))


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("mlp"), "mlp:4", (5,), classes=3, train=40, val=12)


@pytest.fixture
def bench(tmp_path: Path, tabular_run: Path) -> Bench:
    return Bench(tmp_path, tabular_run)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of columns of every product over all fit rows from now on."""
    widths: list[int] = []
    product = Curvature.product

    def counted(self: Curvature, kind: Any, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        widths.append(columns.shape[1])
        return product(self, kind, columns)

    monkeypatch.setattr(Curvature, "product", counted)
    return widths


def scored(problem: Problem, name: str, listener: Heard | None = None, **options: Any) -> Any:
    job = problem.job(methods=(name,), options={name: {**OPTIONS[name], **options}})
    if listener is not None:
        job.listener = listener
    return score(job)


def spec_of(name: str, **options: Any) -> GradSpec:
    return GradSpec((name,), options={name: {"damping": 0.05, **options}}, precision="fp64")


# -- what is estimated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("seed", [0, 1])
def test_t08_refit_without_the_most_negative_row_lowers_phi(name: str, seed: int, tmp_path: Path) -> None:
    p = Logistic(tmp_path, seed=seed)
    scores = column(scored(p.problem, name, l2=PENALTY))
    worst = int(np.argmin(scores))
    assert scores[worst] < 0
    assert np.flatnonzero(p.problem.splits == "train")[worst] in p.flipped
    assert p.rise(p.without(worst), p.n - 1) < 0
    assert p.rise(p.without(int(np.argmax(scores))), p.n - 1) > 0


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("weights", [False, True])
def test_scores_are_those_of_exact_and_effects_foretell_refits(name: str, weights: bool, tmp_path: Path) -> None:
    p = Logistic(tmp_path, weights=weights)
    table, exact = scored(p.problem, name, l2=PENALTY), p.table()
    assert relative_error(column(table), column(exact)) < NEAR[name]
    assert relative_error(column(table, "effect"), column(table) / p.n) < 1e-15
    rows = np.flatnonzero(p.weights == 1.0)[:60]
    effect = column(table, "effect")[rows]
    true = np.array([p.rise(p.without(int(k)), p.n) for k in rows])
    assert 0.9 <= np.polyfit(effect, true, 1)[0] <= 1.1
    assert stats.pearsonr(effect, true).statistic >= 0.99


@pytest.mark.parametrize("name", ["cg", "arnoldi"])
@pytest.mark.parametrize(("mode", "l2", "damping"), [("ggn", 0.01, 0.2), ("ggn", 0.0, 0.05), ("hessian", 0.1, 0.9)])
def test_every_matrix_is_that_of_the_dense_oracle(
    name: str, mode: str, l2: float, damping: float, mlp: Problem
) -> None:
    exact = {"mode": {"ggn": "ggn", "hessian": "damp"}[mode], "l2": l2, "damping": damping}
    expected = column(score(mlp.job(methods=("exact",), options={"exact": exact})))
    options = {"mode": mode, "l2": l2, "damping": damping}
    if name == "arnoldi":
        options |= {"keep_negative": True, "complement": True}  # what has no curvature is damped by exact too
    found = column(scored(mlp, name, **options))
    assert relative_error(found, expected) < (1e-6 if name == "arnoldi" else 1e-8)


@pytest.mark.parametrize("name", ["exact", "cg"])
def test_t27_where_curvature_is_h_times_the_identity_the_score_is_ips_over_h(name: str, mlp: Problem) -> None:
    """Damping so large that nothing else of the matrix is left."""
    h = 1e10
    table = score(mlp.job(methods=(name,), options={name: {"damping": h, "l2": 0.0}}))
    assert relative_error(column(table) * h, column(score(mlp.job()))) < 1e-8


def test_a_summary_says_how_the_matrix_was_seen_and_how_far_the_solve_came(mlp: Problem) -> None:
    for name in EVERY:
        heard = Heard()
        facts = provenance(scored(mlp, name, heard, l2=0.02, fit_sample=30).schema)["curvature"][name]
        note = next(n for n in heard.notes if n.startswith(f"{name}: ") and "fit rows" in n)
        assert "ggn of 39 parameters over 30 of 40 fit rows in fp64, l2 0.02" in note
        assert f"gradient norm of the training objective {facts['gradient_norm']:.3g}" in note
        assert f"damping {facts['damping']:.3g}" in note
        shown = {"cg": "residual", "lissa": "residual", "arnoldi": "Ritz values kept"}[name]
        assert shown in note
        assert any(what.startswith("curvature (") for what, _ in heard.spans)


# -- damping by the rule -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "share"), [("cg", 1e-3), ("lissa", 1e-2)])
def test_the_default_damping_is_none_above_l2_and_else_a_share_of_the_mean_eigenvalue(
    name: str, share: float, mlp: Problem
) -> None:
    x, y = mlp.part("train")
    trace = float(np.trace(dense_curvature(mlp.model, x, y, torch.ones(40, dtype=torch.float64), "ggn")))
    for l2, expected in ((0.01, 0.0), (0.0, share * trace / 39)):
        facts = provenance(scored(mlp, name, l2=l2, **({} if name == "cg" else {"depth": 5})).schema)["curvature"][name]
        assert (facts["damping"], facts["damping_by_rule"]) == (pytest.approx(expected, rel=1e-9), True)
    tiny = 1e-9 * trace
    options = {} if name == "cg" else {"depth": 5}
    facts = provenance(scored(mlp, name, l2=tiny, **options).schema)["curvature"][name]
    assert facts["damping"] == pytest.approx(share * (trace / 39 + tiny), rel=1e-9)


def test_the_trace_of_many_parameters_is_estimated_from_fixed_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, method = Net(tmp_path, tanh(), 3, 3, 30), CG()
    dense = dense_curvature(net.model, net.x, net.y, net.w, "ggn")
    exact = method.fit(net.curvature())
    assert exact.arrays["trace"][0] == pytest.approx(np.trace(dense), rel=1e-12)
    assert relative_error(exact.arrays["gradient"], net.curvature().dense("ggn")[1]) < 1e-12
    monkeypatch.setattr("influence_cli.methods.shapes.by_products.EXACT_TRACE", 1)
    estimate = method.fit(net.curvature())
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (len(dense), 8))
    assert estimate.arrays["trace"][0] == pytest.approx(np.mean(np.sum(signs * (dense @ signs), axis=0)), rel=1e-12)
    assert estimate.facts["trace_is_exact"] is False
    assert estimate.arrays["trace"][0] == pytest.approx(np.trace(dense), rel=0.5)


# -- precision and samples -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_single_precision_is_near_double_and_taken_for_many_parameters(
    name: str, mlp: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"l2": 0.02, "damping": 0.1, **({"depth": 40} if name == "lissa" else {"fit_sample": 39})}
    if name == "cg":
        options["tolerance"] = 1e-5
    double = scored(mlp, name, **options)
    single = scored(mlp, name, precision="fp32", **options)
    assert 0 < relative_error(column(single), column(double)) < 1e-3
    monkeypatch.setattr("influence_cli.methods.shapes.preconditioned.DOUBLE_UP_TO", 38)
    ruled = scored(mlp, name, **options)
    assert column(ruled).tolist() == column(single).tolist()
    facts = [provenance(t.schema)["curvature"][name]["precision"] for t in (double, single, ruled)]
    assert facts == ["fp64", "fp32", "fp32"]


def test_precision_and_sample_change_the_factor_and_the_direction() -> None:
    for name in EVERY:
        plain = make_methods(spec_of(name))[name]
        for change in ({"precision": "fp32"}, {"fit_sample": 100}):
            other = dataclasses.replace(plain, **change)
            assert other.fitted() != plain.fitted()
            assert other.describe() != plain.describe()
    assert CG().fitted() == make_methods(spec_of("lissa"))["lissa"].fitted()  # one pass for both


@pytest.mark.parametrize("name", ["cg", "arnoldi"])
def test_a_sample_of_fit_rows_is_theirs_alone_whatever_the_order(name: str, mlp: Problem, tmp_path: Path) -> None:
    rows = open_manifest(mlp.manifest).rows("train")
    some = sample_by_keys(rows, 25)
    assert len(some) == 25
    keys = sorted(k.tobytes() for k in rows.row_keys)[:25]
    assert sorted(k.tobytes() for k in some.row_keys) == keys
    pinned = pq.read_table(mlp.manifest).take(some.index)
    pq.write_table(pinned, tmp_path / "some.parquet")
    options = {name: {**OPTIONS[name], "l2": 0.02}}
    expected = score(mlp.job(methods=(name,), options=options, fit_rows=str(tmp_path / "some.parquet")))
    sampled = scored(mlp, name, l2=0.02, fit_sample=25)
    assert relative_error(column(sampled), column(expected)) < 1e-7
    assert provenance(sampled.schema)["curvature"][name]["product_rows"] == 25
    order = np.random.default_rng(3).permutation(52)
    other = mlp.permuted(order, "permuted.parquet")
    options[name]["fit_sample"] = 25
    again = score(mlp.job(methods=(name,), options=options, manifest=other))
    place = {i: k for k, i in enumerate(again.column("id").to_pylist())}
    assert relative_error(column(again)[[place[i] for i in sampled.column("id").to_pylist()]], column(sampled)) < 1e-7
    assert len(sample_by_keys(rows, 40)) == len(sample_by_keys(rows, None)) == 40


def test_a_product_in_double_of_a_single_precision_run_is_that_of_the_weights(p1: Logistic) -> None:
    table = score(p1.problem.job(methods=("cg",), precision="fp32", options={"cg": {"l2": PENALTY}}))
    assert relative_error(column(table), p1.scores()) < 1e-4


# -- the store: what is shared, what is new, what the plan says ----------------------------------------------------


def test_objectives_and_halves_share_every_pass(mlp: Problem, products: list[int]) -> None:
    scored(mlp, "cg", l2=0.02)
    assert products[0] == 2  # q, and that of half of the target
    solves, products[:] = len(products), []
    scored(mlp, "arnoldi", l2=0.02)
    assert products == [1] * len(products)
    assert len(products) <= 39
    assert solves <= 100 + 100 // 20 + 1


def test_arnoldis_basis_is_fitted_once_for_every_damping_l2_and_number_of_pairs(
    bench: Bench, products: list[int]
) -> None:
    _, first = bench.warm(examples(), spec=spec_of("arnoldi"))
    assert products
    products.clear()
    for options in ({"damping": 0.2}, {"l2": 0.3}, {"r": "3"}, {"r": "3", "complement": True}):
        _, other = bench.warm(examples(), spec=spec_of("arnoldi", **options))
        assert relative_error(column(other), column(first)) > 1e-3
        cold = bench.cold(examples(), spec=spec_of("arnoldi", **options))
        products.clear()
        assert relative_error(column(other), column(cold)) < 1e-12
    for options in ({"k": 4}, {"seed": 1}):
        bench.warm(examples(), spec=spec_of("arnoldi", **options))
        assert products
        products.clear()


@pytest.mark.parametrize("name", EVERY)
def test_other_fit_rows_make_another_solve_and_the_same_rows_none(name: str, bench: Bench) -> None:
    spec = spec_of(name, **({"depth": 20} if name == "lissa" else {}))
    computed, first = bench.warm(examples(), spec=spec)
    assert computed == 40
    assert bench.warm(reorder(examples())[0], spec=spec)[0] == 0
    for edit, n in ((relabel, 40), (append, 47)):
        computed, after = bench.warm(edit(examples())[0], spec=spec)
        assert computed == n
        cold = bench.cold(edit(examples())[0], spec=spec)
        assert relative_error(column(after), column(cold)) < 1e-9
    assert np.array_equal(column(bench.warm(examples(), spec=spec)[1]), column(first))


def test_the_plan_says_how_many_passes_over_how_many_fit_rows(bench: Bench) -> None:
    def planned(name: str, **options: Any) -> tuple[dict[str, Any], ...]:
        job = job_of(bench.manifest(examples()), bench.run, bench.store, spec=spec_of(name, **options))
        (step,) = describe_plan(job, missing_work(job))["steps"]
        return (*step["fits"], *step["solves"])

    fit, solve = planned("cg", max_iterations=40)
    assert (fit["passes"], fit["rows"]) == (1, 40)
    assert (solve["passes"], solve["directions"], solve["rows"]) == (40 + 2 + 1, 2, 40)
    assert planned("cg", fit_sample=10)[1]["rows"] == 10
    assert planned("lissa", depth=100, batch=8, series_scale=1.0)[1]["passes"] == 100 * 8 / 40 + 1
    (fit,) = planned("arnoldi", k=7, fit_sample=10)
    assert (fit["passes"], fit["rows"]) == (8, 10)
    spec = spec_of("cg", max_iterations=40)
    bench.warm(examples(), spec=spec)
    warm = job_of(bench.manifest(examples()), bench.run, bench.store, spec=spec)
    assert describe_plan(warm, missing_work(warm))["steps"][0]["solves"] == []
    _, other = planned("cg", max_iterations=40, fit_sample=39)
    assert other["seconds"] is None
    changed = job_of(bench.manifest(relabel(examples())[0]), bench.run, bench.store, spec=spec)
    (step,) = describe_plan(changed, missing_work(changed))["steps"]
    assert step["solves"][0]["seconds"] >= 0  # measured now
    asked = ["score", bench.manifest(examples()), "--checkpoint", bench.run, "--method", "cg", "--dry-run"]
    text = call_cli(*asked, "--store", bench.folder / "none", "--format", "table", cwd=bench.folder).text
    assert "directions to solve for" in text
    assert "1,051" in text


# -- stopped and gone on -------------------------------------------------------------------------------------------


def interims(store: Path) -> list[Path]:
    return sorted(p for p in (store / "interims").glob("*.safetensors") if not p.name.startswith("."))


def raising(error: BaseException) -> Any:
    def stop() -> None:
        raise error

    return stop


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every state that is offered is written."""
    monkeypatch.setattr("influence_cli.stages.grads.interim.EVERY_SECONDS", 0.0)
    monkeypatch.setattr("influence_cli.stages.grads.interim.WRITING_SHARE", 0.0)
    return iter(())


WHERE = {  # the span and the step at which each is stopped, and the span whose steps are not taken again
    "cg": ("curvature (cg)", 6, "curvature (cg)"),
    "lissa": ("curvature (lissa)", 12, "curvature (lissa)"),
    "arnoldi": ("curvature (lanczos)", 6, "curvature (lanczos)"),
    "ekfac": ("curvature (ekfac: eigenvalues)", 1, "curvature (ekfac: bases)"),
}


@pytest.mark.parametrize("name", WHERE)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("lost")], ids=["Ctrl-C", "crash"])
def test_a_solve_that_was_stopped_goes_on_to_the_same_bits(
    name: str, error: BaseException, bench: Bench, request: pytest.FixtureRequest
) -> None:
    if isinstance(error, RuntimeError):
        request.getfixturevalue("at_once")  # a crash keeps what was written, Ctrl-C writes
    spec = spec_of(name, **({"depth": 20} if name == "lissa" else {}))
    whole = bench.cold(examples(), spec=spec)
    span, stop_at, before = WHERE[name]
    with pytest.raises(type(error)):
        bench.warm(examples(), spec=spec, listener=Heard(raising(error), stop_at, span))
    (left,) = interims(bench.store)
    assert verify(bench.store)[1] == []
    assert [e.about for e in list_entries(bench.store) if e.kind == "interims"] == ["a computation that was stopped"]
    heard = Heard(stop_in=before)
    computed, after = bench.warm(examples(), spec=spec, listener=heard)
    assert computed == 40
    assert column(after).tobytes() == column(whole).tobytes()
    assert not left.exists()
    fresh = Heard(stop_in=before)
    bench.cold(examples(), spec=spec, listener=fresh)
    assert heard.advances < fresh.advances  # the steps before were not taken again


def test_a_damaged_state_is_set_aside_and_an_old_one_is_collected(bench: Bench) -> None:
    import os

    spec = spec_of("cg")
    whole = bench.cold(examples(), spec=spec)
    for hurt in (True, False):
        with pytest.raises(KeyboardInterrupt):
            bench.warm(examples(), spec=spec, listener=Heard(raising(KeyboardInterrupt()), 6, "curvature (cg)"))
        (left,) = interims(bench.store)
        if hurt:
            raw = bytearray(left.read_bytes())
            raw[-1] ^= 1
            left.write_bytes(raw)
            heard = Heard()
            assert column(bench.warm(examples(), spec=spec, listener=heard)[1]).tobytes() == column(whole).tobytes()
            assert any("damaged" in w for w in heard.warnings)
            for folder in ("directions", "tangents"):
                for file in (bench.store / folder).rglob("*.safetensors"):
                    file.unlink()
        else:
            assert collect(bench.store, None)["files_removed"] >= 0
            assert left.exists()
            os.utime(left, (0, 0))
            collect(bench.store, None)
            assert not left.exists()


# -- what people see -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_methods_shows_paper_cost_and_every_option_with_its_unit(name: str, tmp_path: Path) -> None:
    (said,) = call_cli("methods", name, "--json", cwd=tmp_path).json["methods"]
    assert (said["kind"], said["effect"], said["needs"]) == ("signed", True, "tangents")
    assert "fit rows" in said["cost"]
    assert "arXiv" in said["paper"]
    assert all(o["help"] for o in said["options"])
    units = {o["name"]: o["unit"] for o in said["options"]}
    assert units["damping"] == units["l2"] == "mean loss"
    assert units["fit_sample"] == "rows"
    text = call_cli("methods", name, "--format", "table", cwd=tmp_path).text
    for option in said["options"]:
        assert f"{name}.{option['name']}" in text
    assert said["about"].splitlines()[0] in text
    every = call_cli("methods", "--json", cwd=tmp_path).json["methods"]
    assert {m["name"] for m in every} >= {"exact", *EVERY}
    assert all(m["paper"] and m["cost"] and m["about"] for m in every)

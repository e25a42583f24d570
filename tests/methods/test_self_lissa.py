"""Self-LiSSA (methods.md T34): g^T P g of rows with the inverse curvature of another method.

Reference: dense matrices and row-by-row gradients in float64; leverages in closed form.  Behavioural: the factor is the
other method's own; values are stored by row, factor and fit set; negative values are counted and said.

    python -m pytest tests/methods/test_self_lissa.py
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from influence_cli.data.tables import provenance
from influence_cli.errors import ModelError, UsageError
from influence_cli.maths.inverse import DenseInverse
from influence_cli.methods import make_methods
from influence_cli.methods.ekfac import EKFAC
from influence_cli.methods.exact import Exact
from influence_cli.settings import GradSpec
from influence_cli.store.maintenance import collect, list_entries
from tests.cases import Example, Heard, call_cli, draw_features, examples, run_without_torch
from tests.methods.test_ekfac import blocks_of, curvature
from tests.methods.test_exact import PENALTY, Logistic
from tests.methods.test_self_tracin import Bench
from tests.opened import describe_plan, fill, missing_work, score
from tests.oracle import (
    Problem,
    column,
    dense_curvature,
    make_problem,
    relative_error,
    row_gradients,
    write_manifest,
)

SELF = ("self-lissa",)
SAMPLED: dict[str, Any] = {"labels": "exact", "precision": "fp64"}
N = 40  # train rows of ``examples()``


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("mlp"), "mlp:4", (5,), classes=3, train=40, val=12)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """Convolutions and BatchNorm."""
    return make_problem(tmp_path_factory.mktemp("net"), "test_resnet", (3, 32, 32), train=6, val=4)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """Depthwise convolutions and squeeze-and-excite layers."""
    return make_problem(tmp_path_factory.mktemp("grouped"), "test_efficientnet", (3, 32, 32), train=4, val=3)


@pytest.fixture(scope="module")
def p1(tmp_path_factory: pytest.TempPathFactory) -> Logistic:
    return Logistic(tmp_path_factory.mktemp("p1"))


def gradients(problem: Problem, labels: torch.Tensor | None = None) -> NDArray[np.float64]:
    """Every training row's gradient [n, d] in the order of the model's parameters."""
    x, y = problem.part("train")
    names = [n for n, _ in problem.model.named_parameters()]
    rows = row_gradients(problem.model, x, y if labels is None else labels)
    return np.stack([torch.cat([g[n].flatten() for n in names]).numpy() for g in rows])


def values(problem: Problem, solve: str, listener: Heard | None = None, params: str = "all", **how: Any) -> Any:
    """The values in float64; options by method, and inputs of the job."""
    inputs = {k: how.pop(k) for k in ("manifest", "fit_rows", "batch_size", "shard_rows", "precision") if k in how}
    own = {"solve": solve, **how.pop("own", {})}
    job = problem.job(methods=SELF, options={"self-lissa": own, **how}, params=params, **inputs)
    if listener is not None:
        job.listener = listener
    return -column(score(job))


# -- T34 ------------------------------------------------------------------------------------------------------------


def test_t34_leverages_of_linear_regression_sum_to_the_number_of_parameters() -> None:
    """value_i = n r_i^2 h_ii: the form of squared error's gradients r_i x_i, and the hat matrix of least squares."""
    rng = np.random.default_rng(0)
    x = np.hstack([rng.normal(size=(50, 6)), np.ones((50, 1))])
    y = rng.normal(size=50)
    form = DenseInverse(x.T @ x / 50, "ggn", 0.0).form
    hat = np.diag(x @ np.linalg.solve(x.T @ x, x.T))
    assert relative_error(form(x.T) / 50, hat) < 1e-12
    assert abs(float(form(x.T).sum()) / 50 - 7) < 1e-8
    residual = x @ np.linalg.lstsq(x, y)[0] - y
    assert relative_error(form((x * residual[:, None]).T), 50 * residual**2 * hat) < 1e-10


def test_t34_leverages_of_a_classifier_sum_to_the_number_of_parameters(p1: Logistic) -> None:
    """With labels as the model draws them: sum_i E_y g^T (G + l2)^-1 g / n = tr G (G + l2)^-1, through the whole path.

    Of 12 parameters the shift of both classes' weights by the same vector changes nothing: 6 are left.
    """
    x, _ = p1.problem.part("train")
    probability = p1.problem.model(x).detach().softmax(1).numpy()
    for l2, expected, tolerance in ((1e-11, 6.0, 1e-8), (0.1, None, 1e-8)):
        total = 0.0
        for label in (0, 1):
            manifest = write_manifest(
                p1.problem.folder / f"all-{label}.parquet",
                np.asarray(p1.problem.payloads),
                np.full(300, label),
                p1.problem.splits.tolist(),
                p1.problem.ids,
            )
            own = {"l2": l2, "damping": 0.0}
            found = values(p1.problem, "dense", own=own, manifest=manifest, fit_rows=str(p1.problem.manifest))
            assert (found >= 0).all()
            total += float(probability[:, label] @ found) / 200
        e = np.linalg.eigvalsh(p1.train.hessian(p1.theta, np.ones(200)) / 200)
        whole = expected if expected is not None else float((e / (e + l2)).sum())
        assert abs(total - whole) < tolerance


@pytest.mark.parametrize("mode", ["ggn", "clamp", "abs", "emp"])
def test_t34_dense_is_the_dense_oracle(mlp: Problem, mode: str) -> None:
    x, y = mlp.part("train")
    kind = {"ggn": "ggn", "emp": "empirical"}.get(mode, "hessian")
    e, v = np.linalg.eigh(dense_curvature(mlp.model, x, y, torch.ones(40, dtype=torch.float64), kind))
    e = {"clamp": np.maximum(e + 0.02, 0.0), "abs": np.abs(e + 0.02)}.get(mode, e + 0.02) + 0.1
    expected = ((gradients(mlp) @ v) ** 2 / e).sum(1)
    found = values(mlp, "dense", own={"l2": 0.02, "damping": 0.1}, exact={"mode": mode})
    assert relative_error(found, expected) < 1e-8
    assert (found >= 0).all()


@pytest.mark.parametrize("name", ["mlp", "net", "grouped"])
@pytest.mark.parametrize("other", ["identity", "zero"])
def test_t34_ekfac_is_the_dense_oracle(name: str, other: str, request: pytest.FixtureRequest) -> None:
    """g^T P g with the dense P that ekfac applies, one column at a time."""
    problem: Problem = request.getfixturevalue(name)
    method = EKFAC(**SAMPLED, l2=0.02, other=other)
    c = curvature(problem, batch_size=4)
    c.factor = method.fit(c).arrays
    g = gradients(problem)
    u, _ = method.precondition(g.T, c)
    heard = Heard()
    found = values(problem, "ekfac", heard, ekfac={**SAMPLED, "other": other}, own={"l2": 0.02})
    assert relative_error(found, (g.T * u).sum(0)) < 1e-10
    assert (found >= 0).all()
    named = any("are covered; there are no Kronecker factors for" in text for text in heard.warnings)
    assert named is (name != "mlp")  # BatchNorm and depthwise convolutions are named


def test_ekfac_is_the_closed_form_in_its_eigenbasis(mlp: Problem) -> None:
    """sum over layers of (Q_S kron Q_A)^T g squared over Lam + l2 + delta, from dense Kronecker products."""
    c = curvature(mlp)
    c.factor = EKFAC(**SAMPLED).fit(c).arrays
    g, expected = gradients(mlp), np.zeros(40)
    for place, basis, lam in blocks_of(mlp, c.factor, c):
        shifted = lam.ravel() + 0.02 + 0.3
        expected += ((g[:, place] @ basis) ** 2 / shifted).sum(1)
    found = values(mlp, "ekfac", ekfac=SAMPLED, own={"l2": 0.02, "damping": 0.3})
    assert relative_error(found, expected) < 1e-11


def test_without_curvature_it_is_self_tracin(mlp: Problem) -> None:
    """A damping far above the spectrum: the squared norm over the damping."""
    plain = column(score(mlp.job(methods=("self-tracin",))))
    for solve in ("dense", "ekfac"):
        found = values(mlp, solve, own={"damping": 1e9, "l2": 0.0}, ekfac=SAMPLED)
        assert relative_error(found * 1e9, -plain) < 1e-6


@pytest.mark.parametrize("solve", ["ekfac", "dense"])
def test_batches_shards_and_selections_change_nothing(mlp: Problem, solve: str) -> None:
    whole = values(mlp, solve)
    assert relative_error(values(mlp, solve, batch_size=3, shard_rows=5), whole) < 1e-10
    assert relative_error(values(mlp, solve, precision="fp32"), whole) < 1e-3
    last = values(mlp, solve, params="last")
    assert relative_error(last, whole) > 0.01


def test_logistic_regression_in_closed_form_and_flipped_rows_above_chance(p1: Logistic) -> None:
    found = values(p1.problem, "dense", own={"l2": PENALTY})
    g = p1.train.gradients(p1.theta)
    hessian = p1.train.hessian(p1.theta, np.ones(200)) / 200 + PENALTY * np.eye(12)
    assert relative_error(found, (g * np.linalg.solve(hessian, g.T).T).sum(1)) < 1e-8
    flipped = np.isin(np.flatnonzero(p1.problem.splits == "train"), p1.flipped)
    assert (found[flipped][:, None] > found[~flipped][None, :]).mean() > 0.7


# -- its factor is another method's -----------------------------------------------------------------------------------


def test_the_factor_is_the_one_of_ekfac_and_is_fitted_once(tmp_path: Path, tabular_run: Path) -> None:
    bench = Bench(tmp_path, tabular_run)
    both = GradSpec(("ekfac", "self-lissa"), options={"ekfac": {"draws": 3}})
    job = bench.job(examples(), spec=both)
    member = job.plain_member()
    assert job.factor("ekfac", member) == job.factor("self-lissa", member)
    (work,) = missing_work(job)
    assert [fit.method for fit in work.fits] == ["ekfac"]
    table = score(job)
    assert len([e for e in list_entries(tmp_path / "store") if e.kind == "factors"]) == 1
    alone = bench.job(examples(), "other", spec=GradSpec(SELF, options={"ekfac": {"draws": 3}}))
    assert [fit.method for w in missing_work(alone) for fit in w.fits] == ["self-lissa"]
    assert relative_error(column(score(alone)), column(table, "score_self-lissa")) < 1e-6
    other = bench.job(examples(), spec=GradSpec(SELF, options={"self-lissa": {"damping": 0.5}, "ekfac": {"draws": 3}}))
    (work,) = missing_work(other)
    assert (work.fits, work.rows_in("values"), work.rows) == ((), N, 0)  # other values, by the same factor
    dense = bench.job(examples(), spec=GradSpec((*SELF, "exact"), options={"self-lissa": {"solve": "dense"}}))
    assert [fit.method for w in missing_work(dense) for fit in w.fits] == ["exact"]


def test_facts_of_its_curvature_and_the_count_of_negative_values_are_told(tmp_path: Path, tabular_run: Path) -> None:
    bench = Bench(tmp_path, tabular_run)
    told = []
    for _ in range(2):  # cold and warm
        heard = Heard()
        table = score(bench.job(examples(), spec=GradSpec(SELF), listener=heard))
        about = provenance(table.schema)
        told.append((about["curvature"], [n for n in heard.notes if n.startswith("self-lissa")]))
        assert (about["kind"], about["effect"], about["score_is"]) == ("ranking", False, "score_self-lissa")
        assert about["negative_values"] == {"self-lissa": 0}
        assert about["fit_rows"]["rows"] == N
        assert about["target"]["fingerprint"] is None
        assert "effect" not in table.column_names
    assert told[0] == told[1]
    facts, notes = told[0]
    assert facts["self-lissa"]["covered"] == facts["self-lissa"]["parameters"]
    assert any("ekfac of" in n and "damping" in n for n in notes)
    assert any(n.endswith("0 of 40 values of self-influence are negative") for n in notes)


def test_the_l2_that_was_trained_with_is_taken(p1: Logistic) -> None:
    heard = Heard()
    given = values(p1.problem, "dense", heard, own={"l2": 0.25})
    assert relative_error(values(p1.problem, "dense", exact={"l2": 0.25}), given) < 1e-12
    assert any("l2 0.25" in n for n in heard.notes)


# -- what cannot be --------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused(mlp: Problem) -> None:
    with pytest.raises(UsageError, match="solve 'cg' is unknown; use one of ekfac, dense, lissa"):
        make_methods(GradSpec(SELF, options={"self-lissa": {"solve": "cg"}}))
    job = mlp.job(methods=SELF, options={"self-lissa": {"solve": "dense"}, "exact": {"max_parameters": 10}})
    with pytest.raises(UsageError, match="max_parameters is 10"):
        missing_work(job)
    assert Exact().max_parameters == 5000


# -- the memo law ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path, tabular_run: Path) -> Bench:
    return Bench(tmp_path, tabular_run)


def job_on(bench: Bench, rows: list[Example], store: str | None = "store", **how: object) -> Any:
    return bench.job(rows, store, **{"spec": GradSpec(SELF), **how})


def test_a_relabelled_row_changes_the_fit_set_and_so_every_value(bench: Bench) -> None:
    fill(job_on(bench, examples()))
    rows = [r.relabelled() if k in (0, 4, 17) else r for k, r in enumerate(examples())]
    job = job_on(bench, rows)
    (work,) = missing_work(job)
    assert (work.rows, work.rows_in("values")) == (0, N)
    (step,) = describe_plan(job, [work])["steps"]
    assert "3 rows are not those of the stored factor" in step["fits"][0]["why"]
    after = column(score(job))
    assert relative_error(after, column(score(job_on(bench, rows, None)))) < 1e-6
    assert fill(job_on(bench, rows)) == fill(job_on(bench, examples())) == 0


def test_with_a_pinned_fit_set_exactly_the_rows_that_changed_are_computed(bench: Bench) -> None:
    pinned = str(bench.manifest(examples()))
    before = column(score(job_on(bench, examples(), fit_rows=pinned)))
    assert np.array_equal(before, column(score(job_on(bench, examples()))))  # the same fit set
    rows = [r.relabelled() if k in (0, 4, 17) else r for k, r in enumerate(examples())]
    job = job_on(bench, rows, fit_rows=pinned)
    (work,) = missing_work(job)
    assert (work.rows, work.rows_in("values"), work.fits) == (0, 3, ())
    assert fill(job) == 3
    after = column(score(job))
    assert np.flatnonzero(after != before).tolist() == [0, 4, 17]
    more = rows + [Example(f"new{k}", draw_features(1000 + k), k % 3) for k in range(7)]
    more += [dataclasses.replace(r, id=f"again-{r.id}") for r in rows[:5]]
    job = job_on(bench, more, fit_rows=pinned)
    (work,) = missing_work(job)
    assert (work.rows, work.rows_in("values")) == (7, 7)
    assert relative_error(column(score(job)), column(score(job_on(bench, more, None, fit_rows=pinned)))) < 1e-6


def test_a_stopped_pass_keeps_its_factor_and_what_it_finished(bench: Bench) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    heard = Heard(stop, stop_at=3, stop_in="row gradients")
    with pytest.raises(KeyboardInterrupt):
        fill(job_on(bench, examples(), listener=heard, batch_size=8, shard_rows=8))
    (work,) = missing_work(job_on(bench, examples()))
    assert (work.rows, work.rows_in("values"), work.fits) == (0, N - 24, ())
    assert fill(job_on(bench, examples())) == N - 24


def test_a_dry_run_says_what_is_fitted_and_a_warm_run_imports_no_torch(
    tmp_path: Path, tabular: Path, tabular_run: Path
) -> None:
    asked = ["score", tabular, "--checkpoint", tabular_run, "--method", "self-lissa", "--method", "ekfac"]
    ran = call_cli(*asked, "--dry-run", cwd=tmp_path)
    assert ran.code == 0, ran.err
    (step,) = ran.json["steps"]
    assert step["row_values_to_compute"] == {"self-lissa": N}
    assert [(fit["method"], fit["rows"], fit["passes"]) for fit in step["fits"]] == [("ekfac", N, 2)]
    cold = call_cli(*asked, "-o", "cold.parquet", cwd=tmp_path)
    assert cold.code == 0, cold.err
    run_without_torch(*asked, "-o", "warm.parquet", cwd=tmp_path)
    assert (tmp_path / "cold.parquet").read_bytes() == (tmp_path / "warm.parquet").read_bytes()
    told = call_cli("methods", "self-lissa", "--format", "table", cwd=tmp_path)
    assert told.code == 0, told.err
    assert all(word in told.text for word in ("arXiv:2302.13959", "ranking", "self-lissa.solve", "mean loss"))


# -- a series for every row -------------------------------------------------------------------------------------------

DEEP: dict[str, Any] = {"batch": 6, "depth": 200, "repeats": 1, "tail": 0.0}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """Six rows: every row is a series of its own."""
    return make_problem(tmp_path_factory.mktemp("few"), "mlp:3", (8,), classes=3, train=6, val=3)


def test_t34_literal_lissa_is_the_dense_oracle(few: Problem) -> None:
    """With the whole fit set as every minibatch and a deep series."""
    own, heard = {"l2": 0.02, "damping": 0.5}, Heard()
    found = values(few, "lissa", heard, own=own, lissa=DEEP)
    assert relative_error(found, values(few, "dense", own=own)) < 1e-8
    assert relative_error(values(few, "lissa", own=own, lissa=DEEP, batch_size=4), found) < 1e-10
    cost = "self-lissa: a series for each of 6 rows, at most 1,200 passes over 6 fit rows in all"
    first = heard.notes.index(cost)
    summary = next(k for k, n in enumerate(heard.notes) if n.startswith("self-lissa: ggn of"))
    assert first < summary  # the cost comes first


def test_a_row_alone_has_the_series_that_lissa_has_for_its_gradient(few: Problem) -> None:
    """Random minibatches, and ip's pass: <g_i, u_i> where u_i is what lissa makes of q = g_i."""
    from influence_cli.methods.lissa import LiSSA

    how = {"batch": 2, "depth": 30, "repeats": 2, "series_scale": 5.0}
    method = LiSSA(**how, damping=0.1, l2=0.02)
    c = curvature(few)
    c.factor = method.fit(c).arrays
    g = gradients(few)
    u, _ = method.precondition(g.T, c)
    found = values(few, "lissa", own={"l2": 0.02, "damping": 0.1}, lissa=how)
    assert relative_error(found, (g.T * u).sum(0)) < 1e-10


def test_negative_values_are_counted_and_warned_of(mlp: Problem) -> None:
    """c a third of the largest eigenvalue and one step: (2 - h/c) / c is negative for eigenvalues h above 2c."""
    x, y = mlp.part("train")
    matrix = dense_curvature(mlp.model, x, y, torch.ones(40, dtype=torch.float64), "ggn")
    c, g = float(np.linalg.eigvalsh(matrix)[-1]) / 3.0, gradients(mlp)
    expected = ((2.0 * g - g @ matrix / c) * g).sum(1) / c
    heard, how = Heard(), {"batch": 40, "depth": 1, "repeats": 1, "tail": 0.0, "series_scale": c}
    job = mlp.job(methods=SELF, options={"self-lissa": {"solve": "lissa", "damping": 0.0, "l2": 0.0}, "lissa": how})
    job.listener = heard
    table = score(job)
    assert relative_error(-column(table), expected) < 1e-10
    negative = int((expected < 0).sum())
    assert 0 < negative < 40
    assert provenance(table.schema)["negative_values"] == {"self-lissa": negative}
    (said,) = [w for w in heard.warnings if "values of self-influence are negative" in w]
    assert said.startswith(f"self-lissa: {negative} of 40 values")


def test_more_rows_than_max_rows_and_a_series_that_diverges_are_refused(mlp: Problem) -> None:
    own = {"solve": "lissa", "max_rows": 39}
    job = mlp.job(methods=SELF, options={"self-lissa": own})
    with pytest.raises(UsageError, match="40 rows lack a value, and max_rows is 39") as refused:
        missing_work(job)
    assert "solve=ekfac" in refused.value.fix
    with pytest.raises(ModelError, match=r"the series diverges after .*: c = 0\.01 is below"):
        values(mlp, "lissa", lissa={"series_scale": 0.01})


def test_the_plan_counts_the_series(mlp: Problem) -> None:
    def plan(store: str | None = None) -> dict[str, Any]:
        options = {"self-lissa": {"solve": "lissa"}, "lissa": {"depth": 10, "repeats": 2, "series_scale": 5.0}}
        job = mlp.job(store=store, methods=SELF, options=options)
        found = describe_plan(job, missing_work(job))
        if store is None:
            fill(job)
        return {**found, "folder": job.store.root}

    cold = plan()
    (solve,) = cold["steps"][0]["solves"]
    assert (solve["method"], solve["directions"], solve["rows"]) == ("self-lissa", 40, 40)
    assert solve["passes"] == pytest.approx(40 * 10 * 2 * 32 / 40)
    assert solve["seconds"] is cold["seconds"] is None  # no series was ever timed
    for shard in (cold["folder"] / "row_values").rglob("*.safetensors"):
        shard.unlink()
    (solve,) = plan(cold["folder"].name)["steps"][0]["solves"]
    assert solve["seconds"] is not None


# -- what the store keeps ---------------------------------------------------------------------------------------------


def test_values_go_with_the_fit_set_that_they_were_taken_with(bench: Bench) -> None:
    root = bench.folder / "store"
    kept = job_on(bench, examples())
    before = column(score(kept))
    rows = [r.relabelled() if k == 0 else r for k, r in enumerate(examples())]
    fill(job_on(bench, rows))
    fill(job_on(bench, rows, spec=GradSpec(("self-tracin",))))
    listed = [e for e in list_entries(root) if e.kind == "row_values"]
    assert sorted(e.about.split(", ")[2] for e in listed) == [
        "self-influence by ekfac",
        "self-influence by ekfac",
        "squared gradient norm",
    ]
    collect(root, None, fits={kept.fit.fingerprint})
    assert len([e for e in list_entries(root) if e.kind == "row_values"]) == 2  # norms are of no fit set
    assert np.array_equal(column(score(job_on(bench, examples()))), before)
    assert fill(job_on(bench, rows)) == N
    assert fill(job_on(bench, rows, spec=GradSpec(("self-tracin",)))) == 0


@pytest.mark.parametrize("solve", ["dense", "lissa", "ekfac"])
def test_a_row_without_finite_logits_has_no_value_and_spoils_no_other(solve: str, few: Problem) -> None:
    """Such a row can be scored where it is not fitted on."""
    features = np.asarray(few.payloads).copy()
    row = np.flatnonzero(few.splits == "train")[2]
    first = next(p for p in few.model.parameters() if p.dim() == 2).detach().numpy()
    unit = first[np.abs(first).sum(1).argmax()]
    assert np.abs(unit).sum() > 1.0  # so that it overflows in float32
    features[row] = 3.4e38 * np.sign(unit)
    huge = write_manifest(few.folder / "huge.parquet", features, few.labels.numpy(), few.splits.tolist(), few.ids)
    how: dict[str, Any] = {"lissa": {**DEEP, "depth": 5}, "fit_rows": str(few.manifest), "own": {"damping": 0.1}}
    expected = values(few, solve, **how, precision="fp32")
    found = values(few, solve, **how, manifest=huge, precision="fp32")
    assert np.isnan(found[2])
    assert relative_error(np.delete(found, 2), np.delete(expected, 2)) < 1e-5

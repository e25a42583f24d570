"""Scores over the size of a row's own gradient: RelatIF (--relative) and ip's cosine.

Reference: row-by-row gradients in float64 and dense inverses.  Behavioural: values are shared with the methods that are
those values; a relabelled row changes its own score alone; what has no self-influence is refused with what has.

    python -m pytest tests/stages/score/test_relative.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from influence_cli import api
from influence_cli.data.tables import provenance
from influence_cli.errors import UsageError
from influence_cli.methods import METHODS, Linear
from influence_cli.methods.ekfac import EKFAC
from influence_cli.methods.protocol import over_own_size
from influence_cli.model.losses import CROSS_ENTROPY
from influence_cli.settings import GradSpec
from influence_cli.stages.curate.combining import combine_columns
from influence_cli.stages.score.combine import Combine
from tests.cases import Example, Heard, call_cli, draw_features, examples, job_of, run_without_torch, write
from tests.methods.test_ekfac import curvature
from tests.methods.test_self_lissa import SAMPLED, gradients
from tests.methods.test_self_tracin import Bench
from tests.opened import fill, missing_work, score
from tests.oracle import (
    Problem,
    column,
    dense_curvature,
    make_problem,
    mean_gradient,
    relative_error,
    write_manifest,
)

N = 40  # train rows of ``examples()``
COSINE: dict[str, Any] = {"ip": {"normalise": "cosine"}}


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("mlp"), "mlp:4", (5,), classes=3, train=40, val=12)


def direction(problem: Problem) -> NDArray[np.float64]:
    """Q in the order of the model's parameters."""
    q = mean_gradient(problem.model, *problem.part("val"))
    return torch.cat([q[n].flatten() for n, _ in problem.model.named_parameters()]).numpy()


def scored(problem: Problem, method: str, relative: bool = True, **options: Any) -> Any:
    return score(problem.job(methods=(method,), relative=relative, options=options))


# -- the numbers -----------------------------------------------------------------------------------------------------


def test_relative_ip_is_over_the_norm_of_the_row_and_the_cosine_over_that_of_q_too(mlp: Problem) -> None:
    g, q = gradients(mlp), direction(mlp)
    norms = np.linalg.norm(g, axis=1)
    relative = column(scored(mlp, "ip"))
    assert relative_error(relative, g @ q / norms) < 1e-12
    cosine = column(scored(mlp, "ip", relative=False, **COSINE))
    assert relative_error(cosine, g @ q / norms / np.linalg.norm(q)) < 1e-12
    assert np.abs(cosine).max() <= 1.0
    plain = column(scored(mlp, "ip", relative=False))
    assert relative_error(relative * norms, plain) < 1e-12


def test_relative_exact_is_over_the_root_of_g_k_inverse_g(mlp: Problem) -> None:
    x, y = mlp.part("train")
    matrix = dense_curvature(mlp.model, x, y, torch.ones(40, dtype=torch.float64), "ggn")
    inverse = np.linalg.inv(matrix + 0.12 * np.eye(len(matrix)))
    g = gradients(mlp)
    expected = g @ inverse @ direction(mlp) / np.sqrt(((g @ inverse) * g).sum(1))
    found = column(scored(mlp, "exact", exact={"l2": 0.02, "damping": 0.1}))
    assert relative_error(found, expected) < 1e-8


def test_relative_ekfac_is_over_the_root_of_its_own_form(mlp: Problem) -> None:
    options = {**SAMPLED, "l2": 0.02}
    c, method = curvature(mlp), EKFAC(**options)
    c.factor = method.fit(c).arrays
    g = gradients(mlp)
    u, _ = method.precondition(g.T, c)
    expected = u.T @ direction(mlp) / np.sqrt((g.T * u).sum(0))
    assert relative_error(column(scored(mlp, "ekfac", ekfac=options)), expected) < 1e-10


@pytest.mark.parametrize("method", ["ip", "exact", "ekfac"])
def test_a_row_in_the_direction_of_its_own_gradient_has_the_largest_relative_score(
    method: str, mlp: Problem, tmp_path: Path
) -> None:
    """With the row as its own target the score is sqrt(g^T P g); Cauchy and Schwarz leave no row above it."""
    labels, splits = mlp.labels.numpy(), mlp.splits
    features = np.asarray(mlp.payloads).copy()
    row = int(np.flatnonzero(splits == "train")[3])
    options = {} if method == "ip" else {method: {"l2": 0.02, **(SAMPLED if method == "ekfac" else {})}}
    twin = features[[row]]
    zeroed = features.copy()
    zeroed[row, 4], twin[0, 4] = 0.0, -0.0  # another payload of the same value: a target row may not be a train row
    manifest = write_manifest(tmp_path / "m.parquet", zeroed, labels, splits.tolist(), mlp.ids)
    target = write_manifest(tmp_path / "t.parquet", twin, labels[[row]], ["val"], ["twin"])
    table = score(mlp.job(methods=(method,), relative=True, manifest=manifest, target=str(target), options=options))
    found = column(table)
    assert int(found.argmax()) == 3
    plain = column(score(mlp.job(methods=(method,), manifest=manifest, target=str(target), options=options)))
    assert found[3] == pytest.approx(np.sqrt(plain[3]), rel=1e-9)


def test_ranks_of_relative_ip_and_of_the_cosine_are_the_same(mlp: Problem) -> None:
    a, b = column(scored(mlp, "ip")), column(scored(mlp, "ip", relative=False, **COSINE))
    assert np.argsort(a).tolist() == np.argsort(b).tolist()


def test_a_zero_gradient_is_neutral_and_a_negative_form_is_no_score() -> None:
    found = over_own_size(np.array([2.0, 0.0, 1e-300, 1.0, np.nan]), np.array([4.0, 0.0, 0.0, -1.0, 1.0]))
    assert found[:3].tolist() == [1.0, 0.0, 0.0]
    assert np.isnan(found[3:]).all()


def test_a_zero_gradient_has_cosine_zero_and_no_relative_score_through_the_whole_path(
    tmp_path: Path, mlp: Problem
) -> None:
    """With --params of the weight of the first layer alone, a row of zeros has no gradient."""
    features = np.asarray(mlp.payloads).copy()
    rows = np.flatnonzero(mlp.splits == "train")
    features[rows[5]] = 0.0
    manifest = write_manifest(tmp_path / "m.parquet", features, mlp.labels.numpy(), mlp.splits.tolist(), mlp.ids)
    first = next(n for n, p in mlp.model.named_parameters() if p.dim() == 2)
    for how in ({"relative": True}, {"options": COSINE}):
        found = column(score(mlp.job(methods=("ip",), manifest=manifest, params=first, **how)))
        none = found == 0.0 if "options" in how else np.isnan(found)
        assert none[5]
        assert np.isfinite(found[~none]).all()
        norms = column(score(mlp.job(methods=("self-tracin",), manifest=manifest, params=first)))
        assert np.array_equal(none, norms == 0.0)  # another row has no unit that is alive


def test_a_direction_that_is_zero_has_cosine_zero(tmp_path: Path) -> None:
    """With zeros for features alone as target, the gradient of the weights is zero."""
    problem = make_problem(tmp_path, "linear", (3,), classes=3, train=6, val=3)
    target = write_manifest(tmp_path / "t.parquet", np.zeros((2, 3), np.float32), [0, 1], ["val"] * 2, ["a", "b"])
    job = problem.job(methods=("ip",), params="head.weight", target=str(target), options=COSINE)
    assert column(score(job)).tolist() == [0.0] * 6


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["relative", "cosine"])
def test_the_table_is_signed_has_no_effect_and_says_no_best_label(how: str, mlp: Problem) -> None:
    """Another label is another gradient, of another size."""
    method = "exact" if how == "relative" else "ip"
    table = scored(mlp, method, how == "relative", **({} if how == "relative" else COSINE))
    about = provenance(table.schema)
    assert (about["kind"], about["effect"], about["effect_divisors"]) == ("signed", False, {})
    assert about["spec"]["relative"] is (how == "relative")
    assert not {"effect", "best_label", "best_label_gain"} & set(table.column_names)
    assert {"loss", "margin", "model_label"} <= set(table.column_names)
    plain = scored(mlp, method, False)
    assert {"best_label", "best_label_gain"} <= set(plain.column_names)
    assert ("effect" in plain.column_names) is (method == "exact")


def test_the_reliability_is_that_of_the_relative_scores(tmp_path: Path) -> None:
    """Two halves of the target rank rows otherwise where each is over its own norm."""
    problem = make_problem(tmp_path, "mlp:4", (5,), classes=3, train=40, val=60)
    noise = [provenance(scored(problem, "ip", r).schema)["noise"]["utility"] for r in (False, True)]
    assert noise[0]["reliability"] is not None
    assert noise[0]["reliability"] != noise[1]["reliability"]
    assert {k: v for k, v in noise[0].items() if k != "reliability"} == {
        k: v for k, v in noise[1].items() if k != "reliability"
    }


def test_a_blend_of_directions_is_over_the_norm_too(mlp: Problem) -> None:
    """By ``score`` and by ``curate``, of relative scores and of cosines, which are of unit directions."""
    both = {"methods": ("ip",), "objectives": ("utility", "robustness")}
    plain = score(mlp.job(**both), combine="linear")
    norms = np.linalg.norm(gradients(mlp), axis=1)
    for how in ({"relative": True}, {"options": COSINE}):
        blend = score(mlp.job(**both, **how), combine="linear")
        assert relative_error(column(blend), column(plain) / norms) < 1e-9
        table = score(mlp.job(**both, **how))
        names, origin = ["score_utility", "score_robustness"], provenance(table.schema)
        assert relative_error(combine_columns(table, names, "linear", Combine(), origin, ""), column(blend)) < 1e-9


# -- what cannot be ---------------------------------------------------------------------------------------------------


def test_methods_without_self_influence_are_refused_with_one_that_has_it(mlp: Problem) -> None:
    linear = [name for name, info in METHODS.items() if issubclass(info.load(), Linear)]
    instead = dict.fromkeys(linear, "--method ekfac") | dict.fromkeys(
        ("ip-ensemble", "gex-ip", "tracin"), "--method ip"
    )
    for name in set(linear) - {"ip", "exact", "ekfac"}:
        with pytest.raises(UsageError, match=f"{name}: --relative needs") as refused:
            scored(mlp, name)
        assert instead[name] in refused.value.fix
    with pytest.raises(UsageError, match="loss gives none"):
        scored(mlp, "loss")
    with pytest.raises(UsageError, match="both divide by the norm"):
        scored(mlp, "ip", **COSINE)
    with pytest.raises(UsageError, match="normalise 'length' is unknown; use one of none, cosine"):
        scored(mlp, "ip", relative=False, ip={"normalise": "length"})


def test_ranking_methods_beside_a_relative_one_are_as_they_are(mlp: Problem) -> None:
    table = score(mlp.job(methods=("ip", "loss", "self-tracin"), relative=True))
    alone = score(mlp.job(methods=("loss", "self-tracin")))
    for name in ("score_loss", "score_self-tracin"):
        assert np.array_equal(column(table, name), column(alone, name))


# -- the memo law ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path, tabular_run: Path) -> Bench:
    return Bench(tmp_path, tabular_run)


@pytest.mark.parametrize("spec", [GradSpec(("ip",), relative=True), GradSpec(("ip",), options=COSINE)])
def test_relabelling_in_place_computes_and_changes_exactly_those_rows(bench: Bench, spec: GradSpec) -> None:
    before = column(score(bench.job(examples(), spec=spec)))
    rows = [r.relabelled() if k in (0, 4, 17) else r for k, r in enumerate(examples())]
    job = bench.job(rows, spec=spec)
    (work,) = missing_work(job)
    assert (work.rows, work.rows_in("values")) == (0, 3)
    after = column(score(job))
    assert np.flatnonzero(after != before).tolist() == [0, 4, 17]
    assert relative_error(after, column(score(bench.job(rows, None, spec=spec)))) < 1e-6
    more = rows + [Example(f"new{k}", draw_features(1000 + k), k % 3) for k in range(7)]
    (work,) = missing_work(bench.job(more, spec=spec))
    assert (work.rows, work.rows_in("values")) == (7, 7)


def test_values_are_shared_with_the_methods_that_are_those_values(bench: Bench) -> None:
    fill(bench.job(examples(), spec=GradSpec(("self-tracin",))))
    for spec in (GradSpec(("ip",), relative=True), GradSpec(("ip",), options=COSINE)):
        (work,) = missing_work(bench.job(examples(), spec=spec))
        assert (work.rows, work.rows_in("values")) == (N, 0)
    both = bench.job(examples(), "new", spec=GradSpec(("ip", "self-tracin"), relative=True))
    (work,) = missing_work(both)
    assert {name: len(keys) for name, keys in work.values.items()} == {"ip": N}  # computed once, under the first name
    fill(bench.job(examples(), spec=GradSpec(("self-lissa",))))
    (work,) = missing_work(bench.job(examples(), spec=GradSpec(("ekfac",), relative=True)))
    assert (work.rows_in("values"), work.fits) == (0, ())
    dense = GradSpec(("self-lissa",), options={"self-lissa": {"solve": "dense"}})
    fill(bench.job(examples(), spec=dense))
    (work,) = missing_work(bench.job(examples(), spec=GradSpec(("exact",), relative=True)))
    assert (work.rows_in("values"), work.fits) == (0, ())


def test_the_same_from_the_command_line_from_python_and_through_a_pipe_and_warm_without_torch(
    tmp_path: Path, tabular: Path, tabular_run: Path
) -> None:
    common = ["--checkpoint", tabular_run, "--method", "ekfac"]
    ran = call_cli("score", tabular, *common, "--relative", "--dry-run", cwd=tmp_path)
    assert ran.json["steps"][0]["row_values_to_compute"] == {"ekfac": N}
    ran = call_cli("grads", tabular, *common, "--relative", "-o", "grads.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert call_cli("score", "grads.parquet", "-o", "piped.parquet", cwd=tmp_path).code == 0
    run_without_torch("score", tabular, *common, "--relative", "-o", "warm.parquet", cwd=tmp_path)
    piped, again = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("piped", "warm"))
    assert np.array_equal(column(piped), column(again))
    found = api.score(str(tabular), checkpoint=tabular_run, method="ekfac", relative=True, store=str(tmp_path / "s"))
    assert relative_error(column(found), column(piped)) < 1e-6
    plain = call_cli("score", tabular, *common, "-o", "plain.parquet", cwd=tmp_path)
    assert plain.code == 0, plain.err
    assert relative_error(column(pq.read_table(tmp_path / "plain.parquet")), column(piped)) > 0.01


def test_an_error_on_the_command_line_names_the_alternative(tmp_path: Path, tabular: Path, tabular_run: Path) -> None:
    asked = ["score", tabular, "--checkpoint", tabular_run, "--relative"]
    ran = call_cli(*asked, "--method", "datainf", cwd=tmp_path)
    assert ran.code == 2
    assert "datainf: --relative needs g^T P g" in ran.err
    assert "--method ekfac" in ran.err
    gate = call_cli(*asked, "--method", "exact", "-o", "scores.parquet", cwd=tmp_path)
    assert gate.code == 0, gate.err
    gate = call_cli("curate", "scores.parquet", "--check", "--threshold", "0.1", cwd=tmp_path)
    assert gate.code == 2, gate.err


# ---- rows that are predicted with certainty -------------------------------------------------------------------------


def certain_rows(margins: list[float], folder: Path) -> tuple[Path, Path, NDArray[np.float64]]:
    """Rows of a linear model of one feature whose logits are apart by ``margins``, weights, and scores over |grad|."""
    x = np.array([*margins, 0.3, -0.4, 0.6, -0.2], dtype=np.float64)
    labels = np.array([1] * len(margins) + [1, 0, 0, 1])
    splits = ["train"] * len(margins) + ["val"] * 4
    features = pa.array(x[:, None].tolist(), pa.list_(pa.float32()))
    table = pa.table({"id": [f"r{k}" for k in range(len(x))], "features": features, "label": labels, "split": splits})
    weight = torch.tensor([[-0.5], [0.5]])
    torch.save({"head.weight": weight, "head.bias": torch.zeros(2)}, folder / "w.pt")
    side = np.where(labels == 1, 1.0, -1.0)
    p = 1.0 / (1.0 + np.exp(side[len(margins) :] * x[len(margins) :]))  # of the other class, on the target rows
    direction = (p * side[len(margins) :])[:, None] * np.stack([x[len(margins) :], np.ones(4)], 1)
    own = np.stack([x[: len(margins)], np.ones(len(margins))], 1)
    # gradients are (1 - p_y) (e_0 - e_1) (x, 1): their size is sqrt(2) (1 - p_y) |(x, 1)|
    expected = 2.0 * own @ direction.mean(axis=0) / (np.sqrt(2.0) * np.linalg.norm(own, axis=1))
    return write(table, folder / "m.parquet"), folder / "w.pt", expected


@pytest.mark.parametrize("how", ["relative", "cosine", "exact"])
def test_a_row_whose_loss_is_below_float32_has_the_right_relative_score(how: str, tmp_path: Path) -> None:
    """exp(-100) has a square below float32 and exp(-200) none at all; beyond exp(-355) the square is below float64."""
    margins = [0.5, 5.0, 30.0, 50.0, 60.0, 100.0, 200.0, 330.0]
    manifest, weights, expected = certain_rows([*margins, 400.0, 800.0, 5000.0], tmp_path)
    heard, options = Heard(), {"ip": {"normalise": "cosine"}} if how == "cosine" else {}
    spec = GradSpec(("exact" if how == "exact" else "ip",), options=options, relative=how != "cosine")
    found = column(score(job_of(manifest, weights, None, model="linear", spec=spec, listener=heard)))
    known = len(margins)
    if how == "relative":
        assert np.allclose(found[:known], expected[:known], rtol=1e-4)
    if how == "cosine":
        assert np.allclose(found[:known] / found[0], expected[:known] / expected[0], rtol=1e-4)
    assert np.isfinite(found[:known]).all()
    assert (found[:known] != 0).all()
    assert np.isnan(found[known:]).all()  # not 0: the gradient has a direction, only its size is not known
    assert any("3 rows have a non-finite score and are null" in said for said in heard.warnings)


def test_self_influence_of_such_rows_is_small_and_not_null(tmp_path: Path) -> None:
    manifest, weights, _ = certain_rows([0.5, 50.0, 100.0, 330.0, 800.0], tmp_path)
    found = column(score(job_of(manifest, weights, None, model="linear", spec=GradSpec(("self-tracin",)))))
    p = np.exp(-np.array([50.0, 100.0, 330.0]))
    own = 2.0 * p**2 * (np.array([50.0, 100.0, 330.0]) ** 2 + 1.0)
    assert np.allclose(-found[1:4], own, rtol=1e-4, atol=0.0)
    assert -1e-300 < found[4] < 0.0


def test_powers_of_two_round_nothing() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 4) * 5, torch.randint(0, 4, (50,))
    over, size = CROSS_ENTROPY.slopes_over_size(logits, labels)
    assert torch.equal(over * size[:, None], CROSS_ENTROPY.slopes(logits, labels))
    assert (over.abs().amax(1) < 1).all()
    assert (over.abs().amax(1) >= 0.5).all()
    one = torch.randn(3, 1)
    alone = CROSS_ENTROPY.slopes_over_size(one, torch.zeros(3, dtype=torch.int64))[0]
    assert torch.equal(alone, torch.zeros(3, 1).double())

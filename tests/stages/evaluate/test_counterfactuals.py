"""Scores held against retraining: LDS, removal, leave-one-out, brittleness (methods.md 4.1, 6.2 to 6.5; T08, T12, T54).

Reference: a dense inverse Hessian by autograd, and every refit done again by the oracle's Newton steps.
Behavioural: a run that is killed continues, evaluations share trainings, part of the work gives partial figures.

    python -m pytest tests/stages/evaluate/test_counterfactuals.py
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.numpy import load_file

import influence_cli.model.train.sgd as training
from influence_cli.cli.main import run
from influence_cli.data.open import open_manifest
from influence_cli.data.tables import provenance, with_provenance
from influence_cli.maths.softmax_regression import Regression, fit
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.curate.score_table import read_scores
from influence_cli.stages.evaluate.counterfactuals.brittleness import _Search
from influence_cli.stages.evaluate.counterfactuals.counterfactuals import counterfactuals
from influence_cli.stages.evaluate.counterfactuals.leave_one_out import LeaveOneOut
from influence_cli.stages.evaluate.counterfactuals.pool import Outcome, Pool, Refit
from influence_cli.stages.evaluate.counterfactuals.removal import Removal
from influence_cli.stages.evaluate.counterfactuals.scores import ScoreColumns, columns_of, open_scored_run, scores_for
from influence_cli.stages.evaluate.counterfactuals.subsets import Subsets
from influence_cli.stages.evaluate.request import CounterfactualRequest, Training
from tests.cases import Heard, call_cli, column, with_column, write
from tests.forked import forked
from tests.oracle import refit, write_manifest

Floats = NDArray[np.float64]
DECAY = 1e-2
BANK = Path(__file__).parents[4] / "shared" / "data" / "bank" / "manifest.parquet"


# -- a convex problem, its run folder and its exact scores ----------------------------------------------------------


def draw_problem(folder: Path, n: int = 200, d: int = 5, flipped: float = 0.1, scale: Floats | None = None) -> Path:
    """Two classes, n train, n target and n test rows; a share of the train labels is flipped (``clean_label``)."""
    rng = np.random.default_rng(0)
    scale = np.ones(d) if scale is None else scale
    x = (rng.normal(size=(3 * n, d)) * scale).astype(np.float32)
    clean = (rng.random(3 * n) < 1.0 / (1.0 + np.exp(-x @ (rng.normal(size=d) / scale)))).astype(np.int64)
    labels = clean.copy()
    labels[: int(flipped * n)] ^= 1
    splits = ["train"] * n + ["val"] * n + ["test"] * n
    return write_manifest(folder / "manifest.parquet", x, labels, splits, clean_label=clean)


def exact_scores(manifest: Path, run: Path, decay: float = DECAY) -> Floats:
    """Each train row's q^T H^-1 g_i, H the dense autograd Hessian of the penalised mean loss at the run's weights."""
    rows = open_manifest(manifest)
    weights = load_file(run / "model.safetensors")
    theta = torch.from_numpy(np.concatenate([weights["head.weight"], weights["head.bias"][:, None]], axis=1))

    def inputs(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        part = rows.rows(split)
        x = np.array([v for _, v in rows.payloads(part.index)], dtype=np.float64)
        return torch.from_numpy(np.concatenate([x, np.ones((len(x), 1))], axis=1)), torch.from_numpy(part.labels)

    (x, y), (xv, yv) = inputs("train"), inputs("val")

    def risk(flat: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x @ flat.view(theta.shape).T, y) + 0.5 * decay * (flat @ flat)

    flat = theta.flatten()
    hessian = torch.autograd.functional.hessian(risk, flat)
    q = torch.autograd.functional.jacobian(lambda t: F.cross_entropy(xv @ t.view(theta.shape).T, yv), flat)
    u = torch.linalg.solve(hessian, q).view(theta.shape)  # type: ignore[arg-type]
    residual = torch.softmax(x @ theta.T, dim=1) - F.one_hot(y, 2)
    return (residual * (x @ u.T)).sum(dim=1).numpy()


def with_scores(table: Path, out: Path, **columns: Floats) -> Path:
    """The score table with signed columns more; ``score`` and its first columns stay."""
    scored = pq.read_table(table)
    origin = provenance(scored.schema)
    for name, values in columns.items():
        origin["kinds"][f"score_{name}"] = "signed"
        scored = with_column(scored, f"score_{name}", values)
    return write(with_provenance(scored, origin), out)


def scored_by_exact(folder: Path, **problem: Any) -> Path:
    """A folder with a manifest, a run at the optimum, and ``scores.parquet`` by ip, loss and (by hand) exact."""
    manifest = draw_problem(folder, **problem)
    asked = ["--model", "linear", "--raw-features", "--optimizer", "lbfgs", "--weight-decay", DECAY]
    assert call_cli("retrain", manifest.name, *asked, "-o", "run", cwd=folder).code == 0
    scoring = ["--checkpoint", "run", "--method", "ip", "--method", "loss", "--precision", "fp64"]
    ran = call_cli("score", manifest.name, *scoring, "-o", "plain.parquet", cwd=folder)
    assert ran.code == 0, ran.err
    return with_scores(
        folder / "plain.parquet", folder / "scores.parquet", exact=exact_scores(manifest, folder / "run")
    )


@pytest.fixture(scope="session")
def convex(shared: Path) -> Path:
    """Folder with ``scores.parquet`` on 200 train rows of which 20 are labelled wrong; only read from."""
    folder = shared / "convex"
    folder.mkdir()
    scored_by_exact(folder)
    return folder


def evaluate(convex: Path, folder: Path, *flags: Any, table: str = "scores.parquet", code: int = 0) -> Any:
    """JSON of ``influence evaluate`` with its trainings kept in ``folder``."""
    ran = call_cli("evaluate", table, "--store", folder / "store", *flags, "--json", cwd=convex)
    assert ran.code == code, ran.err
    return ran.json if code == 0 else ran.err


def count_trainings() -> Any:
    """A patch under which every call of the trainer is counted."""
    return mock.patch.object(training, "train", side_effect=training.train)


# -- LDS ------------------------------------------------------------------------------------------------------------


def pool_of(rows: Any, columns: dict[str, Floats], **more: Any) -> Pool:
    values = {"seed": 0, "seeds": 1, "deterministic": True, "used": np.ones(len(rows), dtype=bool), **more}
    return Pool(rows, columns=ScoreColumns(signed=columns), random=np.random.default_rng(9).random(len(rows)), **values)


def outcome(phi: float) -> Outcome:
    return Outcome(np.array([phi]), np.array([1.0]), np.array([]), np.array([]))


def test_lds_of_scores_that_add_up_to_the_outcome_is_one(convex: Path) -> None:
    rows = open_manifest(convex / "manifest.parquet").rows("train")
    truth = np.random.default_rng(1).normal(size=len(rows))
    part = Subsets(pool_of(rows, {"truth": truth, "opposite": -truth}), 40, 0.5)
    refits = part.refits()
    found = part.figures([outcome(5.0 - float(truth[a.kept].sum())) for a in refits])
    assert found["columns"]["truth"]["lds"] == 1.0
    assert found["columns"]["opposite"]["lds"] == -1.0
    assert abs(found["columns"]["random"]["lds"]) < 0.6
    assert (found["subsets"], found["subset_rows"], found["partial"]) == (40, 100, False)
    guesses = np.random.default_rng(2).normal(size=(400, len(rows)))
    many = Subsets(pool_of(rows, {str(k): g for k, g in enumerate(guesses)}), 9, 0.5)
    chance = many.figures([outcome(5.0 - float(truth[a.kept].sum())) for a in refits[:9]])
    inside = [abs(c["lds"]) < chance["chance"] for c in chance["columns"].values()]
    assert 0.9 < np.mean(inside) < 0.98


def test_subsets_are_seeded_halves_that_more_subsets_do_not_move(convex: Path) -> None:
    rows = open_manifest(convex / "manifest.parquet").rows("train")
    used = np.arange(len(rows)) >= 20
    pool = pool_of(rows, {}, used=used)
    few, many = (Subsets(pool, n, 0.5).refits() for n in (5, 60))
    assert all(np.array_equal(a.kept, b.kept) for a, b in zip(few, many, strict=False))
    kept = np.array([a.kept for a in many])
    assert set(kept.sum(axis=1)) == {90}
    assert not kept[:, ~used].any()
    shares = kept[:, used].mean(axis=0)
    assert 0.2 < shares.min() < shares.max() < 0.8
    assert np.abs(np.corrcoef(kept[:, used].T)[np.triu_indices(180, 1)]).mean() < 0.2
    other = Subsets(dataclasses.replace(pool, seed=1), 1, 0.5).refits()[0]
    assert not np.array_equal(other.kept, few[0].kept)


@pytest.mark.parametrize("seed", [0, 1])
def test_exact_predicts_better_than_ip_and_ip_better_than_chance(tmp_path: Path, seed: int) -> None:
    scored_by_exact(tmp_path, n=600, d=10, flipped=0.1, scale=np.geomspace(0.5, 2.0, 10))
    lds = evaluate(tmp_path, tmp_path, "--lds", 100, "--seed", seed)["lds"]
    assert lds["subsets"] == 100
    bounds = {name: c["interval"] for name, c in lds["columns"].items()}
    assert bounds["exact"][0] > bounds["ip_utility"][1]
    assert bounds["ip_utility"][0] > bounds["random"][1]
    assert lds["columns"]["exact"]["lds"] > 0.9
    assert bounds["random"][0] < 0 < bounds["random"][1]
    assert lds["differences"]["ip_utility"]["exact"]["verdict"] == "worse"
    assert "ranks only" in lds["left_out"]["loss"]


def test_the_objective_after_a_subset_is_the_oracles(convex: Path, tmp_path: Path) -> None:
    scores = read_scores(CurateRequest(str(convex / "scores.parquet"), manifest=str(convex / "manifest.parquet")))
    part = Subsets(pool_of(scores.train, {}), 1, 0.5)
    kept = part.members(0)
    evaluated = evaluate(convex, tmp_path, "--lds", 3)
    x, y = arrays(convex, "train")
    model = torch.nn.Linear(5, 2).double()
    refit(model, x[kept], y[kept], DECAY)
    xv, yv = arrays(convex, "val")
    with torch.no_grad():
        expected = float(F.cross_entropy(model(xv), yv))
    phis = stored_phis(tmp_path)
    assert min(abs(p - expected) for p in phis) < 1e-10
    assert evaluated["lds"]["columns"]["exact"]["interval"] is None  # three subsets say too little


def arrays(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of a split, in the manifest's order."""
    rows = open_manifest(folder / "manifest.parquet").rows(split)
    x = np.array([v for _, v in rows.manifest.payloads(rows.index)], dtype=np.float64)
    return torch.from_numpy(x), torch.from_numpy(rows.labels)


def stored_phis(folder: Path) -> list[float]:
    return [float(load_file(f)["target_loss"].mean()) for f in (folder / "store" / "trainings").glob("*.safetensors")]


# -- leave one out --------------------------------------------------------------------------------------------------


@functools.cache
def oracle_changes(folder: Path, keep_divisor: bool, rows: tuple[int, ...]) -> Floats:
    """Phi without each row less Phi, every fit by the oracle; the divisor is kept by raising the penalty instead."""
    x, y = arrays(folder, "train")
    xv, yv = arrays(folder, "val")

    def phi(kept: NDArray[np.bool_]) -> float:
        model = torch.nn.Linear(5, 2).double()
        refit(model, x[kept], y[kept], DECAY * (len(kept) / kept.sum() if keep_divisor else 1.0))
        with torch.no_grad():
            return float(F.cross_entropy(model(xv), yv))

    everything = np.ones(len(x), dtype=bool)
    whole = phi(everything)
    return np.array([phi(everything & (np.arange(len(x)) != i)) - whole for i in rows])


@pytest.mark.parametrize("convention", ["loo", "renorm-loo"])
def test_changes_are_those_of_refits_by_the_oracle(convex: Path, tmp_path: Path, convention: str) -> None:
    found = evaluate(convex, tmp_path, "--loo", 12, "--convention", convention)["leave_one_out"]
    ids = open_manifest(convex / "manifest.parquet").rows("train").ids
    rows = tuple(ids.index(i) for i in found["changes"])
    expected = oracle_changes(convex, convention == "loo", rows)
    np.testing.assert_allclose(list(found["changes"].values()), expected, atol=1e-11)
    assert found["convention"] == convention.replace("-", "_")
    assert (found["rows"], found["extreme_rows"], found["seeds"]) == (12, 6, 1)


def test_exact_scores_predict_true_changes_with_slope_one(convex: Path, tmp_path: Path) -> None:
    found = evaluate(convex, tmp_path, "--loo", 50)["leave_one_out"]
    exact, ip = found["columns"]["exact"], found["columns"]["ip_utility"]
    assert min(exact["pearson"], exact["spearman"]) >= 0.99
    assert exact["sign"] >= 0.98
    assert 0.9 < exact["slope"] < 1.1
    assert not 0.9 < ip["slope"] < 1.1
    assert exact["intervals"]["slope"][0] < exact["slope"] < exact["intervals"]["slope"][1]
    assert abs(found["columns"]["random"]["pearson"]) < 0.5
    assert (found["convention"], found["floor"], found["resolvable"]) == ("loo", 0.0, True)


def test_the_two_conventions_differ_by_the_offset_of_the_penalty(convex: Path, tmp_path: Path) -> None:
    kept, divided = (
        evaluate(convex, tmp_path, "--loo", 40, "--convention", c)["leave_one_out"] for c in ("loo", "renorm-loo")
    )
    assert kept["changes"].keys() == divided["changes"].keys()
    gaps = np.array(list(divided["changes"].values())) - np.array(list(kept["changes"].values()))
    # (1/n) q^T H^-1 lambda theta; by stationarity sum_i g_i = - n lambda theta, so it is - sum_i s_i / n^2
    scores = column(pq.read_table(convex / "scores.parquet"), "score_exact")
    offset = -scores.sum() / len(scores) ** 2
    np.testing.assert_allclose(gaps.mean(), offset, rtol=0.05)
    assert gaps.std() < 0.1 * abs(offset)
    assert divided["columns"]["exact"]["offset"] == pytest.approx(kept["columns"]["exact"]["offset"] + offset, rel=0.2)


def test_the_rows_are_extremes_and_others_each_once(convex: Path) -> None:
    rows = open_manifest(convex / "manifest.parquet").rows("train")
    scores = np.arange(len(rows), dtype=float)
    part = LeaveOneOut(pool_of(rows, {"s": scores}), 9, True)
    chosen, extremes = part.rows
    assert extremes == 4
    assert sorted(chosen[:4].tolist()) == [0, 1, 198, 199]
    assert len(set(chosen.tolist())) == 9
    assert [a.kept.sum() for a in part.refits()] == [200, *[199] * 9]


def test_noise_of_training_is_measured_and_said(tmp_path: Path, scored: Path) -> None:
    with count_trainings() as trainings:
        ran = call_cli("evaluate", scored, "--loo", 6, "--epochs", 2, "--store", tmp_path / "s", cwd=tmp_path)
    assert ran.code == 0, ran.err
    found = ran.json["leave_one_out"]
    assert trainings.call_count == 5 * (1 + 6)
    assert (found["seeds"], found["rows"], found["convention"]) == (5, 6, "renorm_loo")
    assert found["floor"] == min(found["reseed_floor"], found["paired_error"]) > 0
    assert found["resolvable"] == (found["floor"] <= found["median_change"])


def test_a_floor_above_the_changes_makes_them_not_resolvable(convex: Path) -> None:
    rows = open_manifest(convex / "manifest.parquet").rows("train")
    part = LeaveOneOut(pool_of(rows, {"s": np.arange(200.0)}, deterministic=False, seeds=6), 8, False)
    refits = part.refits()
    assert len(refits) == 6 * 9
    rng = np.random.default_rng(0)
    noisy = [outcome(1.0 + 0.1 * rng.normal()) for _ in refits]
    found = part.figures(noisy)  # type: ignore[arg-type]
    whole = np.array([o.phi for o in noisy]).reshape(9, 6)
    changes = whole[1:] - whole[0]
    assert found["reseed_floor"] == pytest.approx(np.sqrt(2 / 6) * whole[0].std(ddof=1), abs=1e-12)
    assert found["paired_error"] == pytest.approx(np.sqrt((changes.var(axis=1, ddof=1) / 6).mean()), abs=1e-12)
    assert found["median_change"] == pytest.approx(np.median(np.abs(changes.mean(axis=1))), abs=1e-12)
    steady = [
        outcome(1.0 + 0.1 * s + 0.01 * (a.kept[0] == 0)) for s, a in zip([0, 1, 2, 3, 4, 5] * 9, refits, strict=True)
    ]
    paired = part.figures(steady)  # type: ignore[arg-type]
    assert paired["paired_error"] < 1e-12 < paired["reseed_floor"]  # a shared seed takes its own noise out
    apart = [outcome(1.0 + 0.1 * rng.normal() * (s > 0)) for s in range(54)]
    assert part.figures(apart)["floor"] > 0  # type: ignore[arg-type]


# -- removal --------------------------------------------------------------------------------------------------------


def test_removing_the_most_harmful_rows_lowers_the_loss_more_than_random_ones(convex: Path, tmp_path: Path) -> None:
    result = evaluate(convex, tmp_path, "--removal", "5%,20")
    found = result["removal"]
    assert found["removed_rows"] == [10, 20]
    assert (found["random_draws"], found["seeds"]) == (5, 1)
    exact = found["columns"]["exact"]["10"]
    assert exact["over_random"]["target_loss"]["verdict"] == "better"
    assert exact["over_class_matched"]["target_loss"]["verdict"] == "better"
    assert exact["over_nothing"]["target_loss"]["mean"] < 0
    assert exact["over_nothing"]["target_loss"]["verdict"] == "one deterministic fit"
    assert exact["mean"]["target_loss"]["half_width"] is None
    assert set(exact["mean"]) == {"target_loss", "target_accuracy", "test_loss", "test_accuracy"}
    assert set(found["columns"]) == {"ip_utility", "exact", "loss", "margin"}
    assert "deterministic" in found["intervals"]
    # none, 2 sizes x (5 random + 4 columns x (1 + 5)), less what columns have in common
    assert result["trainings"] <= 1 + 2 * (5 + 4 * 6)


def test_what_is_removed_is_the_lowest_and_its_controls_match(convex: Path) -> None:
    rows = open_manifest(convex / "manifest.parquet").rows("train")
    scores, used = np.round(np.random.default_rng(3).normal(size=len(rows)), 1), np.arange(len(rows)) % 7 > 0
    part = Removal(pool_of(rows, {"s": scores}, used=used), ("10%",))
    (k,) = part.counts
    assert k == int(0.1 * used.sum())
    taken = part.removed["column", "s", k][0]
    rest = used.copy()
    rest[taken] = False
    assert used[taken].all()
    assert scores[taken].max() <= scores[rest].min()
    tied = np.flatnonzero(used & (scores == scores[taken].max()))
    keys = [rows.row_keys[i].tobytes() for i in tied]
    assert max([k for i, k in zip(tied, keys, strict=True) if i in taken]) <= min(
        [k for i, k in zip(tied, keys, strict=True) if i not in taken], default=b"\xff"
    )
    for name in (("random", ""), ("class-matched", "s")):
        drawn = part.removed[*name, k]
        assert len(drawn) == 5
        assert all(len(set(d.tolist())) == k and used[d].all() for d in drawn)
        assert len({tuple(sorted(d)) for d in drawn}) == 5
    mixes = [np.bincount(rows.labels[d], minlength=2).tolist() for d in part.removed["class-matched", "s", k]]
    assert mixes == [np.bincount(rows.labels[taken], minlength=2).tolist()] * 5


def test_replicates_are_paired_over_seeds_where_training_is_random(convex: Path) -> None:
    rows = open_manifest(convex / "manifest.parquet").rows("train")
    part = Removal(pool_of(rows, {"s": np.arange(200.0)}, deterministic=False), ("10",))
    refits = part.refits()
    assert [a.seed for a in refits] == [0, 1, 2, 3, 4] * 4  # none, random, column, class-matched
    lowest = np.arange(200) < 10
    better = [outcome(1.0 + 0.3 * a.seed - 0.01 * (a.seed + 1) * (not a.kept[lowest].any())) for a in refits]
    found = part.figures(better)["columns"]["s"]["10"]  # type: ignore[arg-type]
    difference = found["over_random"]["target_loss"]
    assert difference["mean"] == pytest.approx(-0.03, abs=1e-12)
    assert difference["n"] == 5
    assert difference["verdict"] == "better"


# -- brittleness ----------------------------------------------------------------------------------------------------


def gradients(folder: Path, split: str) -> Floats:
    """Every row's loss gradient [n, C (d + 1)] at the run's weights."""
    weights = load_file(folder / "run" / "model.safetensors")
    x, y = arrays(folder, split)
    inputs = np.concatenate([x.numpy(), np.ones((len(x), 1))], axis=1)
    theta = np.concatenate([weights["head.weight"], weights["head.bias"][:, None]], axis=1)
    residual = torch.softmax(torch.from_numpy(inputs @ theta.T), dim=1).numpy() - np.eye(2)[y.numpy()]
    return (residual[:, :, None] * inputs[:, None, :]).reshape(len(x), -1)


def test_scores_for_single_target_rows_are_gradient_products_and_their_mean_is_the_score(
    convex: Path, tmp_path: Path
) -> None:
    scores = read_scores(CurateRequest(str(convex / "scores.parquet"), manifest=str(convex / "manifest.parquet")))
    run, session = open_scored_run(scores, request_of(convex, tmp_path / "s"))
    assert list(run.methods) == ["ip"]
    products = gradients(convex, "train") @ gradients(convex, "val").T
    for v in (0, 7):
        np.testing.assert_allclose(scores_for(run, session, v)["ip"], products[:, v], atol=1e-7)
    np.testing.assert_allclose(column(scores.table, "score_ip_utility"), products.mean(axis=1), atol=1e-7)


def test_the_smallest_removal_that_flips_is_that_of_trying_every_size(convex: Path, tmp_path: Path) -> None:
    found = evaluate(convex, tmp_path, "--brittleness", 30)["brittleness"]
    assert (found["queries"], found["removed_rows"], found["partial"]) == (30, [1, 2, 4, 8, 10], False)
    target = open_manifest(convex / "manifest.parquet").rows("val")
    products = gradients(convex, "train") @ gradients(convex, "val").T
    x, y = (a.numpy() for a in arrays(convex, "train"))
    xv, yv = (a.numpy() for a in arrays(convex, "val"))
    inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1)

    def margin(v: int, order: NDArray[np.int64], k: int) -> float:
        kept = order[k:]
        theta = fit(Regression(inputs[kept], y[kept], np.ones(len(kept)), 2, DECAY)).theta
        z = theta @ np.append(xv[v], 1.0)
        return float(z[yv[v]] - z[1 - yv[v]])

    drops, expected = [], {}
    for i in found["smallest"]:
        v = target.ids.index(i)
        order = np.argsort(-products[:, v], kind="stable")
        margins = {k: margin(v, order, k) for k in (0, 1, 2, 4, 8, 10)}
        assert margins[0] > 0
        drops.append(margins[0] - margins[10])
        expected[i] = next((k for k in (1, 2, 4, 8, 10) if margins[k] <= 0), None)
    assert {i: r["ip"] for i, r in found["smallest"].items()} == expected
    assert len(set(expected.values())) > 2  # some flip early, some late, some not at all
    ip, random = found["columns"]["ip"], found["columns"]["random"]
    assert ip["margin_drop"]["mean"] == pytest.approx(np.mean(drops), abs=1e-8)
    assert ip["over_random"]["verdict"] == "better"
    flipped = [k for k in expected.values() if k is not None]
    assert ip["flipped"] == {str(k): sum(f <= k for f in flipped) / 30 for k in (1, 2, 4, 8, 10)}
    assert random["flipped"]["10"] < ip["flipped"]["10"]


def test_bisection_finds_the_first_of_sizes_that_flip() -> None:
    for first in range(8):
        search = _Search(0, "ip", np.arange(3), -1, 7)
        tries = 0
        while search.open:
            tried = search.next(6)
            search.learn(tried, np.array([-1.0, -1.0, 1.0] if tried >= first else [1.0, 1.0, -1.0]))
            tries += 1
        assert search.high == first  # 7: not even the largest
        assert tries <= 4


def test_brittleness_stops_in_time_goes_on_and_needs_a_method_that_can(convex: Path, tmp_path: Path) -> None:
    nothing = evaluate(convex, tmp_path, "--brittleness", 5, "--max-minutes", 0)
    assert (nothing["partial"], nothing["brittleness"]["queries"]) == (True, 0)
    planned = call_cli("evaluate", "scores.parquet", "--brittleness", 5, "-n", "--json", cwd=convex).json
    evaluate(convex, tmp_path, "--lds", 3)
    some = evaluate(convex, tmp_path, "--brittleness", 5, "--max-minutes", 0)
    assert (some["partial"], some["brittleness"]["queries"]) == (True, 0)
    whole = evaluate(convex, tmp_path, "--brittleness", 5)
    assert whole["trainings"] <= planned["trainings"]["brittleness"]["trainings_at_most"]
    again = evaluate(convex, tmp_path, "--brittleness", 5)
    assert again["trainings_run_now"] == 0
    assert again["brittleness"] == whole["brittleness"]
    flags = ["--store", tmp_path / "store", "--brittleness", 5, "--format", "table"]
    assert "margin drop" in call_cli("evaluate", "scores.parquet", *flags, cwd=convex).text
    drawn = ["--method", "random", "--method", "loss", "--checkpoint", "run", "-o", tmp_path / "r.parquet"]
    assert call_cli("score", "manifest.parquet", *drawn, cwd=convex).code == 0
    said = evaluate(convex, tmp_path, "--brittleness", 5, table=str(tmp_path / "r.parquet"), code=2)
    assert "no method of the table has them" in said


# -- trainings that are kept ----------------------------------------------------------------------------------------


def request_of(convex: Path, store: Path, **more: Any) -> CounterfactualRequest:
    scores = CurateRequest(str(convex / "scores.parquet"), manifest=str(convex / "manifest.parquet"))
    return CounterfactualRequest(scores, Training({}, {}), checkpoint=str(convex / "run"), store=str(store), **more)


def test_no_training_runs_twice_and_evaluations_share_them(convex: Path, tmp_path: Path) -> None:
    with count_trainings() as trainings:
        first = counterfactuals(request_of(convex, tmp_path / "s", lds=10))
        assert first["trainings_run_now"] == first["trainings"] == 11
        assert trainings.call_count == 11 + 1  # and the optimum that every fit starts from
        trainings.reset_mock()
        again = counterfactuals(request_of(convex, tmp_path / "s", lds=10))
        assert trainings.call_count == 0
        more = counterfactuals(request_of(convex, tmp_path / "s", lds=13, loo=4))
        assert more["trainings_run_now"] == 3 + 4
    assert again["lds"] == first["lds"]


def test_a_run_that_is_interrupted_continues_where_it_was(convex: Path, tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        counterfactuals(request_of(convex, tmp_path / "s", lds=12), Heard(stop, 5, "retrain"))
    kept = len(list((tmp_path / "s" / "trainings").glob("*.safetensors")))
    assert kept == 5
    continued = counterfactuals(request_of(convex, tmp_path / "s", lds=12))
    assert continued["trainings_run_now"] == 13 - kept
    assert continued["lds"] == counterfactuals(request_of(convex, tmp_path / "fresh", lds=12))["lds"]


def test_a_run_that_is_killed_continues_where_it_was(convex: Path, tmp_path: Path) -> None:
    command = ["evaluate", "scores.parquet", "--store", str(tmp_path / "store"), "--lds", "4000", "--json"]
    process = forked(lambda: run(command), convex)
    folder, end = tmp_path / "store" / "trainings", time.monotonic() + 60
    while len(list(folder.glob("*.safetensors"))) < 12 and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    kept = len(list(folder.glob("*.safetensors")))
    assert 12 <= kept < 4001
    assert evaluate(convex, tmp_path, "--lds", 11)["trainings_run_now"] == 0
    continued = evaluate(convex, tmp_path, "--lds", kept + 4)
    assert (continued["trainings"], continued["trainings_run_now"]) == (kept + 5, 5)


def test_trainings_are_kept_in_no_folder_that_is_no_store_and_with_no_store_nowhere(
    convex: Path, tmp_path: Path
) -> None:
    before = sorted(convex.rglob("*"))
    ran = call_cli("evaluate", "scores.parquet", "--no-store", "--lds", 3, "--json", cwd=convex)
    assert ran.json["trainings_run_now"] == 4, ran.err
    assert sorted(convex.rglob("*")) == before
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "notes.txt").write_text("mine")
    assert "this folder is no store" in evaluate(convex, tmp_path, "--lds", 3, code=2)
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["notes.txt"]


def test_time_that_is_over_leaves_partial_figures_and_the_same_command_goes_on(convex: Path, tmp_path: Path) -> None:
    flags = ["--lds", 20, "--removal", "10%", "--loo", 10]
    nothing = evaluate(convex, tmp_path, *flags, "--max-minutes", 0)
    assert (nothing["trainings_done"], nothing["partial"]) == (0, True)
    assert nothing["lds"]["subsets"] == nothing["leave_one_out"]["rows"] == 0
    assert nothing["removal"]["columns"] == {name: {} for name in nothing["removal"]["columns"]}
    shown = call_cli("evaluate", "scores.parquet", "--store", tmp_path / "store", *flags, "--max-minutes", 0,
                     "--format", "table", cwd=convex)  # fmt: skip
    assert shown.code == 0
    assert "PARTIAL" in shown.text
    assert "run the same command to continue" in shown.err
    evaluate(convex, tmp_path, "--lds", 15)
    some = evaluate(convex, tmp_path, *flags, "--max-minutes", 0)
    assert (some["trainings_done"], some["lds"]["subsets"], some["lds"]["partial"]) == (16, 15, True)
    assert some["lds"]["columns"]["exact"]["interval"] is not None
    whole = evaluate(convex, tmp_path, *flags, "--max-minutes", 5)
    assert not whole["partial"]
    assert not any(whole[p]["partial"] for p in ("lds", "removal", "leave_one_out"))
    assert whole["trainings_run_now"] == whole["trainings"] - 16


def test_a_damaged_training_is_set_aside_and_run_again(convex: Path, tmp_path: Path) -> None:
    first = evaluate(convex, tmp_path, "--lds", 10)
    victim = sorted((tmp_path / "store" / "trainings").glob("*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:-8])
    ran = call_cli("evaluate", "scores.parquet", "--store", tmp_path / "store", "--lds", 10, "--json", cwd=convex)
    assert "damaged" in ran.err
    assert (ran.json["trainings_run_now"], ran.json["lds"]) == (1, first["lds"])
    listed = call_cli("cache", "ls", "--store", tmp_path / "store", "--json", cwd=convex).json["entries"]
    assert [(e["kind"], e["name"], e["files"]) for e in listed] == [("trainings", "linear", 11)]
    victim.write_bytes(b"rubbish")
    verified = call_cli("cache", "verify", "--store", tmp_path / "store", "--json", cwd=convex).json
    assert (verified["files"], len(verified["damaged"])) == (11, 1)
    freed = call_cli("cache", "gc", "--store", tmp_path / "store", "--json", cwd=convex)
    assert freed.code == 0, freed.err
    assert not list(victim.parent.glob(".damaged-*"))


def test_another_recipe_label_or_target_is_another_training_and_another_order_is_not(
    convex: Path, tmp_path: Path
) -> None:
    evaluate(convex, tmp_path, "--lds", 3)
    assert evaluate(convex, tmp_path, "--lds", 3, "--weight-decay", "0.1")["trainings_run_now"] == 4
    assert evaluate(convex, tmp_path, "--lds", 3, "--seed", 1)["trainings_run_now"] == 3  # all rows are no draw
    assert evaluate(convex, tmp_path, "--lds", 3, "--subset-share", "40%")["trainings_run_now"] == 3
    table = pq.read_table(convex / "manifest.parquet")
    backwards = write(table.take(pa.array(range(table.num_rows))[::-1]), tmp_path / "backwards.parquet")
    same = evaluate(convex, tmp_path, "--lds", 3, "--loo", 4, "--manifest", backwards)
    assert (same["trainings_run_now"], same["trainings"]) == (4, 8)
    few = table.filter(pa.array(np.array(table["split"].to_pylist()) != "test"))
    without_test = write(few, tmp_path / "without-test.parquet")
    other = evaluate(convex, tmp_path, "--lds", 3, "--manifest", without_test)
    assert (other["trainings_run_now"], other["test_rows"]) == (4, 0)


def test_a_row_without_weight_is_never_trained_on_and_weights_count(convex: Path, tmp_path: Path) -> None:
    table = pq.read_table(convex / "manifest.parquet")
    weights = np.ones(table.num_rows)
    weights[:4], weights[4:8] = 0.0, 3.0
    manifest = write(with_column(table, "weight", weights), tmp_path / "weighted.parquet")
    found = evaluate(convex, tmp_path, "--lds", 3, "--loo", 196, "--manifest", manifest)
    assert found["train_rows"] == 196
    ids = open_manifest(manifest).rows("train").ids
    assert not set(found["leave_one_out"]["changes"]) & set(ids[:4])
    exact = found["leave_one_out"]["columns"]["exact"]  # scores were computed without weights, so roughly
    assert exact["spearman"] > 0.9
    scores = dict(zip(ids, column(pq.read_table(convex / "scores.parquet"), "score_exact"), strict=True))
    gains = {i: change / scores[i] for i, change in found["leave_one_out"]["changes"].items()}
    heavy = np.median([gains[i] for i in ids[4:8]])
    assert heavy == pytest.approx(3.0 * np.median([gains[i] for i in ids[8:]]), rel=0.3)


def test_calibration_rows_stay_out(tmp_path: Path, digits: Path, calibrated_run: Path) -> None:
    scored = call_cli(
        "score", "--method", "ip", digits, "--checkpoint", calibrated_run, "-o", "s.parquet", cwd=tmp_path
    )
    assert scored.code == 0, scored.err
    with count_trainings() as trainings:
        ran = call_cli("evaluate", "s.parquet", "--lds", 3, "--seeds", 2, "--epochs", 1, cwd=tmp_path)
    assert ran.code == 0, ran.err
    left_out = json.loads((calibrated_run / "run.json").read_text())["calibration_ids"]
    assert ran.json["train_rows"] == 200 - len(left_out)
    for call in trainings.call_args_list:
        data = call.args[1]
        assert not {i for i, w in zip(data.ids, data.weights, strict=True) if w > 0} & set(left_out)
    assert trainings.call_count == 1 + 3 * 2
    lds = ran.json["lds"]
    assert lds["seeds"] == 2
    assert 0.0 <= lds["ceiling"] == lds["reliability"] ** 0.5 <= 1.0


# -- what is measured, and what is refused --------------------------------------------------------------------------


def test_columns_that_predict_nothing_are_left_out_with_the_reason(convex: Path, tmp_path: Path) -> None:
    table = pq.read_table(convex / "scores.parquet")
    origin = provenance(table.schema)
    origin["spec"]["objectives"] = ["utility", "fairness"]
    origin["kinds"] |= {"score_ip_fairness": "signed", "score_holes": "signed"}
    values = column(table, "score_exact")
    holes = pa.array(values, mask=np.arange(len(values)) == 3)
    for name, some in (("ip_fairness", values), ("holes", holes), ("foreign", values), ("exact_0", values)):
        table = with_column(table, f"score_{name}", some)
    write(with_provenance(table, origin), tmp_path / "odd.parquet")
    scores = read_scores(CurateRequest(str(tmp_path / "odd.parquet"), manifest=str(convex / "manifest.parquet")))
    found = columns_of(scores, np.ones(200, dtype=bool))
    assert set(found.signed) == {"ip_utility", "exact"}
    assert set(found.ranking) == {"loss", "margin"}
    assert set(found.left_out) == {"ip_fairness", "holes", "foreign"}
    assert "fairness" in found.left_out["ip_fairness"]
    assert "1 rows have no score" in found.left_out["holes"]
    assert "not recorded" in found.left_out["foreign"]
    np.testing.assert_allclose(found.ranking["loss"], -column(table, "loss"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lds", 2], "--lds 2 is out of range"),
        (["--lds", 5, "--subset-share", "0.1%"], "no subset to train on"),
        (["--removal", "100%"], "nothing, or all of them"),
        (["--removal", "0"], "nothing, or all of them"),
        (["--removal", "many"], "neither a share nor a count"),
        (["--loo", 500], "--loo 500 of 200"),
        (["--loo", 5, "--convention", "raw"], "--convention 'raw' is unknown"),
        (["--loo", 5, "--convention", "loo", "--optimizer", "sgd"], "whose divisor can be kept"),
        (["--lds", 5, "--model", "mlp:4"], "cannot train mlp:4"),
        (["--lds", 5, "--checkpoint", "nowhere"], "no such checkpoint"),
        (["--lds", 5, "--test", "nowhere.parquet"], "no such file"),
        (["--lds", 5, "-o", "out.parquet"], "cannot write"),
    ],
)
def test_what_cannot_work_is_refused_before_any_training(
    convex: Path, tmp_path: Path, flags: list[Any], said: str
) -> None:
    assert said in evaluate(convex, tmp_path, *flags, code=2)
    assert not (tmp_path / "store").exists()


def test_a_checkpoint_or_target_that_has_changed_is_refused(tmp_path: Path) -> None:
    scored_by_exact(tmp_path, n=60)
    table = pq.read_table(tmp_path / "manifest.parquet")
    val = np.array(table["split"].to_pylist()) == "val"
    write(table.filter(pa.array(val)), tmp_path / "target.parquet")
    evaluate(tmp_path, tmp_path, "--lds", 3)
    assert evaluate(tmp_path, tmp_path, "--lds", 3, "--target", "target.parquet")["trainings_run_now"] == 0
    again = ["--model", "linear", "--raw-features", "--optimizer", "lbfgs", "--weight-decay", "0.5"]
    assert call_cli("retrain", "manifest.parquet", *again, "-o", "run", cwd=tmp_path).code == 2  # of another recipe
    shutil.rmtree(tmp_path / "run")
    assert call_cli("retrain", "manifest.parquet", *again, "-o", "run", cwd=tmp_path).code == 0
    assert "not the one that was scored" in evaluate(tmp_path, tmp_path, "--lds", 3, code=2)
    ran = call_cli("evaluate", "scores.parquet", "--lds", 3, "--checkpoint", "run", "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "training on all rows again gives" in ran.err
    moved = write(table.filter(pa.array(~val | (np.arange(len(val)) % 2 > 0))), tmp_path / "less.parquet")
    said = evaluate(tmp_path, tmp_path, "--lds", 3, "--checkpoint", "run", "--manifest", moved, code=2)
    assert "the target is not the one" in said


def test_flags_stand_alone_where_no_run_folder_says_the_recipe(convex: Path, tmp_path: Path) -> None:
    drawn = call_cli("score", "manifest.parquet", "--method", "random", "-o", tmp_path / "r.parquet", cwd=convex)
    assert drawn.code == 0, drawn.err
    table = with_scores(tmp_path / "r.parquet", tmp_path / "s.parquet", mine=np.arange(200.0))
    flags = ["--lds", 10, "--model", "linear", "--raw-features", "--optimizer", "lbfgs", "--weight-decay", DECAY]
    assert "nothing says which model" in evaluate(convex, tmp_path, *flags[:2], table=str(table), code=2)
    found = evaluate(convex, tmp_path, *flags, table=str(table))
    assert set(found["lds"]["columns"]) == {"mine", "random"}
    assert evaluate(convex, tmp_path, "--lds", 10)["trainings_run_now"] == 0  # the run folder's recipe is the same


def test_a_run_folder_beats_the_settings_file_and_flags_beat_both(convex: Path, tmp_path: Path) -> None:
    config = tmp_path / "influence.toml"
    config.write_text('model = "mlp:4"\noptimizer = "adamw"\nweight_decay = 0.3\n')
    found = evaluate(convex, tmp_path, "--lds", 3, "--config", config)
    assert (found["refit"]["model"], found["refit"]["recipe"]) == (
        "linear",
        {"optimizer": "lbfgs", "weight_decay": DECAY},
    )
    flagged = evaluate(convex, tmp_path, "--lds", 3, "--config", config, "--weight-decay", 0.2)
    assert flagged["refit"]["recipe"]["weight_decay"] == 0.2


def test_tables_json_output_file_and_plan(convex: Path, tmp_path: Path) -> None:
    flags = ["scores.parquet", "--store", tmp_path / "store", "--lds", 10, "--loo", 5, "--removal", "10%"]
    planned = call_cli("evaluate", *flags, "-n", cwd=convex).json
    assert planned["trainings"]["lds"] == {"trainings": 10, "kept": 0}
    assert planned["recipe"] == {"optimizer": "lbfgs", "weight_decay": DECAY}
    assert not (tmp_path / "store").exists()
    out = tmp_path / "e.json"
    written = call_cli("evaluate", *flags, "-o", out, cwd=convex)
    assert (written.code, written.out) == (0, b"")
    result = json.loads(out.read_text())
    assert result["schema_version"] == 1
    assert {"lds", "removal", "leave_one_out", "refit"} <= set(result)
    assert result["refit"]["phi"] == pytest.approx(result["refit"]["phi_of_checkpoint"], rel=1e-6)
    shown = call_cli("evaluate", *flags, "--format", "table", cwd=convex)
    for said in ("LDS: 10 subsets of 100 of 200", "lowest by exact", "slope", "over class-matched", "divisor kept"):
        assert said in shown.text
    assert "left out: loss (it ranks only" in shown.err
    again = call_cli("evaluate", *flags, "-n", cwd=convex).json
    assert again["trainings"]["leave_one_out"] == {"trainings": 6, "kept": 6}
    quiet = call_cli("evaluate", *flags, "-q", "-o", out, cwd=convex)
    assert (quiet.code, quiet.out, quiet.err) == (0, b"", "")


def test_all_rows_trained_again_are_held_against_the_utility_whatever_else_was_scored(
    convex: Path, tmp_path: Path
) -> None:
    objectives = ["--objective", "robustness", "--objective", "utility", "--checkpoint", "run", "--precision", "fp64"]
    scored = call_cli(
        "score", "--method", "ip", "manifest.parquet", *objectives, "-o", tmp_path / "two.parquet", cwd=convex
    )
    assert scored.code == 0, scored.err
    rows = open_manifest(convex / "manifest.parquet")
    val = rows.rows("val")
    weights = load_file(convex / "run" / "model.safetensors")
    x = torch.tensor(np.array([v for _, v in rows.payloads(val.index)]), dtype=torch.float64)
    logits = x @ torch.tensor(weights["head.weight"]).double().T + torch.tensor(weights["head.bias"]).double()
    phi = float(F.cross_entropy(logits, torch.from_numpy(val.labels)))
    noise = provenance(pq.read_schema(tmp_path / "two.parquet"))["noise"]
    assert list(noise) == ["robustness", "utility"]
    assert abs(noise["robustness"]["phi"] - phi) > 0.05 * phi  # it is not told apart otherwise
    ran = call_cli("evaluate", tmp_path / "two.parquet", "--store", tmp_path / "s", "--lds", 3, "--json", cwd=convex)
    assert ran.json["refit"]["phi_of_checkpoint"] == pytest.approx(phi, rel=1e-6)
    assert ran.json["refit"]["phi"] == pytest.approx(phi, rel=1e-6)
    assert "training on all rows again gives" not in ran.err


def test_several_seeds_of_a_deterministic_training_are_one(convex: Path, tmp_path: Path) -> None:
    ran = call_cli("evaluate", "scores.parquet", "--store", tmp_path, "--lds", 3, "--seeds", 4, "--json", cwd=convex)
    assert "one training stands for all --seeds" in ran.err
    assert (ran.json["trainings"], ran.json["lds"]["seeds"], ran.json["lds"]["ceiling"]) == (4, 1, 1.0)


def test_asked_trainings_are_named_by_content() -> None:
    fields = {f.name for f in dataclasses.fields(Refit)}
    assert fields == {"kept", "seed", "fixed_divisor"}


# -- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
@pytest.mark.skipif(not BANK.exists(), reason="no ../shared/data/bank (the data set is not part of the repository)")
def test_on_a_part_of_bank_exact_predicts_best_and_its_slope_is_one(tmp_path: Path) -> None:
    table = pq.read_table(BANK)
    split = np.array(table["split"].to_pylist())
    chosen = np.concatenate([np.flatnonzero(split == s)[:n] for s, n in (("train", 1500), ("val", 1500))])
    write(table.take(pa.array(chosen)), tmp_path / "manifest.parquet")
    asked = ["--model", "linear", "--raw-features", "--optimizer", "lbfgs", "--weight-decay", DECAY, "--test", BANK]
    assert call_cli("retrain", "manifest.parquet", *asked, "-o", "run", cwd=tmp_path).code == 0
    scoring = ["--checkpoint", "run", "--precision", "fp64", "--allow-overlap", "-o", "plain.parquet"]
    ran = call_cli("score", "--method", "ip", "manifest.parquet", *scoring, cwd=tmp_path)
    assert ran.code == 0, ran.err
    exact = exact_scores(tmp_path / "manifest.parquet", tmp_path / "run")
    with_scores(tmp_path / "plain.parquet", tmp_path / "scores.parquet", exact=exact)
    found = evaluate(tmp_path, tmp_path, "--lds", 60, "--loo", 20)
    columns = found["lds"]["columns"]
    assert columns["exact"]["interval"][0] > columns["utility"]["interval"][1]
    assert columns["utility"]["lds"] > columns["random"]["lds"]
    assert 0.9 < found["leave_one_out"]["columns"]["exact"]["slope"] < 1.1
    assert found["leave_one_out"]["columns"]["exact"]["spearman"] > 0.99

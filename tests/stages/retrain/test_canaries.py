"""Canaries: who is planted with what, that nothing but the training sees it, and who finds it.

python -m pytest tests/stages/retrain/test_canaries.py
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from influence_cli.data.labels import clean_labels
from influence_cli.data.open import open_manifest
from influence_cli.errors import UsageError
from influence_cli.maths.labels import softmax
from influence_cli.model.run_folder import RunFolder
from influence_cli.settings import GradSpec
from influence_cli.stages.retrain.canaries import confusion_noise, plant, uniform_noise, with_planted
from influence_cli.stages.retrain.request import CanaryRequest
from tests.cases import (
    Example,
    Heard,
    Ran,
    call_cli,
    column,
    digits_table,
    draw_features,
    feature_table,
    job_of,
    train_run,
    with_column,
    write,
)
from tests.opened import Opened, score

quick = settings(database=None, deadline=None, derandomize=True, max_examples=40)


def done(*asked: Any, cwd: Path) -> Ran:
    """The command line, which has to succeed."""
    ran = call_cli(*asked, cwd=cwd)
    assert ran.code == 0, ran.err
    return ran


# ---- planting -----------------------------------------------------------------------------------------------------


def rows_of_classes(sizes: list[int], path: Path) -> Any:
    labels = [c for c, n in enumerate(sizes) for _ in range(n)]
    rows = [Example(f"r{k:04d}", draw_features(k), y) for k, y in enumerate(labels)]
    return open_manifest(write(feature_table(rows), path)).rows("train")


@quick
@given(st.lists(st.integers(1, 60), min_size=2, max_size=4), st.sampled_from([0.05, 0.1, 0.2, 0.5]), st.integers(0, 9))
def test_as_many_as_asked_for_of_each_class_within_the_guard(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], share: float, seed: int
) -> None:
    rows = rows_of_classes(sizes, tmp_path_factory.mktemp("m") / "m.parquet")
    may = np.ones(len(rows), dtype=bool)
    try:
        planted = plant(rows, may, share, uniform_noise(len(sizes)), seed)
    except UsageError:
        planted = np.full(len(rows), -1)
    chosen = planted >= 0
    assert np.all(planted[chosen] != rows.labels[chosen])
    assert chosen.sum() <= np.floor(share * len(rows) + 1e-9)
    for c, n in enumerate(sizes):
        of_class = int(chosen[rows.labels == c].sum())
        assert of_class <= max(0, min(np.ceil(share * n), n - 5))
        assert of_class <= max(2 * share, share + 0.05) * n
    if min(sizes) > 10 / (1 - share):
        assert chosen.sum() == np.floor(share * len(rows) + 1e-9)


def test_planting_is_seeded_and_by_id_and_spares_those_that_may_not(tmp_path: Path) -> None:
    rows = rows_of_classes([100, 100, 100], tmp_path / "m.parquet")
    may = np.arange(300) % 3 > 0
    a = plant(rows, may, 0.1, uniform_noise(3), 0)
    assert np.array_equal(a, plant(rows, may, 0.1, uniform_noise(3), 0))
    assert not np.array_equal(a, plant(rows, may, 0.1, uniform_noise(3), 1))
    assert not (a[~may] >= 0).any()
    turned = rows.take(np.arange(300)[::-1])
    assert np.array_equal(plant(turned, may[::-1], 0.1, uniform_noise(3), 0)[::-1], a)
    with pytest.raises(UsageError, match="no canary"):
        plant(rows, may, 0.001, uniform_noise(3), 0)


def test_the_random_column_knows_nothing_of_the_draw(tmp_path: Path) -> None:
    """Canaries and the method ``random`` of one seed hash the same ids; they must not be the same hash."""
    from influence_cli.methods.random import uniform_draws

    rows = rows_of_classes([1000, 1000], tmp_path / "m.parquet")
    chosen = plant(rows, np.ones(2000, dtype=bool), 0.2, uniform_noise(2), 0) >= 0
    draws = uniform_draws(rows.ids, 0)
    assert stats.mannwhitneyu(draws[chosen], draws[~chosen]).pvalue > 0.01


def test_labels_are_drawn_as_the_noise_says(tmp_path: Path) -> None:
    rows = rows_of_classes([3000, 300, 300], tmp_path / "m.parquet")
    noise = np.array([[0.0, 0.8, 0.2], [0.5, 0.0, 0.5], [0.1, 0.9, 0.0]])
    planted = plant(rows, np.ones(3600, dtype=bool), 0.5, noise, 0)
    of_first = planted[(rows.labels == 0) & (planted >= 0)]
    assert len(of_first) == 1500
    assert (of_first == 1).mean() == pytest.approx(0.8, abs=0.04)


def test_confusion_is_the_mean_probability_of_the_other_classes() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 4)), rng.integers(0, 3, 50)
    matrix = confusion_noise(logits, labels)
    p = softmax(logits)[labels == 1].mean(axis=0)
    p[1] = 0.0
    assert matrix[1] == pytest.approx(0.99 * p / p.sum() + 0.01 * uniform_noise(4)[1])
    assert matrix.sum(axis=1) == pytest.approx(np.ones(4))
    assert np.all(np.diag(matrix) == 0.0)
    assert np.array_equal(matrix[3], uniform_noise(4)[3])  # a class without rows


# ---- the run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest m of 400 train rows, some of weight 0; run with canaries and calibration; its score table s."""
    here = tmp_path_factory.mktemp("canaries")
    table = digits_table(train=400, val=100, test=40)
    weights = [0.0 if k < 20 else 1.0 for k in range(540)]
    write(with_column(table, "weight", pa.array(weights)), here / "m.parquet")
    train_run(here / "m.parquet", here / "run", calibration=0.1, canaries=CanaryRequest(0.1, None, None))
    asked = ["score", "m.parquet", "--checkpoint", "run", "--method", "ip", "--method", "loss", "--method", "margin"]
    done(*asked, "-o", "s.parquet", cwd=here)
    return here


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def test_the_run_folder_says_who_was_planted_and_only_rows_that_are_trained_on_are(folder: Path) -> None:
    said = record(folder / "run")
    canaries = said["canaries"]
    rows = open_manifest(folder / "m.parquet").rows("train")
    trained = (rows.weights > 0) & np.array([i not in said["calibration_ids"] for i in rows.ids])
    assert said["trained_on"]["rows"] == trained.sum()
    assert len(canaries["ids"]) == int(0.1 * trained.sum())
    by_id = {i: k for k, i in enumerate(rows.ids)}
    for i, key, was, label in zip(*(canaries[k] for k in ("ids", "row_keys", "labels", "planted")), strict=True):
        assert trained[by_id[i]]
        assert (rows.labels[by_id[i]], rows.row_keys[by_id[i]].tobytes().hex()) == (was, key)
        assert label != was
    assert (canaries["noise"], canaries["from"], canaries["share"]) == ("uniform", None, 0.1)


def test_the_model_was_trained_on_the_planted_labels(folder: Path, tmp_path: Path) -> None:
    """The same rows, with the planted labels in a manifest, give the same weights."""
    from safetensors.numpy import load_file

    canaries = record(folder / "run")["canaries"]
    table = pq.read_table(folder / "m.parquet")
    planted = dict(zip(canaries["ids"], canaries["planted"], strict=True))
    pairs = zip(table.column("id").to_pylist(), table.column("label").to_pylist(), strict=True)
    write(with_column(table, "label", pa.array([planted.get(i, y) for i, y in pairs])), tmp_path / "m.parquet")
    train_run(tmp_path / "m.parquet", tmp_path / "run", calibration=0.1)
    a, b = (load_file(p / "run" / "model.safetensors") for p in (folder, tmp_path))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    plain = train_run(folder / "m.parquet", tmp_path / "plain", calibration=0.1)
    c = load_file(plain / "model.safetensors")
    assert not all(np.array_equal(a[name], c[name]) for name in a)
    assert "canaries" not in record(plain)


def test_a_run_again_without_canaries_forgets_them(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    train_run(folder / "m.parquet", tmp_path / "run", calibration=0.1)
    assert "canaries" not in record(tmp_path / "run")


def test_an_earlier_model_says_which_labels_are_planted(folder: Path, tmp_path: Path) -> None:
    asked = ["retrain", folder / "m.parquet", "--model", "mlp:16", "--epochs", "2", "--canaries", "20%"]
    ran = done(*asked, "--canaries-from", folder / "run", "-o", "run", cwd=tmp_path)
    assert "train rows are canaries: trained on with a wrong label, confusion" in ran.err
    canaries = record(tmp_path / "run")["canaries"]
    assert (canaries["noise"], canaries["from"]) == ("confusion", str(folder / "run"))
    uniform = done(*asked, "--canaries-from", folder / "run", "--canary-noise", "uniform", "-o", "u", cwd=tmp_path)
    assert "uniform" in uniform.err
    other = record(tmp_path / "u")["canaries"]
    assert other["ids"] == canaries["ids"]
    assert other["planted"] != canaries["planted"]
    assert not (tmp_path / ".influence").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--canaries", "5%", "--canary-noise", "confusion"], "--canaries-from"),
        (["--canaries", "5%", "--canary-noise", "pairs"], "--canary-noise 'pairs' is unknown"),
        (["--canaries", "lots"], "--canaries 'lots' is no share"),
        (["--canaries", "0.1%"], "raise --canaries"),
        (["--canaries", "5%", "--against", "m.parquet"], "every arm that is compared"),
        (["--canary-noise", "uniform"], "pass --canaries 5%"),
        (["--canaries", "5%", "--canaries-from", "nowhere"], "no such checkpoint"),
    ],
)
def test_what_cannot_be_planted_exits_2(flags: list[str], said: str, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "m.parquet", tmp_path / "m.parquet")
    ran = call_cli("retrain", "m.parquet", "--model", "mlp:4", "--epochs", "1", *flags, "-o", "run", cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert not (tmp_path / "run").exists()


# ---- what other stages see ----------------------------------------------------------------------------------------


def test_score_gives_own_labels_and_says_which_was_planted(folder: Path, tmp_path: Path) -> None:
    table = pq.read_table(folder / "s.parquet")
    rows = open_manifest(folder / "m.parquet").rows("train")
    assert table.column("label").to_pylist() == rows.labels.tolist()
    canaries = record(folder / "run")["canaries"]
    planted = dict(zip(canaries["ids"], canaries["planted"], strict=True))
    said = dict(zip(table.column("id").to_pylist(), table.column("canary").to_pylist(), strict=True))
    assert said == {i: planted.get(i) for i in rows.ids}
    shutil.copytree(folder / "run", tmp_path / "run")
    # a folder of an earlier version, without checksums, and without canaries
    without = {k: v for k, v in record(tmp_path / "run").items() if k not in ("canaries", "checksum", "weights")}
    (tmp_path / "run" / "run.json").write_text(json.dumps(without))
    asked = ["score", folder / "m.parquet", "--checkpoint", tmp_path / "run", "--method", "ip", "--method", "loss"]
    done(*asked, "--method", "margin", "-o", "plain.parquet", cwd=tmp_path)
    plain = pq.read_table(tmp_path / "plain.parquet")
    assert "canary" not in plain.column_names
    assert plain.equals(table.drop_columns(["canary"]))  # no score knows of the planting


def test_a_row_that_changed_since_is_no_canary_any_more(folder: Path, tmp_path: Path) -> None:
    canaries = record(folder / "run")["canaries"]
    table = pq.read_table(folder / "m.parquet")
    labels = table.column("label").to_pylist()
    k = table.column("id").to_pylist().index(canaries["ids"][0])
    labels[k] = (labels[k] + 1) % 10
    rows = open_manifest(write(with_column(table, "label", pa.array(labels)), tmp_path / "m.parquet")).rows("train")
    planted = RunFolder.of(folder / "run").planted_labels(rows)
    assert planted is not None
    assert (planted >= 0).sum() == len(canaries["ids"]) - 1
    assert planted[k] == -1
    assert RunFolder.of(folder / "run" / "model.safetensors").planted_labels(rows) is not None
    assert RunFolder.of(tmp_path).planted_labels(rows) is None


def test_curate_and_the_gate_leave_canaries_alone(folder: Path, tmp_path: Path) -> None:
    canaries = set(record(folder / "run")["canaries"]["ids"])
    trim = ["curate", folder / "s.parquet", "--manifest", folder / "m.parquet", "--by", "score_loss", "--budget", "40%"]
    ran = done(*trim, "--set", "guard=false", "-o", "c.parquet", "--edits", "e.parquet", cwd=tmp_path)
    assert "canaries of the checkpoint's training are left alone" in ran.err
    edited = set(pq.read_table(tmp_path / "e.parquet").column("id").to_pylist())
    assert len(edited) == 160
    assert not edited & canaries
    table = pq.read_table(folder / "s.parquet").drop_columns(["canary"])
    write(table, tmp_path / "blind.parquet")
    blind = [*trim[:1], "blind.parquet", *trim[2:], "--set", "guard=false", "--edits", "b.parquet"]
    done(*blind, cwd=tmp_path)
    assert set(pq.read_table(tmp_path / "b.parquet").column("id").to_pylist()) & canaries  # they do look wrong
    kept = {r["id"]: r["label"] for r in pq.read_table(tmp_path / "c.parquet").to_pylist()}
    own = {r["id"]: r["label"] for r in pq.read_table(folder / "m.parquet").to_pylist()}
    assert all(kept[i] == own[i] for i in canaries)
    gate = ["curate", "s.parquet", "--by", "score_loss", "--check", "--false-flag", "10%", "--max-flagged", "100%"]
    flagged = call_cli(*gate, cwd=folder)
    assert flagged.code == 0, flagged.err
    assert not {r["id"] for r in flagged.rows} & canaries
    assert flagged.rows


# ---- who finds them -----------------------------------------------------------------------------------------------


def test_scores_with_planted_labels_are_those_of_a_manifest_that_holds_them(folder: Path, tmp_path: Path) -> None:
    spec = GradSpec(("ip", "loss", "margin"))
    store = tmp_path / "store"
    job = job_of(folder / "m.parquet", folder / "run", store, spec=spec)
    score(job)
    planted = RunFolder.of(folder / "run").planted_labels(job.train)
    assert planted is not None
    heard = Heard()
    warm = job_of(folder / "m.parquet", folder / "run", store, spec=spec, listener=heard)
    again = score(Opened(with_planted(warm.run, planted), warm.session))
    assert not [what for what, _ in heard.spans if what.startswith("training rows")]  # arithmetic on the store
    table = pq.read_table(folder / "m.parquet")
    labels = np.array(table.column("label").to_pylist())
    labels[job.train.index[planted >= 0]] = planted[planted >= 0]
    write(with_column(table, "label", pa.array(labels)), tmp_path / "m.parquet")
    held = score(job_of(tmp_path / "m.parquet", folder / "run", store, spec=spec))
    for name in ("score_ip_utility", "score_loss", "score_margin"):
        assert np.array_equal(column(again, name), column(held, name))
        assert not np.array_equal(column(again, name), column(score(job), name))


def test_evaluate_measures_who_finds_canaries_and_the_gap_to_the_truth(folder: Path) -> None:
    ran = done("evaluate", "s.parquet", "--budget", "10%", cwd=folder)
    result = ran.json
    (entry,) = result["canaries"]
    canaries = record(folder / "run")["canaries"]
    calibration = set(record(folder / "run")["calibration_ids"])
    assert entry["canaries"] == len(canaries["ids"])
    assert entry["reference"] == "random"
    assert entry["rows"] == record(folder / "run")["trained_on"]["rows"]
    best = entry["best_against_random"]
    assert best in ("ip_utility", "loss", "margin")
    assert entry["detection"][best]["difference"]["average_precision"]["verdict"] == "better"
    table = pq.read_table(folder / "s.parquet")
    ids = table.column("id").to_pylist()
    trained = np.array([i not in calibration and k >= 20 for k, i in enumerate(ids)])
    found = np.array([i in set(canaries["ids"]) for i in ids])
    job = job_of(folder / "m.parquet", folder / "run", None, spec=GradSpec(("loss",)))
    planted = RunFolder.of(folder / "run").planted_labels(job.train)
    assert planted is not None
    loss = -column(score(Opened(with_planted(job.run, planted), job.session)), "loss")
    from sklearn.metrics import average_precision_score, roc_auc_score

    expected = roc_auc_score(found[trained], -loss[trained])
    assert entry["detection"]["loss"]["auc"] == pytest.approx(expected, abs=1e-12)
    gap = entry["against_truth"]["columns"]["loss"]
    assert gap["auc"]["canaries"] == pytest.approx(expected, abs=1e-12)
    rows = open_manifest(folder / "m.parquet").rows("train")
    clean = clean_labels(rows)
    assert clean is not None
    wrong = clean != rows.labels
    real = roc_auc_score(wrong[~found], -column(table, "score_loss")[~found])
    assert gap["auc"]["real"] == pytest.approx(real, abs=1e-12)
    assert gap["auc"]["gap"] == pytest.approx(expected - real)
    among = trained & (found | ~wrong)
    assert gap["auc"]["canaries_among_right"] == pytest.approx(roc_auc_score(found[among], -loss[among]), abs=1e-12)
    rate = entry["against_truth"]["wrong_rate"]
    weight = np.where(found[trained], rate * (~found[trained]).sum() / found[trained].sum() / (1 - rate), 1.0)
    expected = average_precision_score(found[trained], -loss[trained], sample_weight=weight)
    assert gap["average_precision"]["canaries"] == pytest.approx(expected, abs=1e-12)
    assert result["canary_rows"] == len(canaries["ids"])
    assert result["known_rows"] == 400 - result["canary_rows"]
    text = done("evaluate", "s.parquet", "--format", "table", cwd=folder).text
    assert "canaries beside rows that are really wrong" in text


def test_canaries_are_measured_where_no_truth_is_known(folder: Path, tmp_path: Path) -> None:
    bare = pq.read_table(folder / "m.parquet").drop_columns(["clean_label"])
    write(bare, tmp_path / "m.parquet")
    asked = ["score", "m.parquet", "--checkpoint", folder / "run", "--method", "loss", "-o", "s.parquet"]
    done(*asked, cwd=tmp_path)
    ran = done("evaluate", "s.parquet", cwd=tmp_path)
    result = ran.json
    (entry,) = result["canaries"]
    assert result["detection"] == {}
    assert "no truth is known" in ran.err
    assert "plant canaries" not in ran.err
    assert entry["best_against_random"] in ("loss", "margin")
    assert "against_truth" not in entry


def test_two_tables_of_one_run_share_a_planting_and_two_runs_have_two(folder: Path, tmp_path: Path) -> None:
    other = train_run(folder / "m.parquet", tmp_path / "other", seed=5, canaries=CanaryRequest(0.1))
    manifest = folder / "m.parquet"
    for name, run, method in (("a", folder / "run", "ip"), ("b", folder / "run", "loss"), ("c", other, "loss")):
        done("score", manifest, "--checkpoint", run, "--method", method, "-o", f"{name}.parquet", cwd=tmp_path)
    groups = done("evaluate", "a.parquet", "b.parquet", "c.parquet", "--draws", "50", cwd=tmp_path).json["canaries"]
    assert [g["tables"] for g in groups] == [["a.parquet", "b.parquet"], ["c.parquet"]]
    assert set(groups[0]["detection"]) == {"utility", "loss", "margin", "random"}  # what is alike is there once
    against = done("evaluate", "a.parquet", "--against", "c.parquet", "--draws", "50", cwd=tmp_path).json
    both = {i for run in (folder / "run", other) for i in record(run)["canaries"]["ids"]}
    assert against["canary_rows"] == len(both)
    assert against["rows"] == 400 - len(both)
    asked = ["evaluate", "a.parquet", "--sentinel", "99%", "--checkpoint", other, "--no-store", "--draws", "50"]
    sentinel = done(*asked, cwd=tmp_path).json
    assert sentinel["rows"] == math.ceil(0.99 * (400 - len(both)))  # no canary of either is drawn


def test_a_run_that_moved_is_found_where_checkpoint_says_and_no_other_is_taken(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "moved")
    asked = ["evaluate", folder / "s.parquet", "--manifest", folder / "m.parquet", "--draws", "50"]
    (moved,) = done(*asked, "--checkpoint", "moved", cwd=tmp_path).json["canaries"]
    (here,) = done("evaluate", "s.parquet", "--draws", "50", cwd=folder).json["canaries"]
    assert {**moved, "tables": 0} == {**here, "tables": 0}
    other = train_run(folder / "m.parquet", tmp_path / "other", seed=5)
    ran = call_cli(*asked, "--checkpoint", other, cwd=tmp_path)
    assert ran.code == 2
    assert "the checkpoint has changed since" in ran.err


def test_a_table_whose_checkpoint_is_gone_or_changed_exits_2(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.copy(folder / "m.parquet", tmp_path / "m.parquet")
    done("score", "m.parquet", "--checkpoint", "run", "--method", "loss", "-o", "s.parquet", cwd=tmp_path)
    train_run(tmp_path / "m.parquet", tmp_path / "run", seed=8)
    ran = call_cli("evaluate", "s.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "the checkpoint has changed since" in ran.err
    shutil.rmtree(tmp_path / "run")
    ran = call_cli("evaluate", "s.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "no such checkpoint" in ran.err

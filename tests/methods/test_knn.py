"""knn and outlier against brute force in float64 and against scikit-learn, from the manifest to the table.

python -m pytest tests/methods/test_knn.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from influence_cli.data.open import open_manifest
from influence_cli.model.build import load_model
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import GradSpec
from tests.cases import Example, call_cli, column, draw_features, examples, feature_table, job_of, train_run, write
from tests.opened import score

ROWS = [*examples(train=40, val=20, test=6), Example("twin", draw_features(3), 2)]  # of r003, with another label


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("knn")
    write(feature_table(ROWS), folder / "m.parquet")
    train_run(folder / "m.parquet", folder / "run", "mlp:9,6", raw_features=True)
    return folder


def split(name: str) -> list[Example]:
    return [r for r in ROWS if r.split == name]


def features(folder: Path, rows: list[Example]) -> NDArray[np.float64]:
    """What the model's head is given, by its own layers in float64."""
    spec = ModelSpec.from_dict(json.loads((folder / "run" / "run.json").read_bytes())["model"])
    model: Any = load_model(spec, find_checkpoint(str(folder / "run"))[0], torch.float64)
    h = torch.tensor([r.features for r in rows], dtype=torch.float32).double()
    for layer in model.layers:
        h = layer(h).relu()
    return h.detach().numpy()


def distances(a: NDArray[np.float64], b: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    if metric == "cosine":
        a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300) for x in (a, b))
    apart = np.linalg.norm(a[:, None] - b[None], axis=2)
    if metric == "euclidean":
        return apart
    zeros = (np.abs(a).sum(1) == 0)[:, None] | (np.abs(b).sum(1) == 0)[None]
    return np.where(zeros & (apart > 0), 1.0, apart**2 / 2)


def neighbours(folder: Path, among: str, metric: str, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Places of the k nearest rows of each train row, and their distances, by sorting all of them; ties by row key."""
    name = "val" if among == "target" else "train"
    train, others = split("train"), split(name)
    keys = [k.tobytes() for k in open_manifest(str(folder / "m.parquet"), "label").rows(name).row_keys]
    found = distances(features(folder, train), features(folder, others), metric)
    if among == "train":
        np.fill_diagonal(found, np.inf)
    by_row = [sorted(range(len(others)), key=lambda j: (round(far[j], 12), keys[j]))[:k] for far in found]
    order = np.array(by_row)
    return order, np.take_along_axis(found, order, axis=1)


def scored(folder: Path, method: str, *more: str) -> pa.Table:
    asked = ("score", "m.parquet", "--checkpoint", "run", "--method", method, "-o", "s.parquet", *more)
    ran = call_cli(*asked, "--store", "store", "--precision", "fp64", cwd=folder)
    assert ran.code == 0, ran.err
    return pq.read_table(folder / "s.parquet")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("among", ["target", "train"])
@pytest.mark.parametrize("weights", ["distance", "uniform"])
def test_knn_is_the_weighted_share_of_neighbours_with_another_label(
    folder: Path, among: str, metric: str, weights: str
) -> None:
    k, train, others = 7, split("train"), split("val" if among == "target" else "train")
    place, far = neighbours(folder, among, metric, k)
    shares, labels = [], []
    for i, row in enumerate(train):
        w = [1.0] * k
        if weights == "distance":
            w = [float(d == 0) for d in far[i]] if (far[i] == 0).any() else [1 / d for d in far[i]]
        theirs = [others[j].label for j in place[i]]
        shares.append(sum(a for a, y in zip(w, theirs, strict=True) if y != row.label) / sum(w))
        votes = [sum(a for a, y in zip(w, theirs, strict=True) if y == c) for c in range(3)]
        labels.append(int(np.argmax(votes)))
    options = {"k": str(k), "among": among, "metric": metric, "weights": weights}
    table = scored(folder, "knn", *(word for o, v in options.items() for word in ("--set", f"knn.{o}={v}")))
    np.testing.assert_allclose(column(table), -np.array(shares), rtol=1e-7, atol=1e-12)
    assert table.column("knn_label").to_pylist() == labels
    named = [", ".join(others[j].id for j in some[:3]) for some in place]
    assert table.column("knn_nearest").to_pylist() == named


def test_knn_is_that_of_scikit_learn(folder: Path) -> None:
    """Beside it another implementation: its class probabilities are the weighted shares."""
    target, train = split("val"), split("train")
    peer = KNeighborsClassifier(5, weights="distance", algorithm="brute", metric="euclidean")
    peer.fit(features(folder, target), [r.label for r in target])
    probability = np.asarray(peer.predict_proba(features(folder, train)))
    probability = probability[np.arange(len(train)), np.array([r.label for r in train])]
    found = column(scored(folder, "knn", "--set", "knn.k=5", "--set", "knn.metric=euclidean"))
    np.testing.assert_allclose(found, probability - 1.0, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("among", ["target", "train"])
def test_outlier_is_minus_the_mean_distance(folder: Path, among: str, metric: str) -> None:
    _, far = neighbours(folder, among, metric, 4)
    more = ("--set", "outlier.k=4", "--set", f"outlier.among={among}", "--set", f"outlier.metric={metric}")
    found = column(scored(folder, "outlier", *more))
    np.testing.assert_allclose(found, -far.mean(axis=1), rtol=1e-9, atol=1e-14)


def test_a_twin_with_another_label_decides_alone(folder: Path) -> None:
    """Two rows of one payload: each is the other's neighbour at distance 0, and no row is its own."""
    table = scored(folder, "knn", "--set", "knn.k=3", "--set", "knn.among=train")
    by_id = dict(zip(table.column("id").to_pylist(), column(table), strict=True))
    assert (by_id["twin"], by_id["r003"]) == (-1.0, -1.0)
    nearest = dict(zip(table.column("id").to_pylist(), table.column("knn_nearest").to_pylist(), strict=True))
    assert nearest["twin"].startswith("r003")


def test_scores_depend_neither_on_batches_nor_on_the_order_of_rows(folder: Path, tmp_path: Path) -> None:
    spec = GradSpec(
        ("knn", "outlier"),
        options={"knn": {"k": 6, "among": "train"}, "outlier": {"k": 6}},
        precision="fp64",
    )
    first = score(job_of(folder / "m.parquet", folder / "run", None, spec=spec, batch_size=3))
    shuffled = pq.read_table(folder / "m.parquet").take(np.random.default_rng(0).permutation(len(ROWS)))
    write(shuffled, tmp_path / "m.parquet")
    again = score(job_of(tmp_path / "m.parquet", folder / "run", None, spec=spec, batch_size=64))
    for name in ("score_knn", "score_outlier"):
        a, b = (dict(zip(t.column("id").to_pylist(), column(t, name), strict=True)) for t in (first, again))
        np.testing.assert_allclose([a[i] for i in sorted(a)], [b[i] for i in sorted(a)], rtol=1e-9, atol=1e-13)


def test_features_are_computed_once_and_planned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By payload: the twin is no row more; appended rows alone are computed, and a warm plan builds no model."""
    store = ("--store", "planned", "--precision", "fp64", "--format", "json")
    given = ("score", "m.parquet", "--checkpoint", "run", "--method", "knn", "--set", "knn.k=5")
    plan = call_cli(*given, "-n", *store, cwd=folder).json
    assert plan["steps"][0]["row_values_to_compute"] == {"features": 40, "features of target rows": 20}
    assert plan["bytes"] == 40 * (16 + 3 * 8) + 60 * (16 + 6 * 8)
    assert plan["seconds"] is not None
    assert call_cli(*given, *store, cwd=folder).code == 0
    warm = call_cli(*given, "-n", *store, cwd=folder).json
    assert (warm["steps"][0]["row_values_to_compute"], warm["bytes"]) == (
        {"features": 0, "features of target rows": 0},
        0,
    )
    assert warm["seconds"] == 0.0
    monkeypatch.setattr("influence_cli.stages.run.rates.USUAL_PAIR", 1.0)  # second a distance
    assert call_cli(*given, "-n", *store, cwd=folder).json["seconds"] == 41 * 20
    more = [*ROWS, Example("new", draw_features(991), 1), Example("seen", draw_features(45), 1)]  # r045 is a val row
    write(feature_table(more), folder / "more.parquet")
    appended = ("score", "more.parquet", *given[2:], "--overlap", "keep", "-n", *store)
    assert call_cli(*appended, cwd=folder).json["steps"][0]["row_values_to_compute"] == {
        "features": 1,  # what was a target row's is a train row's too
        "features of target rows": 0,
    }
    entries = call_cli("cache", "ls", "--store", "planned", "--format", "json", cwd=folder).json["entries"]
    assert [e["rows"] for e in entries if e["kind"] == "features"] == [60]


def test_a_damaged_shard_is_computed_again(folder: Path) -> None:
    given = ("--set", "knn.k=5", "--set", "knn.among=train")
    before = column(scored(folder, "knn", *given))
    (shard, *_) = sorted((folder / "store" / "features").glob("*/*.safetensors"))
    raw = bytearray(shard.read_bytes())
    raw[-3] ^= 0xFF
    shard.write_bytes(bytes(raw))
    np.testing.assert_allclose(column(scored(folder, "knn", *given)), before, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "knn.k=21"), "knn.k=21: a row has 20 target rows that can be its neighbours"),
        (("--set", "knn.k=41", "--set", "knn.among=train"), "a row has 40 other train rows"),
        (("--set", "knn.k=0"), "k=0 is not positive"),
        (("--set", "knn.among=test"), "among 'test' is unknown; use one of target, train"),
        (("--set", "knn.metric=l1"), "metric 'l1' is unknown"),
        (("--set", "knn.weights=rank"), "weights 'rank' is unknown"),
        (("--set", "knn.k=5", "--per-target"), "--per-target needs a score for every pair"),
        (("--relative",), "--relative divides scores of signed methods"),
    ],
)
def test_what_cannot_be_is_refused_at_once(folder: Path, words: tuple[str, ...], said: str) -> None:
    ran = call_cli("score", "m.parquet", "--checkpoint", "run", "--method", "knn", *words, "--no-store", cwd=folder)
    assert ran.code == 2
    assert said in ran.err
    assert "fix: " in ran.err


def test_a_target_is_needed_only_for_neighbours_among_it(folder: Path) -> None:
    write(feature_table(split("train")), folder / "train.parquet")
    given = ("score", "train.parquet", "--checkpoint", "run", "--no-store", "--set", "knn.k=5", "-o", "t.parquet")
    ran = call_cli(*given, "--method", "knn", cwd=folder)
    assert ran.code == 2
    assert "no target rows" in ran.err
    ran = call_cli(*given, "--method", "knn", "--set", "knn.among=train", "--method", "outlier", cwd=folder)
    assert ran.code == 0, ran.err


def test_curate_trims_by_it_and_refuses_what_needs_a_sign(folder: Path) -> None:
    scored(folder, "knn", "--set", "knn.k=5", "--method", "loss")
    cut = ("--budget", "10%", "--set", "trim.guard=false", "--edits", "e.parquet", "-o", "c.parquet")
    ran = call_cli("curate", "s.parquet", "--action", "trim", *cut, cwd=folder)
    assert ran.code == 0, ran.err
    table = pq.read_table(folder / "s.parquet").to_pylist()
    row = {r["id"]: r for r in table}
    edits = pq.read_table(folder / "e.parquet").to_pylist()
    assert len(edits) == 4
    for edit in edits:
        near, says = row[edit["id"]]["knn_nearest"], row[edit["id"]]["knn_label"]
        assert edit["reason"].endswith(f" by score; nearest rows: {near}; its neighbours say class {says}")
    ran = call_cli("curate", "s.parquet", "--by", "score_loss", "--action", "trim", *cut, cwd=folder)
    assert ran.code == 0, ran.err
    assert "nearest" not in str(pq.read_table(folder / "e.parquet").column("reason").to_pylist())
    ran = call_cli("curate", "s.parquet", "--action", "trim", "--set", "trim.only_negative=true", *cut, cwd=folder)
    assert ran.code == 2
    assert "ranking-only" in ran.err

"""AUM, EL2N, forgetting and data maps (methods.md T56), against training by hand and loops over its epochs.

python -m pytest tests/methods/test_by_epochs.py
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from influence_cli.data.tables import provenance
from influence_cli.maths.epochs import mean_and_spread, times_forgotten
from influence_cli.model.losses import CROSS_ENTROPY
from influence_cli.model.losses.own import OwnLoss
from influence_cli.model.run_folder import RunFolder
from influence_cli.model.spec import ModelSpec
from influence_cli.model.train.epoch_values import EpochValues
from influence_cli.model.train.recipe import Recipe
from influence_cli.settings import Inputs
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from tests.by_hand import trained_by_hand
from tests.cases import call_cli, column, digits_table, examples, feature_table, with_column, write

METHODS = ("aum", "el2n", "forget", "data-maps")
PLAIN = Recipe(epochs=7, lr=0.3, batch_size=13, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0)
RETRAIN = ("retrain", "m.parquet", "--model", "mlp:4", "--epochs", "3")


def scored(folder: Path, *asked: str, manifest: str = "m.parquet", run: str = "run") -> pa.Table:
    said = call_cli("score", manifest, "--checkpoint", run, *asked, "-o", "s.parquet", "--store", "store", cwd=folder)
    assert said.code == 0, said.err
    return pq.read_table(folder / "s.parquet")


def refused(folder: Path, *asked: str, says: str, fix: str) -> None:
    ran = call_cli("score", "m.parquet", *asked, "-o", "no.parquet", "--store", "store", cwd=folder)
    assert ran.code == 2, ran.err
    assert says in ran.err
    assert fix in ran.err
    assert "before scoring" not in ran.err  # before any work


def by_loop(epochs: list[dict[str, torch.Tensor]], labels: dict[str, int], first: int) -> dict[str, dict[str, float]]:
    """The four scores of every row, by plain loops in float64."""
    found: dict[str, dict[str, float]] = {name: {} for name in (*METHODS, "variability")}
    for i, y in labels.items():
        z = [e[i].double().tolist() for e in epochs if i in e]
        margins = [row[y] - max(v for c, v in enumerate(row) if c != y) for row in z]
        total = [sum(math.exp(v - max(row)) for v in row) for row in z]
        p = [[math.exp(v - max(row)) / t for v in row] for row, t in zip(z, total, strict=True)]
        early = [[math.exp(v - max(e[i].tolist())) for v in e[i].double().tolist()] for e in epochs[:first] if i in e]
        errors = [math.sqrt(sum((v / sum(row) - (c == y)) ** 2 for c, v in enumerate(row))) for row in early]
        mean = sum(row[y] for row in p) / len(p)
        lost = sum(a > 0 >= b for a, b in itertools.pairwise(margins))
        found["aum"][i] = sum(margins) / len(margins)
        found["el2n"][i] = -sum(errors) / len(errors)
        found["forget"][i] = -float(lost) if max(margins) > 0 else -len(margins) - 1.0
        found["data-maps"][i] = mean
        found["variability"][i] = -math.sqrt(sum((row[y] - mean) ** 2 for row in p) / len(p))
    return found


@pytest.mark.parametrize("pixels", [False, True])
def test_t56_scores_are_those_of_a_training_by_hand(tmp_path: Path, pixels: bool) -> None:
    """With augmentation as trained, and a last batch of one row (40 = 3 x 13 + 1)."""
    table = digits_table(40, 12, 12) if pixels else feature_table(examples())
    write(table, tmp_path / "m.parquet")
    recipe = Recipe(**{**PLAIN.describe(), "augment": "flip-shift" if pixels else "none"})
    asked = Inputs(str(tmp_path / "m.parquet"), model="mlp:6")
    retrain(RetrainRequest(asked, str(tmp_path / "run"), device="cpu", raw_features=True), recipe)
    spec = ModelSpec.from_dict(json.loads((tmp_path / "run" / "run.json").read_bytes())["model"])
    rows = [r for r in table.to_pylist() if r["split"] == "train"]
    _, epochs = trained_by_hand(rows, spec, recipe)
    assert sorted(len(e) for e in epochs) == [40] * 7
    labels = {r["id"]: r["label"] for r in table.to_pylist() if r["split"] == "train"}
    expected = by_loop(epochs, labels, 3)
    named = [word for name in METHODS for word in ("--method", name)]
    found = scored(tmp_path, *named, "--set", "el2n.first=3")
    other = scored(tmp_path, "--method", "data-maps", "--set", "data-maps.by=variability")
    assert found.column("id").to_pylist() == list(labels)
    for name in METHODS:
        np.testing.assert_allclose(column(found, f"score_{name}"), list(expected[name].values()), rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(column(other), list(expected["variability"].values()), rtol=2e-4, atol=2e-6)
    assert provenance(found.schema)["facts"]["score_aum"] == {"epochs": 7, "rows": 40}
    assert len(set(column(found, "score_forget"))) > 1


def test_t56_values_of_an_epoch_are_exact_wherever_shards_end() -> None:
    """AUM of one epoch is the margin; values do not depend on batches, on how much is held, or on the file."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(5, 9, 4)).astype(np.float32) * 4
    y = rng.integers(0, 4, 9)
    files: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for size in (1, 1 << 20):
        written = files.setdefault(size, [])
        keep = np.array([0, 2, 3, 5, 8])
        seen = EpochValues(keep, y, CROSS_ENTROPY, lambda first, v, w=written: w.append((first, v)), size)
        for epoch in range(5):
            for some in np.array_split(np.random.default_rng(epoch).permutation(keep), 2):
                logits, labels = torch.from_numpy(z[epoch, some]), torch.from_numpy(y[some])
                seen.batch(some, logits, F.cross_entropy(logits, labels, reduction="none"))
            seen.epoch()
        seen.flush()
    assert [first for first, _ in files[1]] == [1, 2, 3, 4, 5]
    ((first, whole),) = files[1 << 20]
    assert first == 1
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([v[name] for _, v in files[1]]), values)
    for epoch in range(5):
        for n, k in enumerate(keep.tolist()):
            row = z[epoch, k].astype(np.float64)
            p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            others = np.delete(row, y[k])
            assert whole["margin"][epoch, n] == pytest.approx(row[y[k]] - others.max(), rel=1e-7)
            assert whole["loss"][epoch, n] == pytest.approx(-math.log(p[y[k]]), rel=1e-7)
            assert whole["error"][epoch, n] == pytest.approx(np.linalg.norm(p - np.eye(4)[y[k]]), rel=1e-7)


def test_a_loss_of_the_users_own_has_its_probability_beside_it() -> None:
    """Which is not exp(-loss) then."""
    z, y = torch.randn(6, 3, generator=torch.manual_seed(0)), np.array([0, 1, 2, 0, 1, 2])
    written: list[dict[str, Any]] = []
    own = OwnLoss(lambda logits, labels: 3.0 * F.cross_entropy(logits, labels, reduction="none"))
    seen = EpochValues(np.arange(6), y, own, lambda first, values: written.append(values))
    seen.batch(np.arange(6), z, own.rows(z, torch.from_numpy(y)))
    seen.epoch()
    seen.flush()
    p = z.double().softmax(1)[torch.arange(6), torch.from_numpy(y)].numpy()
    np.testing.assert_allclose(written[0]["probability"][0], p, rtol=1e-7)
    np.testing.assert_allclose(written[0]["loss"][0], -3.0 * np.log(p), rtol=1e-6)  # torch's own, in float32


def test_statistics_over_epochs_are_numpys() -> None:
    values = np.random.default_rng(0).normal(size=(6, 50)) * 1e3
    values[2, 7] = values[:, 9] = np.nan
    mean, spread = mean_and_spread(values)
    for k in range(50):
        there = values[:, k][np.isfinite(values[:, k])]
        expected = (there.mean(), there.std()) if len(there) else (np.nan, np.nan)
        np.testing.assert_allclose((mean[k], spread[k]), expected, rtol=1e-12)
    times, ever, seen = times_forgotten(values)
    for k in range(50):
        right = [v > 0 for v in values[:, k] if np.isfinite(v)]
        assert (ever[k], seen[k]) == (any(right), len(right))
        if k == 9:
            assert np.isnan(times[k])
        else:
            assert times[k] == sum(a and not b for a, b in itertools.pairwise(right))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("epochs")
    rows = examples()
    rows = [*rows[:40], *(type(r)(f"twin-{r.id}", r.features, r.label) for r in rows[:2]), *rows[40:]]
    write(feature_table(rows), folder / "m.parquet")
    assert call_cli(*RETRAIN, "--keep-checkpoints", "2", "--calibration", "20%", "-o", "run", cwd=folder).code == 0
    return folder


def test_rows_are_known_by_what_was_trained_on(here: Path) -> None:
    """Left out for calibration, relabelled since or new: no score, which is said; equal rows share theirs."""
    table = pq.read_table(here / "m.parquet")
    left_out = set(json.loads((here / "run" / "run.json").read_bytes())["calibration_ids"])
    assert left_out
    train = [r["id"] for r in table.to_pylist() if r["split"] == "train"]
    found = dict(zip(train, column(scored(here, "--method", "aum")), strict=True))
    assert {i for i, v in found.items() if np.isnan(v)} == left_out
    keys = pq.read_table(here / "s.parquet").column("row_key").to_pylist()
    records = __import__("safetensors.numpy").numpy
    files = sorted((here / "run" / "epochs").glob("0*"))
    margins = np.concatenate([records.load_file(f)["margin"] for f in files])
    trained = [k.tobytes() for k in records.load_file(here / "run" / "epochs" / "rows.safetensors")["row_keys"]]
    for i, key in zip(train, keys, strict=True):
        at = [n for n, other in enumerate(trained) if other == bytes(key)]
        if i not in left_out:
            assert found[i] == pytest.approx(margins[:, at].astype(np.float64).mean(), rel=1e-12)
    some = [i for i in train if i not in left_out][5]
    labels = [(r["label"] + 1) % 3 if r["id"] == some else r["label"] for r in table.to_pylist()]
    write(with_column(table, "label", labels), here / "other.parquet")
    asked = ("score", "other.parquet", "--checkpoint", "run", "--method", "aum", "-o", "o.parquet", "--store", "store")
    ran = call_cli(*asked, cwd=here)
    assert f"{len(left_out) + 1} of 42 rows were not trained on as they are" in ran.err
    after = dict(zip(train, column(pq.read_table(here / "o.parquet")), strict=True))
    assert np.isnan(after.pop(some))
    np.testing.assert_array_equal(list(after.values()), [v for i, v in found.items() if i != some])


def test_a_row_that_batch_norm_passes_over_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """13 rows in batches of 4 leave one over in the only epoch: training says so, and it is no failure of numbers."""
    code = "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3))\n"
    (tmp_path / "norms_of_a_test.py").write_text(code)
    monkeypatch.setattr(sys, "path", list(sys.path))
    write(feature_table(examples(13, 6, 6)), tmp_path / "m.parquet")
    own = ("--model", "python:norms_of_a_test:net")
    asked = ("retrain", "m.parquet", *own, "--num-classes", "3", "--epochs", "1", "--batch-size", "4", "--seeds", "2")
    ran = call_cli(*asked, "-o", "run", cwd=tmp_path)
    assert ran.code == 0, ran.err
    said = " ".join(ran.err.split())
    assert said.count("13 rows in batches of 4 leave 1 row over") == 1
    assert "--batch-size 5 leaves none over" in said
    named = ("--method", "aum", "--method", "forget", *own, "--store", "store", "-o", "s.parquet")
    scored = call_cli("score", "m.parquet", "--checkpoint", "run", *named, cwd=tmp_path)
    assert scored.code == 0, scored.err
    assert "aum, forget: 1 of 13 rows were not trained on as they are" in " ".join(scored.err.split())
    assert "non-finite" not in scored.err


def test_what_was_not_noted_is_refused_with_the_flag_that_notes_it(here: Path) -> None:
    (step, _) = sorted((here / "run" / "checkpoints").iterdir())
    whole = "pass the run folder itself"
    refused(here, "--checkpoint", str(step), "--method", "aum", says="not the one that it ended with", fix=whole)
    shutil.copy(here / "run" / "model.safetensors", here / "alone.safetensors")
    refused(here, "--checkpoint", "alone.safetensors", "--method", "el2n", says="no run folder", fix="--record epochs")
    quiet = call_cli(*RETRAIN, "--record", "none", "-o", "quiet", cwd=here)
    assert quiet.code == 0
    weights = (here / "quiet" / "model.safetensors").read_bytes()
    for name in METHODS:
        asked = ("--checkpoint", "quiet", "--method", name)
        refused(here, *asked, says=f"{name} needs what training noted", fix="--record epochs")
    assert call_cli(*RETRAIN, "-o", "quiet", cwd=here).code == 0  # what is trained stays
    refused(here, "--checkpoint", "quiet", "--method", "aum", says="has none of it", fix="--record epochs")
    assert call_cli(*RETRAIN, "--record", "epochs", "-o", "quiet", cwd=here).code == 0
    scored(here, "--method", "aum", run="quiet")
    assert (here / "quiet" / "model.safetensors").read_bytes() == weights  # telling changes no number
    for flags, says in (
        (("--record", "all"), "--record all cannot be read"),
        (("--record", "epochs", "--optimizer", "lbfgs", "--model", "linear"), "has no meaning with --optimizer lbfgs"),
    ):
        ran = call_cli(*RETRAIN[:2], "--model", "linear", *flags, "-o", "nothing", cwd=here)
        assert (ran.code, says in ran.err) == (2, True), ran.err
    ran = call_cli(*RETRAIN[:2], "--model", "linear", "--optimizer", "lbfgs", "-o", "convex", cwd=here)
    assert ran.code == 0, ran.err
    refused(here, "--checkpoint", "convex", "--method", "aum", says="has none of it", fix="--record epochs")


def test_values_are_read_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    own = RunFolder.read_arrays

    def counted(self: RunFolder, name: str, digest: str) -> Any:
        read.append(name)
        return own(self, name, digest)

    monkeypatch.setattr(RunFolder, "read_arrays", counted)
    scored(here, "--method", "aum")
    assert sorted(read) == sorted(f"epochs/{path.name}" for path in (here / "run" / "epochs").iterdir())


def test_a_file_that_is_cut_short_is_refused_before_any_pass(here: Path) -> None:
    shutil.copytree(here / "run", here / "short")
    (file,) = (here / "short" / "epochs").glob("0*")
    file.write_bytes(file.read_bytes()[:-8])
    ran = call_cli("score", "m.parquet", "--checkpoint", "short", "--method", "aum", "-n", cwd=here)
    assert (ran.code, "is damaged (it has" in ran.err) == (2, True), ran.err


def test_damaged_records_are_no_scores_and_are_made_again(here: Path) -> None:
    shutil.copytree(here / "run", here / "copy")
    (file,) = (here / "copy" / "epochs").glob("0*")
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    ran = call_cli("score", "m.parquet", "--checkpoint", "copy", "--method", "aum", "-o", "no.parquet", cwd=here)
    assert (ran.code, "is damaged" in ran.err) == (2, True), ran.err
    again = ("--keep-checkpoints", "2", "--calibration", "20%", "-o", "copy")
    assert call_cli(*RETRAIN, *again, cwd=here).code == 0  # copied anew from the arm
    scored(here, "--method", "aum", run="copy")
    (inner,) = (here / "copy" / "arms").glob("*/epochs/0*")
    inner.write_bytes(raw)
    ran = call_cli(*RETRAIN, *again, cwd=here)
    assert (ran.code, "it is trained again" in ran.err) == (0, True), ran.err
    assert inner.read_bytes() == (here / "run" / "epochs" / inner.name).read_bytes()
    (here / "copy" / "epochs" / "rows.safetensors").write_bytes(b"mine")
    ran = call_cli(*RETRAIN, *again, cwd=here)
    assert (ran.code, "is no earlier output" in ran.err) == (2, True), ran.err

"""Folds, and the methods that judge rows by them: oof-loss, oof-margin and confident (methods.md T56).

python -m pytest tests/methods/test_out_of_fold.py
"""

from __future__ import annotations

import functools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from influence_cli.data.open import open_manifest
from influence_cli.data.tables import provenance
from influence_cli.errors import UsageError
from influence_cli.maths.confident import joint_of
from influence_cli.model.spec import ModelSpec
from influence_cli.model.train.recipe import Recipe
from influence_cli.settings import Inputs
from influence_cli.stages.retrain.folds import dealt
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from influence_cli.stages.retrain.training_run import TrainingRun
from tests.by_hand import inputs_of, trained_by_hand
from tests.cases import Heard, at_once, call_cli, column, examples, feature_table, with_column, write
from tests.methods.test_by_epochs import refused, scored

METHODS = ("oof-loss", "oof-margin", "confident")
RECIPE = Recipe(epochs=5, lr=0.3, batch_size=16, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0)


def trained(folder: Path, name: str, heard: Heard | None = None, **request: Any) -> dict[str, Any]:
    asked = Inputs(str(folder / "m.parquet"), model="mlp:5")
    made = RetrainRequest(asked, str(folder / name), device="cpu", raw_features=True, **{"folds": 3, **request})
    return retrain(made, RECIPE, heard or Heard())


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of which two are there twice, once with another label, and five are left out for calibration."""
    folder = tmp_path_factory.mktemp("folds")
    rows = examples()
    twins = [type(r)(f"twin-{r.id}", r.features, (r.label + k) % 3) for k, r in enumerate(rows[:2])]
    table = feature_table([*rows[:40], *twins, *rows[40:]])
    write(with_column(table, "clean_label", [0] * table.num_rows), folder / "m.parquet")
    trained(folder, "run", calibration=0.2, keep_checkpoints=2)
    return folder


def train_rows(folder: Path) -> list[dict[str, Any]]:
    return [r for r in pq.read_table(folder / "m.parquet").to_pylist() if r["split"] == "train"]


def folds_of(folder: Path, run: str = "run") -> dict[bytes, tuple[int, NDArray[np.float32]]]:
    """By payload key the fold, and the logits."""
    found: dict[bytes, tuple[int, NDArray[np.float32]]] = {}
    for k, file in enumerate(sorted((folder / run / "folds").iterdir())):
        arrays = load_file(file)
        found |= {key.tobytes(): (k, z) for key, z in zip(arrays["payload_keys"], arrays["logits"], strict=True)}
    return found


def test_equal_payloads_share_a_fold_and_classes_are_dealt_out(here: Path) -> None:
    manifest = open_manifest(str(here / "m.parquet"), "label")
    rows = manifest.rows("train")
    used = np.ones(len(rows), dtype=bool)
    used[3:7] = False
    fold = dealt(rows, used, 4, 0)
    by_payload: dict[bytes, set[int]] = {}
    for key, k in zip(rows.payload_keys, fold.tolist(), strict=True):
        by_payload.setdefault(key.tobytes(), set()).add(k)
    assert len(by_payload) == 40
    assert all(len(ks) == 1 for ks in by_payload.values())
    once = np.array([not i.startswith("twin-") for i in rows.ids])
    assert np.ptp(np.bincount(fold[once & used], minlength=4)) <= 1
    for c in range(3):
        assert np.ptp(np.bincount(fold[once & used & (rows.labels == c)], minlength=4)) <= 2
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_array_equal(dealt(rows.take(order), used[order], 4, 0), fold[order])
    np.testing.assert_array_equal(dealt(rows.take(np.flatnonzero(used)), used[used], 4, 0), fold[used])
    assert (dealt(rows, used, 4, 1) != fold).any()
    with pytest.raises(UsageError, match="--folds 41 of 40 distinct rows"):
        dealt(rows, np.ones(len(rows), dtype=bool), 41, 0)


def test_logits_are_those_of_a_training_by_hand_without_the_fold(here: Path) -> None:
    """Of every row, those that were left out for calibration too, with a twin of another label in the same fold."""
    record = json.loads((here / "run" / "run.json").read_bytes())
    spec, left_out = ModelSpec.from_dict(record["model"]), set(record["calibration_ids"])
    rows, found = train_rows(here), folds_of(here)
    assert len(left_out) >= 4
    keys = open_manifest(str(here / "m.parquet"), "label").rows("train").payload_keys
    fold = [found[key.tobytes()][0] for key in keys]
    for k in range(3):
        others = [r for r, f in zip(rows, fold, strict=True) if f != k and r["id"] not in left_out]
        model, _ = trained_by_hand(others, spec, RECIPE)
        for r, key, f in zip(rows, keys, fold, strict=True):
            if f == k:
                with torch.no_grad():
                    z = model(inputs_of([r], spec))[0].numpy()
                np.testing.assert_allclose(found[key.tobytes()][1], z, rtol=2e-5, atol=2e-6)


def test_t56_scores_are_arithmetic_on_them(here: Path) -> None:
    named = [word for name in METHODS for word in ("--method", name)]
    table, found = scored(here, *named), folds_of(here)
    rows = open_manifest(str(here / "m.parquet"), "label").rows("train")
    p, expected = [], {name: list[float]() for name in METHODS}
    for key, y in zip(rows.payload_keys, rows.labels.tolist(), strict=True):
        z = found[key.tobytes()][1].astype(np.float64).tolist()
        total = sum(math.exp(v) for v in z)
        p.append([math.exp(v) / total for v in z])
        expected["oof-loss"].append(math.log(p[-1][y]))
        expected["oof-margin"].append(z[y] - max(v for c, v in enumerate(z) if c != y))
        expected["confident"].append((p[-1][y] - max(v for c, v in enumerate(p[-1]) if c != y) + 1) / 2)
    for name in METHODS:
        np.testing.assert_allclose(column(table, f"score_{name}"), expected[name], rtol=1e-12, atol=1e-12)
    facts = provenance(table.schema)["facts"]["score_confident"]
    joint = joint_of(np.array(p), rows.labels)
    assert facts["wrong_labels"] == pytest.approx(joint.wrong, rel=1e-12)
    np.testing.assert_allclose(facts["joint"], joint.counts, rtol=1e-12)
    assert facts["rows"] == 42
    assert facts["interval"][0] <= facts["wrong_labels"] <= facts["interval"][1]


def test_a_row_is_judged_under_the_label_that_it_has_now(here: Path) -> None:
    """Unlike what training noted: no model that judges it has seen it.  A new row is in no fold, which is said."""
    table = pq.read_table(here / "m.parquet")
    new = with_column(table.slice(0, 1), "id", ["new"])
    new = with_column(new, "features", pa.array([[9.0] * 5], pa.list_(pa.float32())))
    labels = [(r["label"] + 1) % 3 if r["id"] == "r007" else r["label"] for r in table.to_pylist()]
    write(pa.concat_tables([with_column(table, "label", labels), new.cast(table.schema)]), here / "other.parquet")
    asked = ("score", "other.parquet", "--checkpoint", "run", "--method", "oof-loss", "-o", "o.parquet")
    ran = call_cli(*asked, "--store", "store", cwd=here)
    assert ran.code == 0, ran.err
    assert "1 of 43 rows are in no fold (new since training): their score is null" in ran.err
    after = pq.read_table(here / "o.parquet")
    before = scored(here, "--method", "oof-loss")
    values = dict(zip(after.column("id").to_pylist(), column(after), strict=True))
    assert math.isnan(values.pop("new"))
    was = dict(zip(before.column("id").to_pylist(), column(before), strict=True))
    assert values.pop("r007") != was.pop("r007")
    assert values == was


def test_folds_go_on_where_they_stopped_and_models_may_be_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def stop(*how: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return judged(*how)

    from influence_cli.stages.retrain import folds

    judged = folds._judged
    monkeypatch.setattr(folds, "_judged", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(here, "again", calibration=0.2)
    assert not (here / "again" / "run.json").exists()
    monkeypatch.undo()
    heard = Heard()
    trained(here, "again", heard, calibration=0.2)
    assert [what for what, _ in heard.spans if what.startswith("train ")] == ["train all rows, fold 3 of 3, seed 0"]
    whole = {f.name: f.read_bytes() for f in (here / "run" / "folds").iterdir()}
    assert {f.name: f.read_bytes() for f in (here / "again" / "folds").iterdir()} == whole
    assert len(list((here / "again" / "arms").iterdir())) == 1
    metrics = trained(here, "again", calibration=0.2, keep_fold_models=True)
    assert {f.name: f.read_bytes() for f in (here / "again" / "folds").iterdir()} == whole
    assert [Path(m).is_dir() for m in metrics["out_of_fold"]["models"]] == [True] * 3
    heard = Heard()
    trained(here, "again", heard, calibration=0.2, folds=0)  # the same training, without a word of folds
    assert not [what for what, _ in heard.spans if what.startswith("train ")]
    scored(here, "--method", "oof-loss", run="again")
    trained(here, "again", calibration=0.2, folds=2)
    assert sorted(json.loads((here / "again" / "run.json").read_bytes())["out_of_fold"]) == [
        "folds/fold-1-of-2.safetensors",
        "folds/fold-2-of-2.safetensors",
    ]


@pytest.mark.filterwarnings("ignore:.*fork")
def test_two_processes_on_one_run_folder_share_its_trainings(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained_by, real = here / "trained-by", TrainingRun.fit

    def noted(self: Any, arm: Any, *how: Any) -> Any:
        with trained_by.open("a") as file:
            file.write(f"{arm.name}\n")
        return real(self, arm, *how)

    monkeypatch.setattr(TrainingRun, "fit", noted)
    at_once(*(functools.partial(trained, here, "at-once", calibration=0.2) for _ in range(2)))
    whole = {f.name: f.read_bytes() for f in (here / "run" / "folds").iterdir()}
    assert {f.name: f.read_bytes() for f in (here / "at-once" / "folds").iterdir()} == whole
    folds = [f"all rows, fold {k} of 3" for k in (1, 2, 3)]
    assert sorted(trained_by.read_text().splitlines()) == ["all rows", *folds]  # each once
    heard = Heard()
    trained(here, "at-once", heard, calibration=0.2)
    assert not [what for what, _ in heard.spans if what.startswith("train ")]


def test_what_cannot_be_is_refused_with_the_flag(here: Path) -> None:
    trained(here, "bare", folds=0)
    (step, *_) = sorted((here / "run" / "checkpoints").iterdir())
    for name in METHODS:
        refused(here, "--checkpoint", "bare", "--method", name, says=f"{name} needs models", fix="--folds 5")
    refused(here, "--checkpoint", str(step), "--method", "confident", says="not the one that it ended", fix="itself")
    asked = ("retrain", "m.parquet", "--model", "mlp:4", "--epochs", "1", "-o", "no")
    for flags, says in (
        (("--folds", "1"), "--folds 1"),
        (("--folds", "99"), "--folds 99 of 40 distinct rows"),
        (("--keep-fold-models",), "--keep-fold-models is about --folds"),
        (("--rounds", "2", "--method", "oof-loss"), "would train the models of --folds anew in every round"),
    ):
        ran = call_cli(*asked, *flags, cwd=here)
        assert (ran.code, says in ran.err) == (2, True), ran.err
        assert not (here / "no").exists()
    ran = call_cli(*asked, "--folds", "2", "--init", "bare", "-n", cwd=here)
    assert (ran.code, json.loads(ran.out)["folds"]) == (0, 2)


def test_rounds_may_be_by_what_training_noted(here: Path) -> None:
    asked = ("retrain", "m.parquet", "--model", "mlp:4", "--epochs", "3", "--rounds", "2", "--method", "aum")
    ran = call_cli(*asked, "--budget", "4", "-o", "rounds", cwd=here)
    assert ran.code == 0, ran.err
    arms = json.loads((here / "rounds" / "metrics.json").read_bytes())["arms"]
    assert [h["trimmed"] for h in arms["aum_utility trim 4 in 2 rounds"]["edits"]["rounds"]] == [2, 4]


def test_a_damaged_fold_is_no_score_and_is_trained_again(here: Path) -> None:
    shutil.copytree(here / "run", here / "copy")
    for file in [*(here / "copy").glob("arms/*/folds/fold-2*"), here / "copy" / "folds" / "fold-2-of-3.safetensors"]:
        raw = bytearray(file.read_bytes())
        raw[-3] ^= 1
        file.write_bytes(raw)
    ran = call_cli("score", "m.parquet", "--checkpoint", "copy", "--method", "oof-loss", "-o", "no.parquet", cwd=here)
    assert (ran.code, "fold-2-of-3.safetensors is damaged" in ran.err) == (2, True), ran.err
    heard = Heard()
    trained(here, "copy", heard, calibration=0.2)
    assert [what for what, _ in heard.spans if what.startswith("train ")] == ["train all rows, fold 2 of 3, seed 0"]
    scored(here, "--method", "oof-loss", run="copy")


def test_the_number_of_wrong_labels_is_said_in_a_line(here: Path) -> None:
    scored(here, "--method", "confident")
    said = provenance(pq.read_schema(here / "s.parquet"))["facts"]["score_confident"]
    line = f"confident learning estimates {said['wrong_labels']:.0f} wrong labels of 42 ("
    assert line in call_cli("evaluate", "s.parquet", "--report", "page.html", cwd=here).err
    assert line in (here / "page.html").read_text().replace("Confident", "confident")
    assert line in call_cli("curate", "s.parquet", "--budget", "3", "-n", cwd=here).err
    table = pq.read_table(here / "m.parquet")
    write(table.drop_columns(["clean_label"]), here / "unknown.parquet")
    asked = ("score", "unknown.parquet", "--checkpoint", "run", "--method", "confident", "-o", "u.parquet")
    assert call_cli(*asked, "--store", "store", cwd=here).code == 0
    ran = call_cli("evaluate", "u.parquet", "--json", cwd=here)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["wrong_labels"][0]["wrong_labels"] == pytest.approx(said["wrong_labels"])


def test_labels_are_proposed_out_of_fold(here: Path) -> None:
    """Where the score is out of fold; a model that has seen a row would propose less of another label."""
    table, found = scored(here, "--method", "oof-margin", "--method", "loss"), folds_of(here)
    rows = open_manifest(str(here / "m.parquet"), "label").rows("train")
    for key, y, row in zip(rows.payload_keys, rows.labels.tolist(), table.to_pylist(), strict=True):
        z = found[key.tobytes()][1].astype(np.float64)
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        p[y] = -1.0
        assert row["other_label"] == p.argmax()
        assert row["other_probability"] == pytest.approx(p.max(), rel=1e-12)
    assert provenance(table.schema)["other_label_is"] == "out of fold"
    ran = call_cli("curate", "s.parquet", "--action", "relabel", "--budget", "3", "--edits", "e.csv", cwd=here)
    assert ran.code == 0, ran.err
    other = scored(here, "--method", "loss", "--method", "oof-margin")
    assert other.column("other_probability").to_pylist() != table.column("other_probability").to_pylist()
    assert "other_label_is" not in provenance(other.schema)


def test_logits_of_a_fold_that_diverged_are_no_excuse(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside another method too: rows that are in no fold are told from rows whose logits are no numbers."""
    from influence_cli.model.training_records import FoldRecords

    words = ("score", "m.parquet", "--checkpoint", "run", "--store", "store", "-o", "n.parquet")
    plain = FoldRecords.logits
    monkeypatch.setattr(FoldRecords, "logits", lambda *given: np.nan * plain(*given))
    ran = call_cli(*words, "--method", "oof-loss", cwd=here)
    assert "no row has a score" in ran.err
    ran = call_cli(*words, "--method", "loss", "--method", "oof-margin", cwd=here)
    assert "oof-margin: no row has a score" in ran.err
    monkeypatch.setattr(
        FoldRecords, "logits", lambda *given: np.where(np.arange(len(given[1]))[:, None] < 2, np.nan, plain(*given))
    )
    ran = call_cli(*words, "--method", "oof-margin", cwd=here)
    assert "2 rows have a non-finite score and are null, never ranked: " in ran.err
    assert "no row has a score" not in ran.err

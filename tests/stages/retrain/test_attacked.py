"""Arms under attack (methods.md 6.7, T49): the identity of the undefended model, the same rows in every arm, leaks.

Reference: expected accuracy acc - f (2 acc - 1) of a two-class linear model, and attacks recomputed by hand.

    python -m pytest tests/stages/retrain/test_attacked.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from influence_cli.data.open import open_manifest
from influence_cli.model.train.recipe import Recipe
from influence_cli.settings import Inputs
from influence_cli.stages.retrain.attacked_arms import DRAWS, FRACTIONS, attacked_rows
from influence_cli.stages.retrain.request import EditsRequest, RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from tests.cases import Example, call_cli, draw_features, feature_table, write

OPTIMUM = Recipe(optimizer="lbfgs", weight_decay=1e-2)
BANK = Path(__file__).parents[4] / "shared" / "data" / "bank" / "manifest.parquet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 150 train, 50 val and 400 test rows, and a random score table."""
    where = tmp_path_factory.mktemp("attacked")
    rng, rows = np.random.default_rng(0), []
    for k, split in enumerate(["train"] * 150 + ["val"] * 50 + ["test"] * 400):
        x = draw_features(k)
        rows.append(Example(f"a{k:03d}", x, int(x[0] - x[1] + 0.8 * rng.normal() > 0.3), split))
    write(feature_table(rows).replace_schema_metadata(None), where / "m.parquet")
    assert call_cli("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=where).code == 0
    return where


def compared(folder: Path, output: Path, **changes: Any) -> dict[str, Any]:
    edits = EditsRequest(str(folder / "s.parquet"), ("20%",), by=("random",))
    inputs = Inputs(str(folder / "m.parquet"), model="linear")
    return retrain(
        RetrainRequest(inputs, str(output), device="cpu", edits=edits, raw_features=True, **changes), OPTIMUM
    )


def identity_holds(result: dict[str, Any], rows: int) -> None:
    """A linear attack with kappa > 1 flips every prediction: only which rows are drawn is chance."""
    accuracy = result["accuracy"]
    for f, found in zip(FRACTIONS, result["attack"]["static"]["accuracy"], strict=True):
        k = round(f * rows)
        sd = 2 * np.sqrt(accuracy * (1 - accuracy) / k * (1 - k / rows)) * k / rows  # of one draw
        assert abs(found - (accuracy - k / rows * (2 * accuracy - 1))) <= 4 * sd / np.sqrt(DRAWS)


def test_attacked_accuracy_of_the_undefended_model(tmp_path: Path, folder: Path) -> None:
    metrics = compared(folder, tmp_path / "RUN")
    result = metrics["arms"]["no edit"]["seeds"]["0"]
    identity_holds(result, 400)
    assert result["attack"]["static"] == result["attack"]["adaptive"]
    assert result["attack"]["static"]["success_rate"] == 1.0
    mean = np.mean([np.mean(result["attack"]["static"]["accuracy"])])
    assert result["attacked_static"] == pytest.approx(mean)
    assert metrics["attack"] == {
        "kind": "linear", "settings": {"attack": "linear", "kappa": 1.3, "label_aware": False},
        "fractions": list(FRACTIONS), "draws": DRAWS,
    }  # fmt: skip
    assert "attacked_adaptive" in metrics["comparison"]["random trim 20%"]["no edit"]


def test_static_attacks_are_of_the_model_without_edits_by_hand(tmp_path: Path, folder: Path) -> None:
    metrics = compared(folder, tmp_path / "RUN")
    test = open_manifest(str(folder / "m.parquet")).rows("test")
    x = np.array(pq.read_table(folder / "m.parquet")["features"].to_pylist(), dtype=np.float64)[test.index]
    chosen = attacked_rows(test, 0)
    models = {}
    for kept in (tmp_path / "RUN" / "arms").iterdir():
        state = load_file(kept / "model.safetensors")
        rows = json.loads((kept / "run.json").read_text())["trained_on"]["rows"]
        models[json.loads((kept / "metrics.json").read_text())["attack"]["key"], rows, kept.name] = state
    base = next(s for (_, rows, _), s in models.items() if rows == 150)
    w, b = (base[n].double().numpy() for n in ("head.weight", "head.bias"))
    direction = w[1] - w[0]
    margin = x @ direction + b[1] - b[0]
    moved = x - 1.3 * (margin / (direction @ direction))[:, None] * direction
    found = metrics["arms"]["random trim 20%"]["seeds"]["0"]
    for (_, _, name), state in models.items():
        result = json.loads((tmp_path / "RUN" / "arms" / name / "metrics.json").read_text())
        if result["attack"] != found["attack"]:
            continue
        w2, b2 = (state[n].double().numpy() for n in ("head.weight", "head.bias"))
        clean, hit = ((v @ w2.T + b2).argmax(axis=1) == test.labels for v in (x, moved))
        by_hand = np.where(chosen, hit, clean).mean(axis=2)
        assert np.allclose(by_hand.mean(axis=1), found["attack"]["static"]["accuracy"], atol=1e-9)
        assert np.allclose(by_hand.std(axis=1, ddof=1), found["attack"]["static"]["sd"], atol=1e-9)
        return
    pytest.fail("the arm's folder was not found")


def test_the_same_rows_are_attacked_everywhere_and_draws_differ(folder: Path) -> None:
    test = open_manifest(str(folder / "m.parquet")).rows("test")
    rows = attacked_rows(test, 0)
    assert rows.shape == (5, 10, 400)
    assert [int(r.sum()) for r in rows[:, 0]] == [20, 40, 60, 80, 100]
    assert (rows[1:] >= rows[:-1]).all()  # more of the same rows
    assert len({r.tobytes() for r in rows[0]}) == 10
    turned = test.take(np.arange(400)[::-1])
    assert np.array_equal(attacked_rows(turned, 0)[:, :, ::-1], rows)
    assert not np.array_equal(attacked_rows(test, 1), rows)


def test_other_models_are_attacked_where_asked_for_and_results_are_kept(tmp_path: Path, folder: Path) -> None:
    asked = RetrainRequest(Inputs(str(folder / "m.parquet"), model="mlp:4"), str(tmp_path / "RUN"), device="cpu")
    small = Recipe(epochs=1, batch_size=32)
    assert "attack" not in retrain(asked, small)
    import dataclasses

    pgd = dataclasses.replace(asked, attack="pgd", options={"robustness": {"steps": "2", "eps": "0.3"}})
    metrics = retrain(pgd, small)
    result = metrics["arms"]["all rows"]["seeds"]["0"]
    assert metrics["attack"]["settings"]["steps"] == 2
    assert result["attacked_adaptive"] <= result["accuracy"]
    (kept,) = (tmp_path / "RUN" / "arms").glob("*/metrics.json")
    before = kept.stat().st_mtime_ns
    assert retrain(pgd, small) == metrics
    assert kept.stat().st_mtime_ns == before


@pytest.mark.shared_data
def test_attacked_accuracy_on_bank(tmp_path: Path) -> None:
    if not BANK.exists():
        pytest.skip(f"no {BANK.name} of bank: the data set is not part of the repository")
    inputs = Inputs(str(BANK), model="linear")
    metrics = retrain(RetrainRequest(inputs, str(tmp_path / "RUN"), device="cpu"), OPTIMUM)
    identity_holds(metrics["arms"]["all rows"]["seeds"]["0"], metrics["test_rows"])

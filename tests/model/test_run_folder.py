"""What a run folder says of itself: written as it always was, read whole, and of earlier versions as far as it goes.

python -m pytest tests/model/test_run_folder.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from influence_cli.errors import DamagedModel
from influence_cli.model.run_folder import RunFolder
from influence_cli.model.run_record import EpochCheckpoint, PlantedLabels, RunRecord
from influence_cli.store.sealed import sealed

MODEL = {"name": "mlp:4", "num_classes": 3, "kind": "features", "shape": [5]}
RECIPE = {"optimizer": "sgd", "epochs": 2, "lr": 0.1, "weight_decay": 0.001}
STEP = EpochCheckpoint("checkpoints/step-000007.safetensors", 1, 7, 0.05)
CANARIES = PlantedLabels(["a", "b"], ["00" * 16, "11" * 16], [2, 0], [1, 1], 0.1, "uniform", None)
RECORD = RunRecord(
    model=MODEL,
    recipe=RECIPE,
    seed=3,
    pretrained=False,
    trained_rows=9,
    arm="ab" * 16,
    checkpoints=(STEP,),
    calibration=0.2,
    calibration_ids=("c",),
    calibration_keys=("22" * 16,),
    canaries=CANARIES,
)


def filled(path: Path) -> RunFolder:
    """A run folder with two files of weights."""
    folder = RunFolder(path)
    torch.manual_seed(0)
    for name in RECORD.weights:
        folder.write_weights(name, nn.Linear(5, 3), {"model": MODEL})
    return folder


def test_what_is_written_is_read_again_with_the_digests_of_its_weights(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    for record in (RECORD, replace(RECORD, steps=14, calibration=None, calibration_ids=(), calibration_keys=None)):
        folder.write(record)
        read = folder.read()
        assert read is not None
        assert set(read.digests or ()) == {"model.safetensors", STEP.file}
        assert replace(read, digests=None) == record


def test_the_file_has_the_keys_that_it_always_had(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    folder.write(RECORD)
    value = json.loads((tmp_path / "run.json").read_text())
    assert value.pop("weights").keys() == {"model.safetensors", STEP.file}
    assert len(value.pop("checksum")) == 32
    assert value == {
        "schema_version": 1,
        "model": MODEL,
        "recipe": RECIPE,
        "seed": 3,
        "init": None,
        "pretrained": False,
        "checkpoints": [{"file": STEP.file, "epoch": 1, "step": 7, "lr": 0.05}],
        "trained_on": {"rows": 9, "arm": "ab" * 16},
        "calibration": 0.2,
        "calibration_ids": ["c"],
        "calibration_keys": ["22" * 16],
        "canaries": {
            "share": 0.1,
            "noise": "uniform",
            "from": None,
            "ids": ["a", "b"],
            "row_keys": ["00" * 16, "11" * 16],
            "labels": [1, 1],
            "planted": [2, 0],
        },
    }
    folder.write(RunRecord(MODEL, RECIPE, steps=4))
    assert {"steps", "calibration", "canaries"} & json.loads((tmp_path / "run.json").read_text()).keys() == {"steps"}


def test_what_an_earlier_version_did_not_note_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"model": MODEL, "recipe": {}, "calibration_ids": ["c"]}))
    assert RunFolder(tmp_path).read() == RunRecord(MODEL, {}, calibration_ids=("c",))
    canaries = {"ids": ["a"], "row_keys": ["00" * 16], "planted": [1]}
    (tmp_path / "run.json").write_text(json.dumps({"model": MODEL, "recipe": {}, "canaries": canaries}))
    assert RunFolder(tmp_path).read() == RunRecord(MODEL, {}, canaries=PlantedLabels(["a"], ["00" * 16], [1]))


@pytest.mark.parametrize(
    "wrong",
    [{"checkpoints": ["a"]}, {"checkpoints": [{"file": "a"}]}, {"calibration_keys": [1]}, {"weights": []}],
)
def test_what_retrain_never_wrote_is_damage(wrong: dict[str, Any], tmp_path: Path) -> None:
    value = sealed({"model": MODEL, "recipe": {}, "weights": {}, **wrong})
    (tmp_path / "run.json").write_text(json.dumps(value))
    with pytest.raises(DamagedModel, match=next(iter(wrong))):
        RunFolder(tmp_path).read()


def test_the_folder_of_a_checkpoint_is_found_from_its_file(tmp_path: Path) -> None:
    for locator in (tmp_path, tmp_path / "model.safetensors", tmp_path / STEP.file):
        assert RunFolder.of(locator).path == tmp_path

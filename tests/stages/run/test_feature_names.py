"""The features of a checkpoint: a manifest of other columns, other categories or another order is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

import influence_cli
from influence_cli.errors import ManifestError
from tests.cases import Ran, call_cli

N = 48


def people(jobs: tuple[str, ...] = ("clerk", "nurse"), seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    age, pay, job = rng.normal(size=N), rng.normal(size=N), np.array(jobs)[np.arange(N) % len(jobs)]
    return pd.DataFrame({"age": age, "pay": pay, "job": job, "label": np.where(age > 0, "yes", "no")})


def manifest(frame: pd.DataFrame, folder: Path, name: str, *more: str) -> Ran:
    frame.to_csv(folder / f"{name}.csv", index=False)
    return call_cli("manifest", f"{name}.csv", "-o", f"{name}.parquet", "--split", "60/20/20", *more, cwd=folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run trained on ages, pay and jobs."""
    folder = tmp_path_factory.mktemp("features")
    assert manifest(people(), folder, "first").code == 0
    train = ("--model", "linear", "--epochs", "1", "--device", "cpu", "-o")
    assert call_cli("retrain", "first.parquet", *train, "run", cwd=folder).code == 0
    return folder


OTHERS = {
    "renamed": (people().rename(columns={"pay": "debt"}), ["it lacks pay", "it has debt"]),
    "order": (people()[["pay", "age", "job", "label"]], ["another order", "feature 0 is pay where age"]),
    "vocabulary": (people(("nurse", "pilot"), 1), ["it lacks job=clerk", "it has job=pilot"]),
    "fewer": (people().drop(columns="pay"), ["3 where there are 4", "it lacks pay"]),
    "more": (people().assign(height=np.arange(N)), ["5 where there are 4", "it has height"]),
    "origin": (people().assign(pay=np.arange(N) + 3e9), ["it has pay (counted from 3"]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_manifest_of_other_features_is_refused_by_name(place: Path, name: str) -> None:
    frame, said = OTHERS[name]
    assert manifest(frame, place, name).code == 0
    for command in (
        ("score", "--method", "ip", f"{name}.parquet", "--checkpoint", "run"),
        (
            "score",
            "--method",
            "ip",
            "first.parquet",
            "--target",
            f"{name}.parquet",
            "--checkpoint",
            "run",
            "--overlap",
            "keep",
        ),
        ("score", "first.parquet", "--fit-rows", f"{name}.parquet", "--checkpoint", "run", "--method", "exact"),
        ("retrain", f"{name}.parquet", "--init", "run", "-o", "again", "--epochs", "1"),
        ("retrain", "first.parquet", "--test", f"{name}.parquet", "--model", "linear", "-o", "again", "--epochs", "1"),
    ):
        ran = call_cli(*command, "--device", "cpu", cwd=place)
        assert ran.code == 2, (command, ran.err)
        assert all(text in ran.err for text in (*said, "--like MANIFEST", f"{name}.parquet")), ran.err


def test_a_later_table_that_is_read_like_the_first_is_scored(place: Path) -> None:
    later = people(("nurse", "clerk", "pilot"), 2)[["job", "label", "pay", "age"]]
    assert manifest(later, place, "later", "--like", "first.parquet").code == 0
    assert (
        call_cli("score", "--method", "ip", "later.parquet", "--checkpoint", "run", "--device", "cpu", cwd=place).code
        == 0
    )
    again = ("retrain", "later.parquet", "--init", "run", "-o", "on", "--epochs", "1", "--device", "cpu")
    assert call_cli(*again, cwd=place).code == 0
    kept = json.loads((place / "on" / "run.json").read_bytes())["model"]["features"]
    assert kept == ["age", "pay", "job=clerk", "job=nurse"]


def test_from_python_too(place: Path) -> None:
    with pytest.raises(ManifestError, match="it has job=pilot"):
        influence_cli.score(
            OTHERS["vocabulary"][0], method="ip", checkpoint=str(place / "run"), store=None, device="cpu"
        )


def test_weights_that_say_no_names_are_held_by_count_alone(place: Path) -> None:
    save_file(load_file(place / "run" / "model.safetensors"), place / "bare.safetensors")
    assert manifest(OTHERS["order"][0], place, "order").code == 0
    bare = ("--checkpoint", "bare.safetensors", "--model", "linear", "--device", "cpu")
    assert call_cli("score", "--method", "ip", "order.parquet", *bare, cwd=place).code == 0

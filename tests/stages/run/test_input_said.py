"""The input's size and whose word it is; models that know their rows by heart.

python -m pytest tests/stages/run/test_input_said.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from influence_cli.stages.run.accuracy import memorised
from influence_cli.stages.run.input_said import say_input
from tests.cases import call_cli, digits_table, examples, feature_table, job_of, png, train_run, with_column, write


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits of 8 x 8, a run on them, and its weights alone, at 8 and at 32 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    write(digits_table(60, 30, 20), folder / "m.parquet")
    train_run(folder / "m.parquet", folder / "RUN", "linear")
    torch.save(load_file(folder / "RUN" / "model.safetensors"), folder / "w.pt")
    ran = call_cli("retrain", "m.parquet", "--model", "linear", "--input-size", 32, "-o", "BIG", "-q", cwd=folder)
    assert ran.code == 0, ran.err
    torch.save(load_file(folder / "BIG" / "model.safetensors"), folder / "big.pt")
    return folder


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--checkpoint", "RUN"], "input: 8 x 8 pixels, 1 channel, from RUN, as it was trained; the images are 8 x 8"),
        (["--checkpoint", "BIG"], "input: 32 x 32 pixels, 1 channel, from BIG"),
        (["--checkpoint", "w.pt", "--model", "linear"], "input: 8 x 8 pixels, 1 channel, from the images' own size"),
        (["--checkpoint", "w.pt", "--model", "linear", "--mean", "0.4"], "; mean 0.4 from --mean; "),
        (
            ["--checkpoint", "big.pt", "--model", "linear", "--input-size", "32"],
            "32 x 32 pixels, 1 channel, from --input-size",
        ),
        (["--checkpoint", "big.pt", "--model", "linear", "--input-size", "32"], "the images are 8 x 8, far from it"),
    ],
)
def test_the_input_is_said_before_scoring_and_in_the_plan(flags: list[str], said: str, photos: Path) -> None:
    for more in (["-n"], ["--no-store", "-o", "s.parquet"], ["-n", "--json"]):
        ran = call_cli("score", "m.parquet", *flags, *more, cwd=photos)
        assert ran.code == 0, ran.err
        (line,) = (text for text in ran.err.splitlines() if text.startswith("input: "))
        assert said in line
        assert ran.err.splitlines()[0] == line
    assert ran.json["input"]["size"] in ([8, 8], [32, 32])
    assert call_cli("score", "m.parquet", *flags, "-q", "-o", "s.parquet", cwd=photos).err == ""


@pytest.mark.parametrize(
    ("model", "images", "said"),
    [
        (1, "colour", "; the images are 8 x 8, in colour: they are turned into grey, as the model takes 1 channel"),
        (3, "grey", "; the images are 8 x 8, grey: they are repeated in every channel, as the model takes 3 channels"),
        (1, "both", ", 30 of 60 looked at in colour: they are turned into grey, as the model takes 1 channel"),
        (3, "both", ", 30 of 60 looked at grey: they are repeated in every channel, as the model takes 3 channels"),
        (1, "grey", "; the images are 8 x 8"),
        (3, "colour", "; the images are 8 x 8"),
    ],
)
def test_images_of_other_channels_than_the_model_takes_are_said(
    model: int, images: str, said: str, tmp_path: Path
) -> None:
    rng, table = np.random.default_rng(0), digits_table(60, 20, 10)

    def of(*shapes: tuple[int, ...]) -> Path:
        payloads = [png(rng.integers(0, 255, shapes[k % len(shapes)], np.uint8)) for k in range(len(table))]
        return write(with_column(table, "image", payloads), tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet")

    run = train_run(of((8, 8) if model == 1 else (8, 8, 3)), tmp_path / "RUN", "linear")
    job = job_of(of(*{"grey": [(8, 8)], "colour": [(8, 8, 3)], "both": [(8, 8), (8, 8, 3)]}[images]), run, None)
    say_input(job.run, job.session)
    (line,) = (text for text in job.listener.notes if text.startswith("input: "))
    assert line.endswith(said)


def test_features_have_no_size_to_say(tmp_path: Path) -> None:
    write(feature_table(examples()), tmp_path / "m.parquet")
    train_run(tmp_path / "m.parquet", tmp_path / "RUN")
    ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "RUN", "-n", "--json", cwd=tmp_path)
    assert "input:" not in ran.err
    assert ran.json["input"] is None


def test_a_model_that_knows_its_rows_by_heart_is_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = feature_table(examples(60, 60, 10))
    labels = table["label"].to_numpy().copy()
    labels[:20] = (labels[:20] + 1 + rng.integers(2, size=20)) % 3
    write(table.set_column(2, "label", pa.array(labels)), tmp_path / "m.parquet")
    more = ["--lr", "0.2", "--weight-decay", "0", "--batch-size", 16]
    for name, epochs in (("LONG", 300), ("SHORT", 3)):
        asked = ["retrain", "m.parquet", "--model", "mlp:128", "--epochs", epochs, *more, "-o", name, "-q"]
        assert call_cli(*asked, cwd=tmp_path).code == 0
        for method in ("loss", "ip"):
            ran = call_cli(
                "score", "m.parquet", "--checkpoint", name, "--method", method, "-o", "s.parquet", cwd=tmp_path
            )
            assert ("by heart" in ran.err) == (name == "LONG"), ran.err


@pytest.mark.parametrize(
    ("train", "loss", "target", "rows", "expected"),
    [
        (1.0, 0.0, 0.85, 300, True),
        (0.995, 0.01, 0.9, 300, True),
        (1.0, 0.0, 1.0, 300, False),
        (1.0, 0.0, 0.99, 300, False),  # within what target rows differ by chance
        (1.0, 0.5, 0.8, 300, False),
        (0.9, 0.0, 0.7, 300, False),
    ],
)
def test_what_counts_as_known_by_heart(train: float, loss: float, target: float, rows: int, expected: bool) -> None:
    assert memorised(train, loss, target, rows) is expected

"""The input of a new model comes from all images: the first one decides nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from influence_cli.data.manifest import Manifest
from influence_cli.data.open import open_manifest
from influence_cli.model.new_spec import new_spec
from influence_cli.settings import Inputs
from influence_cli.store import Store
from tests.cases import Heard, call_cli, write


def picture(k: int, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> bytes:
    pixels = np.random.default_rng(k).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)).save(
        out, "PNG"
    )
    return out.getvalue()


def table(*images: bytes) -> pa.Table:
    n = len(images)
    splits = (["train", "train", "val", "test"] * n)[:n]
    return pa.table(
        {"id": [f"i{k}" for k in range(n)], "image": list(images), "label": [0, 1] * (n // 2), "split": splits}
    )


def manifest(*images: bytes) -> Manifest:
    return open_manifest(table(*images))


def spec(rows: Manifest, heard: Heard | None = None, **asked: Any) -> tuple[int, ...]:
    inputs = Inputs(rows, model=asked.pop("model", "linear"), **asked)
    return new_spec(inputs, rows, None, True, heard or Heard()).shape


@pytest.mark.parametrize("model", ["linear", "mlp:4", "resnet18"])
@pytest.mark.parametrize("place", [0, 5])
def test_one_grey_image_makes_no_other_grey(place: int, model: str) -> None:
    images = [picture(k) for k in range(6)]
    images[place] = picture(9, "L")
    heard = Heard()
    assert spec(manifest(*images), heard, model=model) == (3, 8, 8)
    assert heard.notes == ["grey images: 1, in colour: 5; the model takes 3 channels"]


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16"])
def test_grey_images_of_any_kind_have_one_channel(mode: str) -> None:
    heard = Heard()
    assert spec(manifest(*(picture(k, mode) for k in range(4)), picture(4, "L"), picture(5, "L")), heard) == (1, 8, 8)
    assert heard.notes == []


def test_the_size_is_the_most_common_one_and_is_said() -> None:
    images = [picture(0, size=(2, 2)), *(picture(k, size=(8, 6)) for k in range(1, 5)), picture(5, size=(9, 9))]
    heard = Heard()
    assert spec(manifest(*images), heard) == (3, 6, 8)
    assert heard.warnings == [
        "images have 3 sizes, from 2 x 2 to 9 x 9: all are resized to 8 x 6, the most common one (4 images); "
        "--input-size N gives another"
    ]
    near = Heard()
    assert spec(manifest(*images[1:5], images[5], picture(7, size=(8, 7))), near) == (3, 6, 8)
    assert (near.warnings, len(near.notes)) == ([], 1)  # nothing is resized much
    asked = Heard()
    assert spec(manifest(*images), asked, input_size=16) == (3, 16, 16)
    assert (asked.warnings, asked.notes) == ([], [])


def test_of_equally_common_sizes_the_middle_one_is_taken_wherever_it_stands() -> None:
    images = [picture(k, size=(size, size)) for k, size in enumerate((2, 40, 9, 10, 3, 11))]
    for order in (images, images[::-1]):
        heard = Heard()
        assert spec(manifest(*order), heard) == (3, 9, 9)
        assert "all are resized to 9 x 9, the one in the middle" in heard.warnings[0]


def test_images_are_looked_at_once_for_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, store = manifest(*(picture(k, size=(8, 6)) for k in range(4))), Store(tmp_path / "store")
    inputs = Inputs(rows, model="linear")
    first = new_spec(inputs, rows, store)
    monkeypatch.setattr(type(rows.payload_kind), "shape", None)
    assert new_spec(inputs, rows, store) == first
    assert first.shape == (3, 6, 8)


def test_retrain_says_it_and_trains_on_all_channels(tmp_path: Path) -> None:
    images = [picture(0, "L", (2, 2)), *(picture(k) for k in range(1, 12))]
    write(table(*images), tmp_path / "m.parquet")
    ran = call_cli("retrain", "m.parquet", "--model", "linear", "--epochs", "1", "-o", "run", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model"]["shape"] == [3, 8, 8]
    assert "grey images: 1, in colour: 11; the model takes 3 channels" in ran.err
    assert "from 2 x 2 to 8 x 8: all are resized to 8 x 8" in ran.err

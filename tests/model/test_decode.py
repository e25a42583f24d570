"""Images become inputs as timm and torchvision evaluate them, and every part of the preprocessing is in the name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from influence_cli import api
from influence_cli.data.open import open_manifest
from influence_cli.errors import ManifestError, UsageError
from influence_cli.model.examples import to_input
from influence_cli.model.new_spec import new_spec
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import Inputs
from tests.cases import call_cli, column, digits_table, write


def photo(width: int, height: int, seed: int = 0) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (224, 224), (256, 256), (50, 61), (1000, 90)], ids=str)
@pytest.mark.parametrize(("crop", "how"), [(0.875, "bicubic"), (0.95, "bilinear"), (1.0, "bicubic")])
def test_crop_is_timms_evaluation_transform(size: tuple[int, int], crop: float, how: str) -> None:
    from timm.data import create_transform

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    spec = ModelSpec("resnet18", 10, "image", (3, 224, 224), mean, std, how, crop=crop)
    transform = create_transform((3, 224, 224), crop_pct=crop, interpolation=how, mean=mean, std=std)
    raw = photo(*size)
    expected = transform(Image.open(io.BytesIO(raw)).convert("RGB"))
    found = to_input(torch.from_numpy(spec.payload_kind.decode(raw, spec).copy())[None], spec, torch.float32)[0]
    assert torch.allclose(found, expected, atol=1e-6)


def test_crop_is_torchvisions_preset() -> None:
    from torchvision.transforms._presets import ImageClassification

    raw = photo(320, 241)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    spec = ModelSpec("torchvision:resnet18", 10, "image", (3, 224, 224), mean, std, "bilinear", crop=0.875)
    expected = ImageClassification(crop_size=224)(Image.open(io.BytesIO(raw)))
    found = to_input(torch.from_numpy(spec.payload_kind.decode(raw, spec).copy())[None], spec, torch.float32)[0]
    assert torch.allclose(found, expected, atol=1e-6)


def test_without_crop_the_image_is_stretched() -> None:
    spec = ModelSpec("mlp:4", 2, "image", (3, 16, 24), (0.5,) * 3, (0.5,) * 3, "bilinear")
    expected = Image.open(io.BytesIO(photo(40, 30))).resize((24, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(spec.payload_kind.decode(photo(40, 30), spec), np.asarray(expected).transpose(2, 0, 1))


def spec_of(tmp_path: Path, **asked: object) -> ModelSpec:
    table = pa.table({"id": ["a", "b"], "image": [photo(40, 30, k) for k in range(2)], "label": [0, 1]})
    manifest = open_manifest(write(table, tmp_path / "m.parquet"))
    return new_spec(Inputs("m.parquet", **asked), manifest, None)  # type: ignore[arg-type]


def test_the_spec_takes_timms_configuration_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    usual = spec_of(tmp_path, model="resnet18")
    assert (usual.shape, usual.crop, usual.interpolation) == ((3, 224, 224), 0.95, "bicubic")
    small = spec_of(tmp_path, model="resnet18", input_size=32)
    assert (small.shape, small.crop) == ((3, 32, 32), None)
    tv = spec_of(tmp_path, model="torchvision:resnet18")
    assert (tv.shape, tv.crop, tv.interpolation) == ((3, 224, 224), 0.875, "bilinear")
    asked = spec_of(
        tmp_path, model="resnet18", input_size=64, mean=(0.1, 0.2, 0.3), std=(0.5,), interpolation="nearest", crop=0.5
    )
    assert (asked.mean, asked.std, asked.interpolation, asked.crop) == ((0.1, 0.2, 0.3), (0.5,) * 3, "nearest", 0.5)
    with pytest.raises(UsageError, match="has 2 numbers"):
        spec_of(tmp_path, model="resnet18", mean=(0.1, 0.2))


@pytest.mark.parametrize("bad", [{"crop": 1.5}, {"crop": 0.0}, {"std": (0.0,)}, {"interpolation": "cubic"}], ids=str)
def test_preprocessing_that_cannot_be_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        Inputs("m.parquet", **bad)  # type: ignore[arg-type]
    assert caught.value.fix


CHANGES = [
    ("--mean", "0.4"), ("--std", "0.4"), ("--interpolation", "nearest"), ("--input-size", "10"), ("--crop", "0.5"),
]  # fmt: skip


def test_other_preprocessing_of_the_same_weights_is_computed_anew_and_going_back_is_not(
    tmp_path: Path, digits: Path
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10, in_chans=3)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    write(digits_table(train=20, val=10, test=0), tmp_path / "m.parquet")
    base = ("--model", "test_resnet", "--checkpoint", "w.pt", "--mean", "0.5", "--std", "0.5")
    base = (*base, "--interpolation", "bilinear", "--input-size", "16", "--crop", "0.9")

    def to_compute(*more: str) -> int:
        ran = call_cli("score", "--method", "ip", "m.parquet", *base, *more, "-n", cwd=tmp_path)
        assert ran.code == 0, ran.err
        return ran.json["rows_to_compute"]

    assert call_cli("score", "--method", "ip", "m.parquet", *base, "-o", "s.parquet", cwd=tmp_path).code == 0
    assert to_compute() == 0
    assert [to_compute(*change) for change in CHANGES] == [20] * len(CHANGES)


def test_a_checkpoint_that_says_its_preprocessing_cannot_be_contradicted(
    tmp_path: Path, digits: Path, digits_run: Path
) -> None:
    for flag, value in CHANGES:
        ran = call_cli(
            "score", "--method", "ip", digits, "--checkpoint", digits_run, flag, value, "--no-store", cwd=tmp_path
        )
        assert ran.code == 2
        assert f"{flag} {value} contradicts the checkpoint" in ran.err
    same = call_cli(
        "score", "--method", "ip", digits, "--checkpoint", digits_run, "--mean", "0.5", "--no-store", cwd=tmp_path
    )
    assert same.code == 0, same.err


def test_preprocessing_travels_with_the_table(tmp_path: Path, digits: Path, digits_run: Path) -> None:
    weights = digits_run / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "w.pt")
    asked = ("--model", "mlp:16", "--checkpoint", "w.pt", "--mean", "0.45", "--std", "0.3")
    first = call_cli("grads", "--method", "ip", digits, *asked, "-o", "g.parquet", cwd=tmp_path)
    assert first.code == 0, first.err
    assert call_cli("score", "g.parquet", "-o", "s.parquet", cwd=tmp_path).code == 0
    direct = api.score(
        digits, model="mlp:16", checkpoint=tmp_path / "w.pt", mean=(0.45,), std=(0.3,), method="ip", store=None
    )
    assert np.allclose(column(pq.read_table(tmp_path / "s.parquet")), column(direct), rtol=1e-6)


def test_a_size_that_an_architecture_does_not_take_is_yours_to_fix(tmp_path: Path) -> None:
    write(digits_table(40, 10, 10), tmp_path / "m.parquet")
    model = ("--model", "vit_tiny_patch16_224")
    ran = call_cli("retrain", "m.parquet", *model, "--epochs", "1", "-o", "run", cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert "does not take input (1, 8, 8)" in ran.err
    assert "--input-size" in ran.err
    torch.save({}, tmp_path / "w.pt")
    assert call_cli("score", "--method", "ip", "m.parquet", *model, "--checkpoint", "w.pt", cwd=tmp_path).code == 2


def test_a_palette_with_transparency_has_its_colours_and_no_warning() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image, out = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE), io.BytesIO()
    image.save(out, format="PNG", transparency=bytes([0, 128, 255]))
    spec = ModelSpec("linear", 2, "image", (3, 6, 6), (0.5,) * 3, (0.5,) * 3)
    assert np.array_equal(
        spec.payload_kind.decode(out.getvalue(), spec), np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    )


def test_whatever_pillow_stumbles_over_is_an_undecodable_image(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec("linear", 2, "image", (3, 6, 6), (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    with pytest.raises(ValueError, match="cannot be decoded"):
        spec.payload_kind.decode(photo(6, 6), spec)

    def stumbles(*_: object) -> None:
        raise EOFError("no more")

    monkeypatch.setattr(Image.Image, "convert", stumbles)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ValueError, match="no more"):
        spec.payload_kind.decode(photo(6, 6), spec)


def test_the_input_of_a_new_model_is_that_of_the_first_usable_image(tmp_path: Path) -> None:
    rows = {"id": ["a", "b", "c"], "image": [b"x", photo(7, 5)[:60], photo(9, 4)], "label": [0, 1, 0]}
    manifest = open_manifest(pa.table({**rows, "image": pa.array(rows["image"], pa.binary())}))
    assert new_spec(Inputs(manifest, model="linear", skip_bad=True), manifest, None).shape == (3, 4, 9)
    with pytest.raises(ManifestError, match="cannot be decoded"):
        new_spec(Inputs(manifest, model="linear"), manifest, None)


def test_rows_that_are_left_out_add_no_class() -> None:
    rows = {"id": ["a", "b"], "image": pa.array([photo(3, 3), photo(3, 3, 1)], pa.binary()), "label": [1, 99]}
    manifest = open_manifest(pa.table({**rows, "split": ["train", "holdout"]}), skip_bad=True)
    assert new_spec(Inputs(manifest, model="linear", skip_bad=True), manifest, None).num_classes == 2

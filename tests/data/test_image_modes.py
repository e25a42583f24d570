"""Images that are not plain 8-bit grey or colour: one rule for each kind, plain ones as ever, and all of it is said."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from PIL import Image

from influence_cli.data.ingest import make_manifest
from influence_cli.data.kinds import KINDS
from influence_cli.data.open import open_manifest
from influence_cli.data.request import IngestRequest
from influence_cli.errors import ManifestError
from influence_cli.model.examples import batches
from influence_cli.model.spec import ModelSpec
from influence_cli.store.keys import payload_key

KIND = KINDS["image"]
GREY = ModelSpec("linear", 2, "image", (1, 8, 8), (0.5,), (0.5,))
COLOUR = ModelSpec("linear", 2, "image", (3, 8, 8), (0.5,) * 3, (0.5,) * 3)
RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (8, 8)).astype(np.uint16)
RGB = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8))
RGBA = Image.fromarray(RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8))
SMALL = RNG.integers(0, 256, (8, 8))


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, format=form, **options)
    return out.getvalue()


def pgm(values: np.ndarray, most: int) -> bytes:
    return f"P5 8 8 {most}\n".encode() + values.astype(">u2").tobytes()


def exif(turn: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = turn
    return tags


SIXTEEN = {
    "png": encoded(DEEP),
    "tiff": encoded(DEEP, "TIFF"),
    "big-endian tiff": encoded(DEEP.astype(">u2"), "TIFF"),
    "pgm": pgm(DEEP, 65535),
    "jpeg 2000": encoded(DEEP, "JPEG2000"),
}


@pytest.mark.parametrize("form", SIXTEEN)
def test_16_bits_are_scaled_by_their_range_whatever_values_an_image_has(form: str) -> None:
    pixels = KIND.decode(SIXTEEN[form], GREY)
    assert isinstance(pixels, np.ndarray)
    assert np.array_equal(pixels[0], np.floor(DEEP / 257 + 0.5))
    assert np.array_equal(np.asarray(KIND.decode(SIXTEEN[form], COLOUR)), np.repeat(pixels, 3, 0))
    assert np.array_equal(np.asarray(KIND.as_arrays(SIXTEEN[form], "here")), pixels[0])
    assert KIND.shape(SIXTEEN[form]) == (1, 8, 8)
    dark = KIND.decode(encoded(np.full((8, 8), 1285, np.uint16)), GREY)
    assert np.unique(np.asarray(dark)).tolist() == [5]  # not stretched to what the image itself has


PLAIN = {
    "grey": encoded(RGB.convert("L")), "colour": encoded(RGB), "palette": encoded(RGB.convert("P")),
    "1 bit": encoded(RGB.convert("1")), "jpeg": encoded(RGB, "JPEG"), "cmyk": encoded(RGB.convert("CMYK"), "JPEG"),
    "alpha": encoded(RGBA), "grey and alpha": encoded(RGBA.convert("LA")), "webp": encoded(RGBA, "WEBP", lossless=True),
    "one colour transparent": encoded(RGB.convert("P"), transparency=3), "turned": encoded(RGB, "JPEG", exif=exif(6)),
    "gif": encoded(RGB, "GIF", save_all=True, append_images=[RGBA.convert("RGB")]), "bmp": encoded(RGB, "BMP"),
    "integers": encoded(SMALL.astype(np.int32), "TIFF"), "floats": encoded(SMALL.astype(np.float32) / 1.01, "TIFF"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_all_others_are_what_pillow_converts_them_to(name: str) -> None:
    with warnings.catch_warnings(), Image.open(io.BytesIO(PLAIN[name])) as image:
        warnings.simplefilter("ignore")
        for spec, mode in ((GREY, "L"), (COLOUR, "RGB")):
            expected = np.asarray(image.convert(mode))
            expected = expected[None] if mode == "L" else expected.transpose(2, 0, 1)
            assert np.array_equal(np.asarray(KIND.decode(PLAIN[name], spec)), expected)


REFUSED = {
    "large integers": encoded(np.full((8, 8), 70_000, np.int32), "TIFF"),
    "negative": encoded(np.full((8, 8), -1.0, np.float32), "TIFF"),
    "not a number": encoded(np.full((8, 8), np.nan, np.float32), "TIFF"),
    "from 0 to 1": encoded(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), "TIFF"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_numbers_of_no_known_range_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of no known range: store 8 or 16 bits"):
        KIND.decode(REFUSED[name], GREY)
    (tmp_path / "f" / "cat").mkdir(parents=True)
    (tmp_path / "f" / "cat" / "a.tif").write_bytes(REFUSED[name])
    with pytest.raises(ManifestError, match="of no known range") as refused:
        make_manifest(IngestRequest(str(tmp_path / "f"), str(tmp_path / "m.parquet")))
    assert "row id=cat/a.tif" in refused.value.where


@pytest.mark.parametrize("name", ["large integers", "negative", "from 0 to 1"])
def test_the_fix_makes_8_bits_of_them(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f" / "cat").mkdir(parents=True)
    (tmp_path / "f" / "cat" / "a.tif").write_bytes(REFUSED[name])
    with pytest.raises(ManifestError, match="of no known range") as refused:
        make_manifest(IngestRequest(str(tmp_path / "f"), str(tmp_path / "m.parquet")))
    table = pa.table({"id": ["a"], "image": [REFUSED[name]], "label": [0]})
    with pytest.raises(ManifestError, match="of no known range") as later:
        list(batches(open_manifest(table), [list(open_manifest(table).payloads(np.arange(1)))], GREY))
    assert later.value.fix == f"{refused.value.fix.removesuffix(', or pass --skip-bad')}, or pass --skip-bad"
    assert "TIFF" not in refused.value.fix  # which it is already
    code = refused.value.fix.removeprefix("scale it to 8 bits: ").partition(", with a = ")[0]
    values = np.asarray(PIL.Image.open(io.BytesIO(REFUSED[name]))).astype(np.float64)
    low, high = (0, 1) if name == "from 0 to 1" else (-2, 100_000)
    assert ("LOW" in code) == (name != "from 0 to 1")
    monkeypatch.chdir(tmp_path)
    exec(code, {"PIL": PIL, "a": values, "LOW": low, "HIGH": high})
    made = KIND.decode(Path("NAME.png").read_bytes(), GREY)
    assert np.array_equal(made[0], np.rint(255 * (values - low) / (high - low)))


def test_only_images_of_more_than_8_bits_have_other_names_than_before() -> None:
    """What is stored of 8-bit images stays; of the others it is of inputs that were cut off at 255."""
    assert {KIND.key(raw) != payload_key("influence.image", raw) for raw in SIXTEEN.values()} == {True}
    tiffs = ("integers", "floats")
    same = {name: KIND.key(raw) == payload_key("influence.image", raw) for name, raw in PLAIN.items()}
    assert same == {name: name not in tiffs for name in PLAIN}
    for raw in (b"", b"x", b"\x89PNG", b"II*\0", b"P5 8", encoded(RGB, "TIFF"), pgm(SMALL, 255)[:40]):
        assert KIND.key(raw) == payload_key("influence.image", raw)
    one = open_manifest(pa.table({"id": ["a", "b"], "image": [SIXTEEN["png"], PLAIN["grey"]], "label": [0, 1]}))
    assert [bytes(k) for k in one.payload_keys] == [KIND.key(SIXTEEN["png"]), KIND.key(PLAIN["grey"])]


def test_a_manifest_says_which_images_are_read_otherwise_than_people_may_think(tmp_path: Path) -> None:
    images = {
        **{f"deep{k}.png": SIXTEEN["png"] for k in range(2)}, "dark.png": encoded((DEEP // 16).astype(np.uint16)),
        "alpha.png": PLAIN["alpha"], "cmyk.jpg": PLAIN["cmyk"], "bit.png": PLAIN["1 bit"], "anim.gif": PLAIN["gif"],
        "turned.jpg": PLAIN["turned"], "float.tif": PLAIN["floats"], "plain.png": PLAIN["colour"],
    }  # fmt: skip
    (tmp_path / "f" / "cat").mkdir(parents=True)
    for name, raw in images.items():
        (tmp_path / "f" / "cat" / name).write_bytes(raw)
    made = make_manifest(IngestRequest(str(tmp_path / "f"), str(tmp_path / "m.parquet")))
    said = [note for note in made.notes if " row): " in note or " rows): " in note]
    assert said == [
        "1 bit a pixel (1 row): it becomes 0 and 255",
        "16 bits a pixel (2 rows): 0 to 65,535 becomes 0 to 255",
        "16 bits a pixel (1 row): 0 to 65,535 becomes 0 to 255, and no value above 4,095, so that they are dark: "
        "spread their values, or store 8 bits",
        "CMYK (1 row): converted to RGB, without a colour profile",
        "an EXIF orientation (1 row): the pixels are used as they are stored, not turned",
        "floating-point numbers from 0 to 255 (1 row): taken as they are",
        "several frames or pages (1 row): the first one is used",
        "transparency (1 row): it is dropped, and the colours under it are used",
    ]

"""What each kind of payload answers, asked directly (``python -m tests.hardening.mutants --part kinds``)."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image as pillow

from influence_cli.data.kinds import KINDS
from influence_cli.data.kinds.image import sized
from influence_cli.data.kinds.image_pixels import in_8_bits, is_grey, remarks_of
from influence_cli.data.kinds.protocol import BadPayload, Kind, form_of, shortened
from influence_cli.data.kinds.text import CHANGE, MASK, TOKENS
from influence_cli.data.kinds.thumbnail import thumbnail
from influence_cli.model.spec import ModelSpec
from influence_cli.store.lfs import FIX
from tests.cases import png

HERE = Path("here")
TEXT, PAIR, FEATURES, IMAGE, PATH = (KINDS[n] for n in ("text", "text_pair", "features", "image", "path"))


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def encoded(*texts: str) -> dict[str, Any]:
    """A tokenizer of letters: a is 3."""
    ids = np.array([ord(c) - 94 for c in " ".join(texts) if c != " "], dtype=np.int64)
    return {TOKENS: ids, MASK: np.ones_like(ids)}


def text_spec(language: bool = False, end: int | None = None, most: int = 100) -> Any:
    """What a model that takes texts says of its input."""
    reader = SimpleNamespace(encoded=encoded, padding=1, end=end)
    return SimpleNamespace(text=reader, is_language=language, shape=(most,))


# ---- features -------------------------------------------------------------------------------------------------------


def test_rows_of_features_are_read_at_once_where_they_are_even_and_one_by_one_where_not() -> None:
    even = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()))
    for column in (even, even.cast(pa.list_(pa.float32(), 2)), even.cast(pa.large_list(pa.float32())), even.slice(1)):
        found = FEATURES.raw_rows(batch(features=column))
        rows = [np.array(v, np.float32) for v in column.to_pylist()]
        assert found is not None
        assert [row.tobytes() for row in found] == [FEATURES.raw(v) for v in rows]
        assert [v.tolist() for v in FEATURES.stored(batch(features=column), HERE)] == [v.tolist() for v in rows]
    for odd in ([[1.0], None], [[1.0], [2.0, 3.0]], [[1.0], [None]], [[np.nan], [1.0]], [[], []], []):
        column = pa.array(odd, pa.list_(pa.float32()))
        assert FEATURES.raw_rows(batch(features=column)) is None
        found = FEATURES.stored(batch(features=column), HERE)
        assert [None if v is None else len(v) for v in found] == [None if v is None else len(v) for v in odd]
    assert FEATURES.raw_rows(batch(features=pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)))) is not None


def test_features_are_at_fault_where_there_are_none_or_one_is_not_finite() -> None:
    assert FEATURES.fault(np.array([1.0], np.float32)) is None
    assert "no feature" in str(FEATURES.fault(np.array([], np.float32)))
    assert "not finite" in str(FEATURES.fault(np.array([1.0, np.inf], np.float32)))
    with pytest.raises(BadPayload, match="missing or not finite") as caught:
        FEATURES.from_source({"features": [1.0, None, np.nan]}, HERE)
    assert caught.value.position == 1
    for nothing in (None, []):
        with pytest.raises(BadPayload):
            FEATURES.from_source({"features": nothing}, HERE)
    spec = ModelSpec("mlp:4", 2, "features", (3,))
    with pytest.raises(ValueError, match="2 features where the model takes 3"):
        FEATURES.decode(np.ones(2, np.float32), spec)
    with pytest.raises(ValueError, match="where the model takes 3"):
        FEATURES.decode(b"xyz", spec)


# ---- texts ----------------------------------------------------------------------------------------------------------


def test_texts_are_named_by_their_utf_8_and_pairs_by_both_texts_apart() -> None:
    assert TEXT.raw("ä") == "ä".encode()
    assert PAIR.raw(("ab", "c")) == (2).to_bytes(8, "little") + b"abc"
    assert len({PAIR.key(pair) for pair in (("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc"))}) == 4
    assert TEXT.key("abc") != IMAGE.key(b"abc")
    rows = batch(text_a=["a", None, "c"], text_b=["x", "y", None])
    assert PAIR.stored(rows, HERE) == [("a", "x"), None, None]
    assert TEXT.shape("four") == (4,)
    assert PAIR.shape(("ab", "cde")) == (5,)
    assert PAIR.as_values(("a", "b")) == {"text_a": "a", "text_b": "b"}
    assert TEXT.as_arrays("ab", "").item() == "ab"
    assert {n: v.item() for n, v in PAIR.as_arrays(("a", "b"), "").items()} == {"text_a": "a", "text_b": "b"}
    assert [TEXT.holds(kind) for kind in (pa.string(), pa.large_string(), pa.binary())] == [True, True, False]


def test_texts_that_are_missing_empty_or_no_unicode_are_refused_by_column() -> None:
    assert TEXT.from_source({"text": "a"}, HERE) == "a"
    assert PAIR.from_source({"text_a": "a", "text_b": "b"}, HERE) == ("a", "b")
    for row, said in (
        ({"text_a": "a", "text_b": None}, "column text_b: the text is missing"),
        ({"text_a": " \n", "text_b": "b"}, "column text_a: the text is empty"),
        ({"text_a": "ab\ud800", "text_b": "b"}, "column text_a: character 2 is half of a surrogate pair"),
    ):
        with pytest.raises(BadPayload, match=said):
            PAIR.from_source(row, HERE)


def test_a_batch_of_texts_is_as_long_as_its_longest_row_and_says_what_counts() -> None:
    rows = [TEXT.decode(text, text_spec()) for text in ("ab", "abcd", "a")]
    made: Any = TEXT.collate(rows)
    assert made[TOKENS].tolist() == [[3, 4, 0, 0], [3, 4, 5, 6], [3, 0, 0, 0]]
    assert made[MASK].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert TEXT.lengths(made).tolist() == [2, 4, 1]
    assert TEXT.odd(rows) is None
    tensors = {name: torch.from_numpy(values) for name, values in made.items()}
    short = {name: tensor[[0, 2]] for name, tensor in tensors.items()}
    given = TEXT.to_input(short, text_spec(), None)
    assert given[TOKENS].tolist() == [[3, 4], [3, 1]]  # cut to the longest, the model's own number where it is filled
    attacked = TEXT.of_attacked({**short, CHANGE: torch.ones(2, 4, 3)}, text_spec())
    assert attacked[CHANGE].shape == (2, 2, 3)
    assert attacked[TOKENS].tolist() == given[TOKENS].tolist()
    nothing = {TOKENS: torch.zeros(1, 3, dtype=torch.int64), MASK: torch.zeros(1, 3, dtype=torch.int64)}
    assert TEXT.to_input(nothing, text_spec(), None)[TOKENS].tolist() == [[1]]


def test_a_pair_is_handed_to_the_tokenizer_as_two_texts_and_a_language_model_needs_two_tokens() -> None:
    assert PAIR.decode(("a", "b"), text_spec())[TOKENS].tolist() == [3, 4]
    assert TEXT.decode("ab", text_spec(language=True))[TOKENS].tolist() == [3, 4]
    assert TEXT.decode("a", text_spec())[TOKENS].tolist() == [3]
    with pytest.raises(BadPayload, match="the text is one token"):
        TEXT.decode("a", text_spec(language=True))
    with pytest.raises(ValueError, match="texts where the model takes something else"):
        TEXT.decode("a", SimpleNamespace(text=None))


@pytest.mark.parametrize("end", [None, 4])
def test_rows_that_only_try_a_model_are_of_other_tokens_than_those_that_fill_up(end: int | None) -> None:
    blank: Any = TEXT.blank(text_spec(end=end), 3)
    assert blank[TOKENS].shape == blank[MASK].shape == (3, 8)
    assert blank[MASK].all()
    row = blank[TOKENS][0].tolist()
    assert len(set(row)) == 8
    assert 1 not in row  # which fills up
    assert (row[-1] == end) is (end is not None)
    assert TEXT.blank(text_spec(most=5), 1)[TOKENS].shape == (1, 5)
    filled: Any = TEXT.filled(text_spec(end=end))
    alone, together = filled
    assert (alone[TOKENS].shape, together[TOKENS].shape) == ((1, 8), (2, 16))
    assert together[TOKENS][0, :8].tolist() == alone[TOKENS][0].tolist()
    assert together[MASK].sum(1).tolist() == [8, 16]
    assert TEXT.filled(text_spec(most=2))[0][TOKENS].shape == (1, 2)


# ---- images ---------------------------------------------------------------------------------------------------------


def test_an_image_is_bytes_or_a_path_of_its_struct() -> None:
    column = pa.array([{"bytes": b"x", "path": "a"}, {"bytes": None, "path": "b"}, {"bytes": None, "path": None}, None])
    rows = batch(image=column)
    assert IMAGE.stored(rows, HERE) == [b"x", HERE / "b", None, None]
    assert IMAGE.paths(rows) == ["a", "b", None, None]
    assert IMAGE.by_path(rows.schema)
    plain = batch(image=pa.array([b"x", None]))
    assert IMAGE.stored(plain, HERE) == [b"x", None]
    assert IMAGE.paths(plain) == [None, None]
    assert not IMAGE.by_path(plain.schema)
    kinds = [pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.binary())]), pa.string(), pa.list_(pa.int8())]
    assert [IMAGE.holds(kind) for kind in kinds] == [True, True, True, False, False]
    table = pa.table({"image": column})
    assert [v and v["path"] for v in IMAGE.moved(table, lambda p: p and f"../{p}").column("image").to_pylist()] == [
        "a", "../b", None, None,
    ]  # fmt: skip


def test_images_of_a_source_are_read_checked_and_placed(tmp_path: Path) -> None:
    good = png(np.full((3, 2, 3), 90))
    (tmp_path / "i.png").write_bytes(good)
    for value in (good, "i.png", {"bytes": good, "path": "x"}, {"bytes": None, "path": "i.png"}):
        assert IMAGE.from_source({"image": value}, tmp_path) == good
    assert IMAGE.file_named({"image": "i.png"}, tmp_path) == tmp_path / "i.png"
    assert IMAGE.file_named({"image": good}, tmp_path) is None
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n"
    for value, said in (
        (None, "missing"), ("", "missing"), ("gone.png", "cannot read gone.png"), (b"no image", "cannot be decoded"),
        (good[:40], "cannot be decoded"), (pointer, "Git LFS"),
    ):  # fmt: skip
        with pytest.raises(BadPayload, match=said) as caught:
            IMAGE.from_source({"image": value}, tmp_path)
        assert (caught.value.fix == FIX) is (value is pointer)
    row = {"id": "a", "image": "gone", "path": "p"}
    assert IMAGE.placed(dict(row), b"x", True, tmp_path, tmp_path) == {
        "id": "a", "image": {"bytes": b"x", "path": "p"},
    }  # fmt: skip
    (tmp_path / "out").mkdir()
    assert PATH.placed({"path": "i.png"}, good, False, tmp_path, tmp_path / "out") == {"path": "../i.png"}
    assert PATH.placed({"path": "i.png"}, good, True, tmp_path, tmp_path) == {"image": {"bytes": good, "path": "i.png"}}


def test_an_image_is_decoded_to_the_channels_and_size_of_the_model() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    spec = ModelSpec("mlp:4", 2, "image", (3, 4, 4), (0.5,) * 3, (0.5,) * 3)
    assert IMAGE.decode(png(pixels), spec).tolist() == pixels.transpose(2, 0, 1).tolist()
    grey = ModelSpec("mlp:4", 2, "image", (1, 4, 4), (0.5,), (0.5,))
    assert IMAGE.decode(png(pixels[:, :, 0]), grey).tolist() == [pixels[:, :, 0].tolist()]
    with pytest.raises(ValueError, match="features where the model takes images"):
        IMAGE.decode(np.ones(3, np.float32), spec)
    assert IMAGE.shape(png(pixels[:3])) == (3, 3, 4)
    assert IMAGE.shape(png(pixels[:, :3, 0])) == (1, 4, 3)
    assert IMAGE.as_arrays(png(pixels), "").tolist() == pixels.tolist()
    assert IMAGE.as_arrays(png(pixels[:, :, 0]), "").tolist() == pixels[:, :, 0].tolist()


@pytest.mark.parametrize(("width", "height"), [(12, 8), (8, 12), (8, 8), (9, 8)])
def test_the_middle_is_cut_out_of_an_image_whose_shorter_side_has_the_models_size_over_crop(
    width: int, height: int
) -> None:
    values = np.arange(width * height, dtype=np.uint8).reshape(height, width)
    spec: Any = SimpleNamespace(shape=(1, 4, 4), interpolation="nearest", crop=0.5)
    left, top = round((width - 4) / 2), round((height - 4) / 2)
    assert np.asarray(sized(pillow.fromarray(values), spec)).tolist() == values[top : top + 4, left : left + 4].tolist()


def test_an_image_is_stretched_without_crop_and_resized_by_the_shorter_side_with_it() -> None:
    image = pillow.fromarray(np.zeros((10, 30), np.uint8))
    for crop, of in ((None, (4, 8)), (1.0, (4, 4)), (0.8, (4, 4))):
        spec: Any = SimpleNamespace(shape=(1, *of), interpolation="bilinear", crop=crop)
        assert sized(image, spec).size == of[::-1]
    same: Any = SimpleNamespace(shape=(1, 10, 30), interpolation="bilinear", crop=None)
    assert sized(image, same) is image
    tall = pillow.fromarray(np.repeat(np.arange(30, dtype=np.uint8)[:, None] * 8, 10, 1))
    spec = SimpleNamespace(shape=(1, 5, 5), interpolation="nearest", crop=1.0)
    assert np.asarray(sized(tall, spec))[:, 0].tolist() == [8 * (2 * k + 1) for k in range(5, 10)]


def test_modes_of_images_become_8_bits_of_the_same_colours() -> None:
    grey16 = pillow.fromarray(np.array([[0, 257, 65535]], np.uint16))
    grey16.info["transparency"] = 0
    assert np.asarray(in_8_bits(grey16)).tolist() == [[0, 1, 255]]
    palette = pillow.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert in_8_bits(palette) is palette
    palette.info["transparency"] = 0
    assert in_8_bits(palette).convert("RGB").getpixel((1, 0)) == (40, 50, 60)
    assert [is_grey(pillow.new(mode, (1, 1))) for mode in ("1", "L", "LA", "I", "F", "I;16", "RGB", "P", "CMYK")] == [
        True, True, True, True, True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(("high", "said"), [(255, "255"), (256, "1,023"), (4095, "4,095"), (4096, None)])
def test_16_bits_that_hold_fewer_are_said_to_be_dark(high: int, said: str | None) -> None:
    remarks = remarks_of(pillow.fromarray(np.array([[0, high]], np.uint16)))
    assert remarks[0].startswith("16 bits a pixel: 0 to 65,535 becomes 0 to 255")
    assert ("no value above" in remarks[0]) is (said is not None)
    assert said is None or f"no value above {said}," in remarks[0]


@pytest.mark.parametrize(("side", "kind", "size"), [(48, "png", 48), (49, "jpeg", 49), (400, "jpeg", 160)])
def test_a_thumbnail_keeps_tiny_images_as_they_are_and_makes_large_ones_small(side: int, kind: str, size: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (side, side // 2, 3)).astype(np.uint8)
    for image, mode in ((pillow.fromarray(values), "RGB"), (pillow.fromarray(values[:, :, 0]), "L")):
        head, _, data = thumbnail(image).partition(",")
        assert head == f"data:image/{kind};base64"
        found = pillow.open(io.BytesIO(base64.b64decode(data)))
        assert (found.mode, found.size) == (mode, (size // 2, size))
        if kind == "png":
            assert np.array_equal(np.asarray(found), np.asarray(image))
    shown = IMAGE.shown(png(values), "")["image"]
    assert base64.b64decode(shown.removeprefix("data:image/png;base64,")) == png(values)
    assert IMAGE.card(png(values), "")["size"] == [side // 2, side]


# ---- any kind -------------------------------------------------------------------------------------------------------


def test_batches_of_several_arrays_are_stacked_by_name_and_odd_rows_found() -> None:
    kind = Kind()
    values: list[Any] = [{"a": np.ones(2), "b": np.zeros(1)} for _ in range(3)]
    made: Any = kind.collate(values)
    assert {name: v.shape for name, v in made.items()} == {"a": (3, 2), "b": (3, 1)}
    assert kind.odd(values) is None
    values[2] = {"a": np.ones(3), "b": np.zeros(1)}
    assert kind.odd(values) == 2
    assert form_of(values[2]) == "a float64 (3,), b float64 (1,)"
    assert form_of(np.ones(2, np.float32)) == "float32 (2,)"
    assert shortened("abc", 3) == "abc"
    assert shortened("abcd", 3) == "abc ... (1 more characters)"
    with pytest.raises(NotImplementedError):
        kind.stored(batch(a=[1]), HERE)
    with pytest.raises(NotImplementedError):
        kind.lengths(np.ones(1))
    halves = kind.to_input(
        {"a": torch.ones(2, dtype=torch.float64), "n": torch.ones(2, dtype=torch.int64)}, None, torch.float32
    )
    assert [halves[name].dtype for name in ("a", "n")] == [torch.float32, torch.int64]

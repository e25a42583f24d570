"""Arrays by class are read a block of rows at a time, in any order of the rows, and while shards are merged.

python -m pytest tests/store/test_blocks.py
"""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from influence_cli.errors import StoreError
from influence_cli.store import BlockFolder, Keys, Store, blocks, tensors
from influence_cli.store.files import open_regular
from influence_cli.store.layout import shards_of
from influence_cli.store.tensors import parsed_header
from tests.cases import Heard

NAME = "m" * 32
RNG = np.random.default_rng(3)
CUTS = (0, 50, 53, 120, 200)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of at most seven rows."""
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 7 * 5)


def stored(root: Path) -> tuple[Keys, np.ndarray]:
    """Keys and logits that several shards hold."""
    keys, values = RNG.integers(0, 256, (200, 16), dtype=np.uint8), RNG.normal(size=(200, 5)).astype(np.float32)
    for low, high in itertools.pairwise(CUTS):
        Store(root).by_blocks("outputs", NAME).write(keys[low:high], {"logits": values[low:high]})
    return keys, values


def opened(root: Path, heard: Heard | None = None) -> BlockFolder:
    """The folder as another process sees it."""
    return Store(root, heard or Heard()).by_blocks("outputs", NAME)


@pytest.mark.usefixtures("few")
def test_every_row_is_in_one_block_of_one_shard_and_values_are_in_the_order_asked_for(tmp_path: Path) -> None:
    keys, values = stored(tmp_path)
    order = np.concatenate([RNG.permutation(200), [3, 3, 199]])
    array = opened(tmp_path).array(keys[order], "logits")
    found = list(array.blocks())
    assert max(map(len, found)) == 7
    assert np.array_equal(np.sort(np.concatenate(found)), np.arange(203))
    shard = np.searchsorted(CUTS, order, side="right")
    for some in found:
        assert len(set(shard[some].tolist())) == 1
        assert (np.diff(some) > 0).all()
        assert np.array_equal(array[some], values[order][some])
    assert np.array_equal(array.whole(), values[order])
    assert np.array_equal(array[np.array([202, 0, 100])], values[order][[202, 0, 100]])  # of several shards


@pytest.mark.usefixtures("few")
def test_a_function_of_rows_has_what_is_beside_them(tmp_path: Path) -> None:
    keys, values = stored(tmp_path)
    order, beside = RNG.permutation(200), np.arange(200)
    found = opened(tmp_path).of_rows(keys[order], "logits", lambda z, k: z[:, 0] + k, beside)
    assert np.array_equal(found, values[order, 0] + beside)
    assert opened(tmp_path).of_rows(keys[:0], "logits", lambda z: z.sum(axis=1)).shape == (0,)
    assert opened(tmp_path).array(keys[:0], "logits").whole().shape == (0, 5)


def test_rows_that_are_not_stored_are_missing_and_no_array(tmp_path: Path) -> None:
    keys, _ = stored(tmp_path)
    folder, more = opened(tmp_path), np.concatenate([keys, RNG.integers(0, 256, (2, 16), dtype=np.uint8)])
    assert folder.missing(more).tolist() == [False] * 200 + [True] * 2
    with pytest.raises(KeyError, match="2 rows are not in"):
        folder.array(more, "logits")


@pytest.mark.usefixtures("few")
def test_who_reads_while_shards_are_merged_lists_them_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influence_cli.store.shards.MANY_SMALL", 3)
    keys, values = stored(tmp_path)
    array, before = opened(tmp_path).array(keys, "logits"), set(shards_of(tmp_path / "outputs" / NAME))
    every = array.blocks()
    first = next(every)
    assert np.array_equal(array[first], values[first])
    assert opened(tmp_path).compact(1000) == len(CUTS) - 1
    assert not before & set(shards_of(tmp_path / "outputs" / NAME))
    for some in every:
        assert np.array_equal(array[some], values[some])
    assert np.array_equal(opened(tmp_path).read(keys)["logits"], values)


def test_a_shard_that_is_damaged_after_it_was_listed_is_an_error_and_its_rows_are_missing(tmp_path: Path) -> None:
    keys, _ = stored(tmp_path)
    heard = Heard()
    array, hurt = opened(tmp_path, heard).array(keys, "logits"), shards_of(tmp_path / "outputs" / NAME)[0]
    rows = len(np.flatnonzero(~opened(tmp_path).missing(keys)))
    raw = bytearray(hurt.read_bytes())
    raw[4] ^= 255
    hurt.write_bytes(raw)
    with pytest.raises(StoreError, match="run the same command again"):
        array.whole()
    assert len(heard.warnings) == 1
    assert 0 < opened(tmp_path).missing(keys).sum() < rows == 200


def test_a_shard_is_opened_once_for_an_array_of_many_of_its_rows_and_its_header_is_parsed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, values = stored(tmp_path)
    array, opened_files, parsed = opened(tmp_path).array(keys, "logits"), list[Path](), list[int]()

    def counted(path: Path) -> AbstractContextManager[BinaryIO]:
        opened_files.append(path)
        return open_regular(path)

    def seen(raw: bytes) -> tuple[dict[str, Any], int]:
        parsed.append(len(raw))
        return parsed_header(raw)

    monkeypatch.setattr(tensors, "open_regular", counted)
    monkeypatch.setattr(tensors, "parsed_header", seen)
    shards = len(CUTS) - 1
    for passed in range(3):
        assert np.array_equal(array.whole(), values)
        reads = (shards + 1) * (passed + 1)  # and one of a row, to see how wide the array is
        assert len(opened_files) == shards + reads  # once more each for its header, which is kept
        assert len(parsed) == shards
    before = len(opened_files)
    assert np.array_equal(array[np.array([120, 4])], values[[120, 4]])  # a few rows of two
    assert len(opened_files) == before + 2


@pytest.mark.parametrize("small", [0, 1 << 16])
@pytest.mark.parametrize("rows", [200, 1])
def test_a_shard_that_is_cut_short_after_it_was_listed_is_an_error(
    rows: int, small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "SMALL", small)
    keys, values = stored(tmp_path)
    heard = Heard()
    array = opened(tmp_path, heard).array(keys[:rows], "logits")
    assert np.array_equal(array.whole(), values[:rows])
    for shard in shards_of(tmp_path / "outputs" / NAME):
        shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(StoreError, match="run the same command again"):
        array.whole()
    assert len(heard.warnings) == 1


@pytest.mark.parametrize(("full", "sizes"), [(30, [10, 30, 30, 30]), (1000, [20, 40, 40])])
def test_merged_shards_are_bounded_by_bytes_too(
    full: int, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("influence_cli.store.shards.MANY_SMALL", 3)
    monkeypatch.setattr("influence_cli.store.shards.SHARD_BYTES", 40 * 5 * 4)
    keys, values = RNG.integers(0, 256, (100, 16), dtype=np.uint8), RNG.normal(size=(100, 5)).astype(np.float32)
    folder = opened(tmp_path)
    for low in range(0, 100, 10):
        folder.write(keys[low : low + 10], {"logits": values[low : low + 10]})
    assert folder.compact(full) >= 9  # a shard that is left over may be one as it was
    assert sorted(len(some) for some in opened(tmp_path).array(keys, "logits").blocks()) == sizes
    assert np.array_equal(opened(tmp_path).read(keys)["logits"], values)

"""Small shards that appends leave are merged where they are many; every row keeps its value, whatever happens."""

from __future__ import annotations

import itertools
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.store import Keys, ShardFolder, Store
from influence_cli.store.layout import shards_of
from influence_cli.store.shards import MANY_SMALL
from tests.cases import Heard, job_of
from tests.opened import fill, score

FULL = 100
RNG = np.random.default_rng(11)


def keys_of(rows: int) -> Keys:
    """Distinct keys."""
    return RNG.integers(0, 256, (rows, 16), dtype=np.uint8)


def appended(root: Path, appends: int, rows: int = 7, first: int = 150) -> tuple[ShardFolder, Keys, np.ndarray]:
    """A folder of one large shard and many small ones, with what was written."""
    folder, keys = Store(root).folder("outputs", "m" * 32), keys_of(first + appends * rows)
    values = RNG.normal(size=(len(keys), 3)).astype(np.float32)
    cuts = [0, *range(first, len(keys) + 1, rows)]
    for low, high in itertools.pairwise(cuts):
        folder.write(keys[low:high], {"logits": values[low:high]})
    return folder, keys, values


def read(folder: ShardFolder, keys: Keys) -> np.ndarray:
    """What another process would read."""
    return ShardFolder(folder.path, {}).read(keys)["logits"]


def test_many_small_shards_become_few_and_no_value_changes(tmp_path: Path) -> None:
    folder, keys, values = appended(tmp_path, MANY_SMALL + 4)
    early = ShardFolder(folder.path, {})
    assert not early.missing(keys).any()  # a reader that has read before
    assert folder.compact(FULL) == MANY_SMALL + 4
    assert len(shards_of(folder.path)) == 1 + 2  # the large one, and 140 rows in shards of 100
    assert np.array_equal(read(folder, keys), values)
    assert np.array_equal(early.read(keys)["logits"], values)
    assert folder.compact(FULL) == 0


def test_few_small_shards_and_large_ones_stay(tmp_path: Path) -> None:
    folder, _, _ = appended(tmp_path, MANY_SMALL)
    before = shards_of(folder.path)
    assert folder.compact(FULL) == 0
    assert folder.compact(7) == 0  # none is small beside that
    assert shards_of(folder.path) == before


@pytest.mark.parametrize("with_large", [False, True])
def test_a_row_that_stands_twice_keeps_the_value_that_is_read(with_large: bool, tmp_path: Path) -> None:
    folder, keys, values = appended(tmp_path, MANY_SMALL + 4)
    for again in range(6):  # some of lower names than the first, some of higher ones
        some = np.concatenate([keys[again : again + 1] if with_large else keys[:0], keys[150 + again : 160 + again]])
        folder.write(some, {"logits": RNG.normal(size=(len(some), 3)).astype(np.float32)})
    before = read(folder, keys)
    assert not np.array_equal(before, values)
    assert folder.compact(FULL) > 0
    assert np.array_equal(read(folder, keys), before)


def test_a_damaged_shard_stops_it_and_costs_its_own_rows_alone(tmp_path: Path) -> None:
    folder, keys, values = appended(tmp_path, MANY_SMALL + 4)
    hurt = shards_of(folder.path)[3]
    raw = bytearray(hurt.read_bytes())
    raw[-1] ^= 1
    hurt.write_bytes(raw)
    assert folder.compact(FULL) == 0
    heard = Heard()
    missing = ShardFolder(folder.path, {}, heard).missing(keys)
    assert missing.sum() in (7, 150)
    assert len(heard.warnings) == 1
    assert np.array_equal(read(folder, keys[~missing]), values[~missing])


def test_what_is_stopped_between_writing_and_removing_loses_nothing(tmp_path: Path) -> None:
    folder, keys, values = appended(tmp_path, MANY_SMALL + 4)
    with mock.patch("influence_cli.store.shards.remove_others", side_effect=KeyboardInterrupt), \
            pytest.raises(KeyboardInterrupt):  # fmt: skip
        folder.compact(FULL)
    assert len(shards_of(folder.path)) == 1 + MANY_SMALL + 4 + 2
    assert np.array_equal(read(folder, keys), values)
    folder.compact(FULL)
    assert np.array_equal(read(folder, keys), values)


def test_appends_of_a_few_rows_leave_few_files_and_the_same_scores(
    tmp_path: Path, tabular: Path, tabular_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("influence_cli.store.shards.MANY_SMALL", 3)
    table, store = pq.read_table(tabular), tmp_path / "store"
    rest = table.filter(np.array(table["split"]) != "train")
    train = table.filter(np.array(table["split"]) == "train")
    for rows in range(len(train) - 6, len(train) + 1):
        pq.write_table(train.slice(0, rows), tmp_path / "rows.parquet")
        job = job_of(tmp_path / "rows.parquet", tabular_run, store, target=str(_written(tmp_path, rest)))
        fill(job)
    assert all(len(shards_of(path.parent)) <= 5 for path in store.glob("*/*/*.safetensors"))
    own = job_of(tmp_path / "rows.parquet", tabular_run, tmp_path / "new", target=str(_written(tmp_path, rest)))
    fill(own)
    found, wanted = (score(j)["score"].to_numpy() for j in (job, own))
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()


def _written(folder: Path, rows: pa.Table) -> Path:
    place = folder / "target.parquet"
    pq.write_table(rows, place)
    return place

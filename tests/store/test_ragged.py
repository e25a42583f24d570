"""Rows of several lengths in the store: read as written, merged, dropped, and none filled up.

python -m pytest tests/store/test_ragged.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from influence_cli.store import Store
from influence_cli.store.files import DamagedFile
from influence_cli.store.maintenance import collect
from influence_cli.store.ragged import flattened, ragged, unflattened
from influence_cli.store.shards import ShardFolder
from influence_cli.store.tensors import read_tensors

Keys = NDArray[np.uint8]


def keys_of(*numbers: int) -> Keys:
    """Keys whose last byte is the number."""
    out = np.zeros((len(numbers), 16), np.uint8)
    out[:, 15] = numbers
    return out


def rows_of(*lengths: int) -> NDArray[np.object_]:
    """A row of numbers for each length, no two alike."""
    return ragged(100.0 * k + np.arange(n, dtype=np.float64) for k, n in enumerate(lengths))


def test_rows_of_several_lengths_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path / "x", {})
    rows = rows_of(3, 0, 5, 5)
    folder.write(keys_of(9, 2, 7, 1)[:2], {"score": rows[:2], "count": np.array([3, 0])})
    folder.write(keys_of(9, 2, 7, 1)[2:], {"score": rows[2:], "count": np.array([5, 5])})
    found = ShardFolder(tmp_path / "x", {}).read(keys_of(1, 9, 2, 7))
    for k, expected in enumerate((rows[3], rows[0], rows[1], rows[2])):
        np.testing.assert_array_equal(found["score"][k], expected)
        assert found["score"][k].dtype == np.float64
    assert found["count"].tolist() == [5, 3, 0, 5]


def test_a_file_holds_no_more_values_than_rows_have(tmp_path: Path) -> None:
    path = ShardFolder(tmp_path / "x", {}).write(keys_of(1, 2, 3), {"score": rows_of(2, 50, 1)})
    tensors, _ = read_tensors(path)
    assert tensors["score"].shape == (53,)
    assert tensors["score.lengths"].tolist() == [2, 50, 1]


def test_collecting_merges_ragged_shards_and_drops_rows(tmp_path: Path) -> None:
    folder, rows = ShardFolder(tmp_path / "x", {}), rows_of(4, 1, 0, 2, 6)
    for k in range(5):
        folder.write(keys_of(k), {"score": rows[k : k + 1]})
    assert folder.collect(keys_of(0, 2, 3, 4)) == (1, 5)
    again = ShardFolder(tmp_path / "x", {})
    assert again.missing(keys_of(0, 1, 2, 3, 4)).tolist() == [False, True, False, False, False]
    for k in (0, 2, 3, 4):
        np.testing.assert_array_equal(again.read(keys_of(k))["score"][0], rows[k])


def test_rows_of_one_length_stay_rows() -> None:
    made = flattened({"score": rows_of(3, 3)})
    back = unflattened(made)["score"]
    assert back.shape == (2,)
    np.testing.assert_array_equal(back[1], [100.0, 101.0, 102.0])


def test_lengths_that_do_not_fit_are_damage() -> None:
    made = flattened({"score": rows_of(3, 2)})
    with pytest.raises(DamagedFile, match="5 values where its rows have 6"):
        unflattened({**made, "score.lengths": np.array([4, 2])})


def test_what_is_of_tokens_goes_with_the_curvature_that_its_direction_was_made_with(tmp_path: Path) -> None:
    store, names = Store(tmp_path / "store"), {"kept": "a" * 32, "gone": "b" * 32}
    for fit, name in names.items():
        store.directions.write(name, {"w": np.ones(2)}, {"fit": fit})
        for kind in ("tokens", "positions"):
            store.folder(kind, name).write(keys_of(1), {"score": rows_of(3)})
    collect(tmp_path / "store", None, fits={"kept"})
    for kind in ("tokens", "positions"):
        assert [folder.name for folder in (tmp_path / "store" / kind).iterdir()] == [names["kept"]]

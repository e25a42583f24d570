"""What is remembered of a manifest is used while its files are as they were, and never gives another answer."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data import payloads
from influence_cli.data.manifest import Manifest
from influence_cli.data.open import open_manifest
from influence_cli.store import Store, manifest_keys
from influence_cli.store.maintenance import collect, examine

N = 60


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_keys, "LEAST_ROWS", 1)
    monkeypatch.setattr("influence_cli.data.manifest.LEAST_ROWS", 1)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is read to be hashed."""
    found, read = list[Any](), payloads.payload_batches
    monkeypatch.setattr(payloads, "payload_batches", lambda *a: found.append(a) or read(*a))
    return found


def write(path: Path, seed: int = 0, labels: Any = None, ids: Any = None, age: float = 10.0) -> Path:
    rng = np.random.default_rng(seed)
    features = [row.tolist() for row in rng.normal(size=(N, 3)).astype(np.float32)]
    labels = [k % 2 for k in range(N)] if labels is None else labels
    table = {"id": ids or [f"r{k}" for k in range(N)], "features": pa.array(features, pa.list_(pa.float32()))}
    pq.write_table(pa.table({**table, "label": labels, "split": ["train"] * (N - 9) + ["val"] * 9}), path)
    before = time.time() - age
    os.utime(path, (before, before))
    return path


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of change of status cannot be set: time goes on instead."""
    monkeypatch.setattr(manifest_keys.time, "time_ns", lambda: 10**18 * 4)


def read(path: Path, store: Path) -> Manifest:
    return open_manifest(str(path), known=Store(store).file_keys())


def same(a: Manifest, b: Manifest) -> bool:
    pairs = [(a.payload_keys, b.payload_keys), (a.row_keys, b.row_keys), (a.labels, b.labels), (a.splits, b.splits)]
    return all(np.array_equal(x, y) for x, y in pairs) and a.fingerprint == b.fingerprint and a.ids == b.ids


def test_an_untouched_manifest_is_not_hashed_again(
    tmp_path: Path, hashed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = write(tmp_path / "m.parquet"), tmp_path / "store"
    settle(monkeypatch)
    fresh, first = open_manifest(str(path)), read(path, store)
    hashed.clear()
    again = read(path, store)
    assert hashed == []
    assert same(fresh, first)
    assert same(fresh, again)


def test_one_that_has_changed_is(tmp_path: Path, hashed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = write(tmp_path / "m.parquet"), tmp_path / "store"
    settle(monkeypatch)
    read(path, store)
    for changes in ({"seed": 1}, {"labels": [0] * N}, {"ids": [f"s{k}" for k in range(N)]}):
        write(path, **changes)
        hashed.clear()
        again = read(path, store)
        assert len(hashed) == 1
        assert same(again, open_manifest(str(path)))


def test_one_that_has_just_been_written_is_not_remembered(tmp_path: Path, hashed: list[Any]) -> None:
    path, store = write(tmp_path / "m.parquet", age=0.0), tmp_path / "store"
    read(path, store)
    read(path, store)
    assert len(hashed) == 2
    assert not (store / "manifests").exists()


def test_damage_is_set_aside_and_the_manifest_hashed(
    tmp_path: Path, hashed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = write(tmp_path / "m.parquet"), tmp_path / "store"
    settle(monkeypatch)
    first = read(path, store)
    (kept,) = (store / "manifests").iterdir()
    raw = bytearray(kept.read_bytes())
    raw[-3] ^= 1
    kept.write_bytes(raw)
    hashed.clear()
    assert same(read(path, store), first)
    assert len(hashed) == 1


def test_only_the_last_few_are_kept_and_gc_forgets_those_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    settle(monkeypatch)
    monkeypatch.setattr(manifest_keys, "KEPT", 3)
    paths = [write(tmp_path / f"{k}.parquet", seed=k) for k in range(5)]
    for k, path in enumerate(paths):
        read(path, store)
        for kept in (store / "manifests").iterdir():
            if kept.stat().st_mtime > 100:
                os.utime(kept, (k + 1, k + 1))
    assert len(list((store / "manifests").iterdir())) == 3
    assert examine(store).damaged == []
    paths[-1].unlink()
    assert collect(store, None)["manifests_forgotten"] == 1
    assert len(list((store / "manifests").iterdir())) == 2


def test_labels_that_are_read_from_another_column_have_keys_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = write(tmp_path / "m.parquet"), tmp_path / "store"
    table = pq.read_table(path).append_column("other", pa.array([1] * N))
    pq.write_table(table, path)
    settle(monkeypatch)
    known = lambda: Store(store).file_keys()  # noqa: E731
    open_manifest(str(path), known=known())
    found = open_manifest(str(path), "other", known=known())
    assert same(found, open_manifest(str(path), "other"))
    assert not np.array_equal(found.row_keys, open_manifest(str(path)).row_keys)


def test_a_row_that_cannot_be_used_is_named_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = write(tmp_path / "m.parquet"), tmp_path / "store"
    table = pq.read_table(path)
    features = table.column("features").to_pylist()
    features[4] = [float("nan")] * 3
    pq.write_table(table.set_column(1, "features", pa.array(features, pa.list_(pa.float32()))), path)
    settle(monkeypatch)
    for _ in range(2):
        found = open_manifest(str(path), skip_bad=True, known=Store(store).file_keys())
        assert [b.id for b in found.bad] == ["r4"]

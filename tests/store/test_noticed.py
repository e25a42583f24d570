"""Slips in the store's code that no test had noticed (``python -m tests.hardening.mutants``)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.errors import StoreError, UsageError
from influence_cli.store import Store, parquet, remote, shards
from influence_cli.store.files import DamagedFile, open_regular
from influence_cli.store.maintenance import collect
from influence_cli.store.parquet import SEAL, read_parquet_table, write_sealed

KEYS = np.arange(32, dtype=np.uint8).reshape(2, 16)


def test_an_address_has_a_bucket_and_a_key_and_may_have_no_more() -> None:
    remote.parsed("s3://bucket/key.parquet")
    remote.parsed("hf://datasets/owner/name")
    for place in ("s3://bucket", "gs://bucket/", "hf://datasets/owner"):
        with pytest.raises(UsageError, match="no whole address"):
            remote.parsed(place)


def test_two_shards_become_one_and_one_stays(tmp_path: Path) -> None:
    folder = Store(tmp_path).folder("outputs", "a" * 32)
    for key in KEYS:
        folder.write(key[None], {"logits": np.ones((1, 2), np.float32)})
    assert len(list(folder.path.glob("*.safetensors"))) == 2
    assert folder.collect(None)[1] > 0
    assert len(list(folder.path.glob("*.safetensors"))) == 1
    assert folder.collect(None) == (0, 0)


def test_what_was_fitted_on_other_rows_goes_and_is_counted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name, fit in (("a", "here"), ("b", "gone"), ("c", "gone")):
        store.factors.write(name * 32, {"w": np.ones(2, np.float32)}, {"fit": fit})
    found = collect(tmp_path, KEYS, fits={"here"})
    assert found["files_removed"] == 2
    assert [p.stem for p in sorted((tmp_path / "factors").glob("*.safetensors"))] == ["a" * 32]


def test_a_sealed_table_is_held_against_the_digests_of_its_values_and_metadata(tmp_path: Path) -> None:
    path, table = tmp_path / "t.parquet", pa.table({"id": ["a", "b"]}).replace_schema_metadata({"classes": "[1]"})
    out = io.BytesIO()
    write_sealed(table, pa.PythonFile(out, mode="w"))
    raw = out.getvalue()
    path.write_bytes(raw)
    assert SEAL in (pq.read_metadata(path).metadata or {})
    assert read_parquet_table(path).equals(table)
    assert raw.count(b"[1]") >= 1
    path.write_bytes(raw.replace(b"[1]", b"[2]"))
    with pytest.raises(DamagedFile):
        read_parquet_table(path)
    checks = parquet._ValueChecks(table.schema, [["id", "string", "0" * 96]])
    checks.update(table)
    with pytest.raises(DamagedFile, match="values of column id"):
        checks.close()


def test_positions_are_the_same_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BUCKET_ROWS", 2)
    monkeypatch.setattr(shards, "FEW", 1000)
    rng = np.random.default_rng(0)
    among = np.zeros((40, 16), np.uint8)
    among[:, 0] = rng.integers(0, 256, 40)
    keys = np.concatenate([among[::-3], among[:5] + np.uint8(1), np.full((1, 16), 255, np.uint8)])
    first: dict[bytes, int] = {}
    for k, key in enumerate(among):
        first.setdefault(key.tobytes(), k)
    assert shards.positions(keys, among).tolist() == [first.get(key.tobytes(), -1) for key in keys]


def test_row_gradients_of_payloads_that_are_kept_nowhere_go_and_the_others_stay(tmp_path: Path) -> None:
    folder = Store(tmp_path).gradients("a" * 32)
    payloads = KEYS + np.uint8(100)
    for key, payload in zip(KEYS, payloads, strict=True):
        arrays = {"value": np.full((1, 3), float(key[0]), np.float32), "loss": np.zeros(1), "norms": np.zeros((1, 1))}
        folder.write(key[None], {**arrays, "payload_keys": payload[None]}, {"layout": {"layers": []}})
    assert folder.collect(payloads)[0] == 0
    assert folder.collect(payloads[:1])[0] == 1
    assert folder.missing(KEYS).tolist() == [False, True]
    assert Store(tmp_path).gradients("a" * 32).read(KEYS[:1])["value"].tolist() == [[0.0, 0.0, 0.0]]
    assert folder.collect(None) == (0, 0)


def test_a_link_to_itself_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(StoreError, match="no regular file"), open_regular(loop):
        pass


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc, where a file that cannot be read is at hand")
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="bad") as raised, open_regular(bad) as handle:
        handle.read(8)
    assert raised.value.filename == str(bad)

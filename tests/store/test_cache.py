"""Looking after the store changes no stored value: verify finds what was altered, gc drops only what it was told to."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from influence_cli.cli.main import run
from influence_cli.store import Keys, Store
from influence_cli.store.maintenance import collect, list_entries
from tests.cases import verify

RNG = np.random.default_rng(5)


def filled(root: Path, shards: int = 4, rows: int = 5) -> tuple[Store, Keys, np.ndarray]:
    """A store with one output folder of several small shards, a direction, and what was written."""
    store = Store(root)
    keys = RNG.integers(0, 256, (shards * rows, 16), dtype=np.uint8)
    values = RNG.normal(size=(shards * rows, 3)).astype(np.float32)
    for k in range(shards):
        here = slice(k * rows, (k + 1) * rows)
        store.folder("outputs", "m").write(keys[here], {"logits": values[here]})
    store.directions.write("d", {"w": values}, {"phi": 0.5, "m": 7, "objective": "utility", "halves": False})
    return store, keys, values


def test_entries_count_files_rows_and_bytes(tmp_path: Path) -> None:
    filled(tmp_path)
    outputs, direction = list_entries(tmp_path)
    assert (outputs.kind, outputs.files, outputs.rows) == ("outputs", 4, 20)
    assert outputs.bytes == sum(f.stat().st_size for f in (tmp_path / "outputs" / "m").glob("*.safetensors"))
    assert direction.about == "utility, Phi 0.5, 7 target rows"


def test_gc_without_a_list_merges_shards_and_keeps_every_value(tmp_path: Path) -> None:
    store, keys, values = filled(tmp_path)
    done = collect(tmp_path, None)
    assert done["rows_dropped"] == 0
    assert done["shards_merged"] == 4
    assert len(list((tmp_path / "outputs" / "m").glob("*.safetensors"))) == 1
    assert np.array_equal(store.folder("outputs", "m").read(keys)["logits"], values)
    assert collect(tmp_path, None)["shards_merged"] == 0  # a second time there is nothing to do


def test_gc_drops_only_rows_that_no_listed_manifest_has(tmp_path: Path) -> None:
    store, keys, values = filled(tmp_path)
    done = collect(tmp_path, keys[:7])
    assert done["rows_dropped"] == 13
    folder = store.folder("outputs", "m")
    assert folder.missing(keys).tolist() == [False] * 7 + [True] * 13
    assert np.array_equal(folder.read(keys[:7])["logits"], values[:7])


def test_gc_of_a_row_that_stands_twice_keeps_the_one_that_is_read(tmp_path: Path) -> None:
    store, keys, values = filled(tmp_path)
    store.folder("outputs", "m").write(keys[:3], {"logits": values[:3] + 1})
    before = store.folder("outputs", "m").read(keys)["logits"]
    collect(tmp_path, None)
    assert np.array_equal(store.folder("outputs", "m").read(keys)["logits"], before)


def test_gc_spares_young_temporary_files(tmp_path: Path) -> None:
    filled(tmp_path)
    folder = tmp_path / "outputs" / ("a" * 32)
    folder.mkdir()
    young, old = (folder / f".{name * 32}.safetensors.1.ab.tmp" for name in "bc")
    damaged = folder / f".damaged-{'d' * 32}.safetensors"
    for file in (young, old, damaged):
        file.write_bytes(b"x")
    two_days_ago = time.time() - 2 * 86400
    os.utime(old, (two_days_ago, two_days_ago))
    assert collect(tmp_path, None)["files_removed"] == 2
    assert young.exists()
    assert not old.exists()
    assert not damaged.exists()


@pytest.mark.parametrize("where", ["outputs/m", "directions"])
def test_verify_sets_aside_what_was_altered(tmp_path: Path, where: str) -> None:
    filled(tmp_path)
    assert verify(tmp_path) == (5, [])
    file = sorted((tmp_path / where).glob("*.safetensors"))[0]
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))
    files, damaged = verify(tmp_path)
    assert files == 5
    assert len(damaged) == 1
    assert file.name in damaged[0]
    assert not file.exists()
    assert verify(tmp_path) == (4, [])


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path)
    at = ["--store", str(tmp_path), "--json"]
    assert run(["cache", "ls", *at]) == 0
    assert [e["kind"] for e in json.loads(capsys.readouterr().out)["entries"]] == ["outputs", "directions"]
    assert run(["cache", "verify", *at]) == 0
    assert json.loads(capsys.readouterr().out)["damaged"] == []
    assert run(["cache", "gc", *at]) == 0
    assert json.loads(capsys.readouterr().out)["shards_merged"] == 4
    assert run(["cache", "frob", *at]) == 2
    assert "ls, verify, gc or key" in capsys.readouterr().err

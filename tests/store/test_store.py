"""The store's files: their layout byte by byte, names of content, damage, and writes that are whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from influence_cli.errors import StoreError
from influence_cli.store import Store
from influence_cli.store.files import DamagedFile, replacing, write_bytes
from influence_cli.store.keys import canonical_json, digest_of_sorted, fingerprint, payload_key, row_key, row_keys
from influence_cli.store.sealed import tensor_digest
from influence_cli.store.shards import ShardFolder, positions, unique
from influence_cli.store.tensors import read_metadata, read_tensors, write_tensors
from tests.cases import (
    Example,
    Heard,
    call_cli,
    column,
    draw_features,
    examples,
    feature_table,
    job_of,
    same_scores,
    write,
)
from tests.opened import fill, score

Keys = NDArray[np.uint8]


def keys_of(*numbers: int) -> Keys:
    """Keys whose last byte is the number."""
    out = np.zeros((len(numbers), 16), np.uint8)
    out[:, 15] = numbers
    return out


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON header of a safetensors file and the bytes after it."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


# ---- the layout of a shard ----------------------------------------------------------------------------------------


def test_a_shard_byte_by_byte(tmp_path: Path) -> None:
    logits = np.arange(6, dtype=np.float32).reshape(3, 2)
    ShardFolder(tmp_path, {"about": "people"}).write(keys_of(3, 1, 2), {"logits": logits})
    (shard,) = tmp_path.glob("*.safetensors")
    in_order = keys_of(1, 2, 3).tobytes()
    assert shard.stem == hashlib.blake2b(in_order, digest_size=16, person=b"influence.set").hexdigest()
    header, data = header_of(shard)
    assert list(header["__metadata__"]) == ["influence"]
    first, last = header["keys"]["data_offsets"]
    assert (header["keys"]["dtype"], header["keys"]["shape"]) == ("U8", [3, 16])
    assert data[first:last] == in_order
    first, last = header["logits"]["data_offsets"]
    assert (header["logits"]["dtype"], header["logits"]["shape"]) == ("F32", [3, 2])
    assert data[first:last] == logits[[1, 2, 0]].tobytes()
    assert set(header) == {"__metadata__", "keys", "logits"}
    own = json.loads(header["__metadata__"]["influence"])
    assert header["__metadata__"]["influence"] == canonical_json(own)
    assert own["meta"] == {"rows": 3, "of": f"{tmp_path.parent.name}/{tmp_path.name}"}
    assert set(own) == {"meta", "checksum", "meta_checksum"}
    assert json.loads((tmp_path / "spec.json").read_text()) == {"about": "people"}


def test_the_same_rows_in_any_order_write_the_same_bytes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(4, 3))
    order = np.array([2, 0, 3, 1])
    ShardFolder(tmp_path / "a" / "kind" / "name", {}).write(
        keys_of(9, 8, 7, 6), {"tangent": values, "extra": values[:, 0]}
    )
    ShardFolder(tmp_path / "b" / "kind" / "name", {}).write(
        keys_of(9, 8, 7, 6)[order], {"extra": values[order, 0], "tangent": values[order]}
    )
    (a,), (b,) = ((tmp_path / name).rglob("*.safetensors") for name in "ab")
    assert a.name == b.name
    assert a.read_bytes() == b.read_bytes()


def test_golden_names_that_stores_of_earlier_versions_rely_on() -> None:
    assert payload_key("influence.image", b"abc").hex() == "26ba8d68f3b7b5ec7f96612342694461"
    assert payload_key("influence.feat", b"abc").hex() == "23e8569a5a7793b2236152ec3a8d29ee"
    assert row_key(bytes(16), 3).hex() == "b4739464b0a4ce1ec73fdff5ff0d5c6f"
    assert row_key(bytes(16), None).hex() == "105b8bc78b3d6be2388f326ce7f8b8f4"
    assert digest_of_sorted(keys_of(2, 1)) == "aa9e4d062e0825dd897388ea0579d0b1"
    assert fingerprint("kind", 1, a=1, b=[1.5, None, "é"]) == "934db220ecd34037498262667ca9e6c2"


def test_a_shard_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without rows"):
        ShardFolder(tmp_path / "folder", {}).write(keys_of(), {"logits": np.zeros((0, 2))})
    assert not (tmp_path / "folder").exists()


# ---- names of content ---------------------------------------------------------------------------------------------


def test_a_relabel_changes_the_row_key_and_not_the_payload_key() -> None:
    payload = payload_key("influence.image", b"pixels")
    assert payload == payload_key("influence.image", b"pixels")
    names = {row_key(payload, label) for label in (None, 0, 1, -1, 2**40)}
    assert len(names) == 5
    assert payload not in names


def test_the_same_bytes_as_image_and_as_features_have_different_keys() -> None:
    assert payload_key("influence.image", b"1234") != payload_key("influence.feat", b"1234")


def test_row_keys_of_many_are_those_of_each() -> None:
    payloads, labels = keys_of(1, 1, 2), np.array([0, 1, 0])
    expected = [row_key(p.tobytes(), int(y)) for p, y in zip(payloads, labels, strict=True)]
    assert [k.tobytes() for k in row_keys(payloads, labels)] == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def reversed_everywhere(value: Any) -> Any:
    """The same value with every dict filled in the opposite order."""
    if isinstance(value, dict):
        return {k: reversed_everywhere(v) for k, v in reversed(value.items())}
    return [reversed_everywhere(v) for v in value] if isinstance(value, list) else value


@settings(max_examples=60, deadline=None, database=None)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_a_fingerprint_ignores_the_order_of_dicts(content: dict[str, Any]) -> None:
    assert fingerprint("x", 1, content=content) == fingerprint("x", 1, content=reversed_everywhere(content))


def test_a_fingerprint_depends_on_kind_revision_and_every_value() -> None:
    names = [
        fingerprint("a", 1, x=1),
        fingerprint("b", 1, x=1),
        fingerprint("a", 2, x=1),
        fingerprint("a", 1, x=2),
        fingerprint("a", 1, x=1.5),
        fingerprint("a", 1, x="1"),
        fingerprint("a", 1, y=1),
        fingerprint("a", 1, x=[1, 2]),
        fingerprint("a", 1, x=[2, 1]),
        fingerprint("a", 1),
    ]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match="Out of range float"):
        fingerprint("a", 1, x=float("nan"))


def test_the_name_of_a_multiset_of_keys() -> None:
    assert digest_of_sorted(keys_of(1, 2, 2)) == digest_of_sorted(keys_of(2, 1, 2))
    assert digest_of_sorted(keys_of(1, 2, 2)) != digest_of_sorted(keys_of(1, 2))


FEW_KEYS = st.lists(st.integers(0, 9), max_size=30)


@settings(max_examples=100, deadline=None, database=None)
@given(FEW_KEYS, FEW_KEYS)
def test_positions_against_a_dict(wanted: list[int], among: list[int]) -> None:
    first: dict[int, int] = {}
    for k, number in enumerate(among):
        first.setdefault(number, k)
    found = positions(keys_of(*wanted), keys_of(*among))
    assert found.tolist() == [first.get(number, -1) for number in wanted]


@settings(max_examples=100, deadline=None, database=None)
@given(FEW_KEYS)
def test_unique_against_a_dict(numbers: list[int]) -> None:
    first: dict[int, int] = {}
    for k, number in enumerate(numbers):
        first.setdefault(number, k)
    assert unique(keys_of(*numbers)).tolist() == list(first.values())


# ---- a folder of shards -------------------------------------------------------------------------------------------


def test_rows_come_back_in_the_order_asked_for_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, {})
    folder.write(keys_of(5, 3), {"v": np.array([50.0, 30.0])})
    folder.write(keys_of(4), {"v": np.array([40.0])})
    again = ShardFolder(tmp_path, {})
    assert again.read(keys_of(3, 4, 5, 3))["v"].tolist() == [30.0, 40.0, 50.0, 30.0]
    assert again.missing(keys_of(3, 9, 4)).tolist() == [False, True, False]
    with pytest.raises(KeyError, match="1 rows are not in"):
        again.read(keys_of(3, 9))


def test_where_two_shards_hold_a_row_the_lowest_name_wins(tmp_path: Path) -> None:
    for numbers in ((1, 2), (1, 3), (1, 4), (1, 5)):
        value = np.full(2, float(numbers[1]))
        ShardFolder(tmp_path, {}).write(keys_of(*numbers), {"v": value})
    lowest = min(tmp_path.glob("*.safetensors"), key=lambda p: p.name)
    expected = load_file(lowest)["v"][0]
    assert ShardFolder(tmp_path, {}).read(keys_of(1))["v"].tolist() == [expected]


def test_temporary_hidden_and_foreign_files_are_no_shards(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, {})
    folder.write(keys_of(1), {"v": np.array([10.0])})
    (shard,) = tmp_path.glob("*.safetensors")
    whole = shard.read_bytes()
    for name in (f".{shard.name}.123.abcd.tmp", f".damaged-{shard.name}", f"{shard.name}.tmp", "notes.txt"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "spec.json").write_text("{ not json")
    heard = Heard()
    again = ShardFolder(tmp_path, {}, heard)
    assert again.missing(keys_of(1, 2)).tolist() == [False, True]
    assert heard.warnings == []


def test_a_shard_that_another_run_took_away_meanwhile_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ShardFolder(tmp_path, {})
    folder.write(keys_of(1), {"v": np.array([10.0])})
    there = folder._shards()
    monkeypatch.setattr(folder, "_shards", lambda: [*there, tmp_path / f"{'f' * 32}.safetensors"])
    assert folder.missing(keys_of(1, 2)).tolist() == [False, True]


# ---- damage -------------------------------------------------------------------------------------------------------


def test_no_flipped_bit_and_no_truncation_goes_unnoticed(tmp_path: Path) -> None:
    path, damaged = tmp_path / "whole.safetensors", tmp_path / "damaged.safetensors"
    tensors = {"keys": keys_of(1, 2), "v": np.array([1.5, -2.5], np.float32)}
    meta = {"rows": 2}
    write_tensors(path, tensors, meta)
    raw = path.read_bytes()
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 1 << (position % 8)
        damaged.write_bytes(changed)
        for read in (lambda: read_tensors(damaged), lambda: (tensors, read_metadata(damaged))):
            try:
                found, about = read()
            except DamagedFile:
                continue
            assert about == meta, position
            assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in tensors.items()}
    for length in range(len(raw)):
        damaged.write_bytes(raw[:length])
        with pytest.raises(DamagedFile):
            read_tensors(damaged)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_value(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 0x10
    path.write_bytes(raw)


def flip_metadata(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"checksum", b"chacksum", 1))


DAMAGE = (cut, empty, flip_value, flip_metadata)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: d.__name__)
@pytest.mark.parametrize("folder", ["outputs", "tangents"])
def test_a_damaged_shard_is_named_set_aside_and_recomputed(
    folder: str, damage: Callable[[Path], None], tmp_path: Path, tabular: Path, tabular_run: Path
) -> None:
    store = tmp_path / "store"
    how = {"shard_rows": 8, "batch_size": 8}
    before = score(job_of(tabular, tabular_run, store, **how))
    shard = sorted((store / folder).rglob("*.safetensors"))[1]
    damage(shard)
    heard = Heard()
    job = job_of(tabular, tabular_run, store, listener=heard, **how)
    assert fill(job) == 8
    assert [w for w in heard.warnings if str(shard) in w and "set aside" in w]
    assert shard.with_name(f".damaged-{shard.name}").exists()
    assert same_scores(score(job), before)
    calm = Heard()
    assert fill(job_of(tabular, tabular_run, store, listener=calm)) == 0
    assert calm.warnings == []


@pytest.mark.parametrize("appended", [False, True], ids=["nothing new", "new rows"])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: d.__name__)
@pytest.mark.parametrize("which", ["whole", "half"])
def test_a_damaged_direction_is_set_aside_and_measured_again_where_it_is_needed(
    which: str, damage: Callable[[Path], None], appended: bool, tmp_path: Path, tabular_run: Path
) -> None:
    store = tmp_path / "store"
    first = job_of(write(feature_table(examples()), tmp_path / "a.parquet"), tabular_run, store)
    score(first)
    name = first.direction(first.members[0], "utility", half=which == "half")
    path = store / "directions" / f"{name}.safetensors"
    whole = load_file(path)
    damage(path)
    new = [Example("new", draw_features(77), 1)] if appended else []
    rows = write(feature_table(examples() + new), tmp_path / "b.parquet")
    heard = Heard()
    table = score(job_of(rows, tabular_run, store, listener=heard))
    assert same_scores(table, score(job_of(rows, tabular_run, None)))
    if appended:  # the direction itself was needed
        assert [w for w in heard.warnings if str(path) in w and "set aside" in w]
        assert path.with_name(f".damaged-{path.name}").exists()
        again = load_file(path)
        assert all(np.allclose(whole[n], again[n], rtol=1e-6, atol=1e-9) for n in whole)


def test_damaged_notes_for_people_change_nothing(tmp_path: Path, tabular: Path, tabular_run: Path) -> None:
    store = tmp_path / "store"
    before = score(job_of(tabular, tabular_run, store))
    for path in (*store.rglob("spec.json"), store / "timings.json"):
        path.write_text("[")
    job = job_of(tabular, tabular_run, store)
    assert fill(job) == 0
    assert np.array_equal(column(score(job)), column(before))
    assert Store(store).timing("anything") is None


# ---- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_whole_and_no_scraps(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"v": np.arange(3.0)}, {})
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(os, at, fail)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {"v": np.arange(9.0)}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_writer_that_raises_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            assert temporary.name.startswith(".")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def test_a_file_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def noted(name: str) -> None:
        function = getattr(os, name)

        def note(*given: Any) -> None:
            calls.append(name)
            function(*given)

        monkeypatch.setattr(os, name, note)

    noted("fsync")
    noted("replace")
    write_bytes(tmp_path / "deep" / "file", b"data")
    assert (tmp_path / "deep" / "file").read_bytes() == b"data"
    assert calls[:2] == ["fsync", "replace"]


def test_a_place_that_cannot_be_written_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError) as error:
        write_bytes(tmp_path / "file" / "deep" / "x", b"")
    assert error.value.fix

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        write_bytes(tmp_path / "x", b"")


def test_a_store_that_is_a_file_exits_2(tmp_path: Path, tabular: Path, tabular_run: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    ran = call_cli("score", "--method", "ip", tabular, "--checkpoint", tabular_run, "--store", "store", cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert "fix: " in ran.err


# ---- checkpoints as foreign safetensors ----------------------------------------------------------------------------


def test_the_digest_of_weights_ignores_metadata_and_order_and_sees_every_value(tmp_path: Path) -> None:
    a, b = np.arange(3, dtype=np.float32), np.ones((2, 2), np.float16)

    def digest(tensors: dict[str, NDArray[Any]], metadata: dict[str, str] | None = None) -> str:
        save_file(tensors, tmp_path / "w.safetensors", metadata=metadata)
        return tensor_digest([tmp_path / "w.safetensors"])

    same = digest({"a": a, "b": b})
    assert digest({"b": b, "a": a}, {"made": "today"}) == same
    others = [{"a": a, "c": b}, {"a": a + 1e-6, "b": b}, {"a": a[::-1].copy(), "b": b}, {"a": a, "b": b.reshape(4)}]
    assert len({same, *(digest(t) for t in others)}) == 5


@pytest.mark.parametrize("damage", [cut, empty, lambda p: p.write_bytes(b"\x08" + bytes(7) + b"garbage!" * 9)])
@pytest.mark.parametrize("with_run_file", [True, False], ids=["run folder", "file alone"])
def test_a_damaged_checkpoint_exits_2_and_is_named(
    damage: Callable[[Path], None], with_run_file: bool, tmp_path: Path, tabular: Path, tabular_run: Path
) -> None:
    shutil.copytree(tabular_run, tmp_path / "RUN")
    weights = tmp_path / "RUN" / "model.safetensors"
    damage(weights)
    asked = "RUN" if with_run_file else "RUN/model.safetensors"
    ran = call_cli("score", "--method", "ip", tabular, "--checkpoint", asked, cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert asked in ran.err
    assert "fix: " in ran.err

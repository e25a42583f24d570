"""Keys made and sought in blocks are those that one row at a time has."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from influence_cli.data.ids import Ids, SeenIds
from influence_cli.data.row_names import named_rows
from influence_cli.store import keys as made
from influence_cli.store import shards
from influence_cli.store.keys import Keys, digest_of_sorted, fingerprint, key_order, keys_of_rows, row_keys, unique
from influence_cli.store.shards import Sought, index_in, positions


def few_bits(n: int, width: int = 16, seed: int = 0) -> Keys:
    """Keys of which many are equal, or differ in their last bytes alone."""
    found = np.zeros((n, width), np.uint8)
    found[:, -2:] = np.random.default_rng(seed).integers(0, 4, (n, 2))
    return found


def hashes(n: int, seed: int = 0) -> Keys:
    return np.random.default_rng(seed).integers(0, 256, (n, 16), dtype=np.uint8)


def near(n: int) -> Keys:
    """Keys whose first bytes are the same, so that they differ in those that an index takes the place of."""
    found = hashes(n, 3)
    found[:, :6] = 7
    found[: n // 2, 6:8] = 0
    return found


def by_row(person: bytes, rows: list[bytes]) -> list[bytes]:
    return [hashlib.blake2b(row, digest_size=16, person=person).digest() for row in rows]


def test_keys_of_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "BLOCK", 7)
    x = np.random.default_rng(0).normal(size=(20, 5)).astype("<f4")
    found = keys_of_rows(b"influence.feat", x)
    assert [k.tobytes() for k in found] == by_row(b"influence.feat", [row.tobytes() for row in x])
    assert [k.tobytes() for k in found] == [made.payload_key("influence.feat", row.tobytes()) for row in x]


@pytest.mark.parametrize(
    ("labels", "head"),
    [
        (np.arange(9), b""),
        (np.linspace(-1.0, 1.0, 9), b"number"),
        (np.arange(27).reshape(9, 3).astype(np.int8) % 2, b"labels"),
    ],
)
def test_keys_of_rows(labels: Any, head: bytes) -> None:
    payloads = hashes(9)
    rows = [p.tobytes() + head + y.tobytes() for p, y in zip(payloads, labels, strict=True)]
    assert [k.tobytes() for k in row_keys(payloads, labels)] == by_row(b"influence.row", rows)


@pytest.mark.parametrize("keys", [hashes(300), few_bits(300), few_bits(300, 24), near(300), hashes(1), hashes(0)])
def test_order_and_names_are_those_of_the_bytes(keys: Keys) -> None:
    rows = [k.tobytes() for k in keys]
    assert key_order(keys).tolist() == sorted(range(len(rows)), key=lambda k: rows[k])
    joined = b"".join(sorted(rows))
    assert digest_of_sorted(keys) == hashlib.blake2b(joined, digest_size=16, person=b"influence.set").hexdigest()
    assert unique(keys).tolist() == [k for k, row in enumerate(rows) if row not in rows[:k]]


@pytest.mark.parametrize("bucket", [1, 50, 10**6])
def test_places_in_buckets_and_among_few(bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BUCKET_ROWS", bucket)
    among = np.concatenate([hashes(400), few_bits(100), hashes(50), near(200)])
    others = np.concatenate([among[390:410], hashes(9, 1), few_bits(3)])
    for keys in (among, others, np.concatenate([hashes(300, 2), others, near(300)]), among[:0]):
        first: dict[bytes, int] = {}
        for place, key in enumerate(among):
            first.setdefault(key.tobytes(), place)
        wanted = [first.get(key.tobytes(), -1) for key in keys]
        assert positions(keys, among).tolist() == wanted
        assert index_in(keys, among).tolist() == wanted


def test_ids_that_came_before_are_known_whatever_chunks_they_come_in() -> None:
    rng = np.random.default_rng(0)
    seen, before = SeenIds(), set[str]()
    for size in rng.integers(0, 90, 200).tolist():
        ids = [None if k % 17 == 0 else f"row-{k}" for k in rng.integers(0, 9000, size).tolist()]
        wanted = list[bool]()
        for name in ids:
            wanted.append(name is not None and name in before)
            before |= set() if name is None else {name}
        assert seen.twice(ids) == wanted


def test_places_that_are_remembered_are_of_these_keys_among_those() -> None:
    sought, keys, among = Sought(), hashes(30), hashes(40)
    among[5:20] = keys[:15]
    other = among.copy()
    other[5] = 0
    assert sought.places(keys, among).tolist() == positions(keys, among).tolist()
    assert sought.places(keys, among.copy()).tolist() == positions(keys, among).tolist()
    assert sought.places(keys, other).tolist() == positions(keys, other).tolist()
    assert sought.places(keys.copy(), other).tolist() == positions(keys, other).tolist()
    assert sought.places(keys, among).tolist() == positions(keys, among).tolist()


@pytest.mark.parametrize(
    "names", [["b", "a", "\u00e9", "\uffff", "\U0001f600"], ['q"', "back\\slash", "line\n", "\x7f"]]
)
def test_the_name_of_rows_is_that_of_their_canonical_json(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influence_cli.data.row_names.BLOCK", 2)
    keys, splits = hashes(len(names)), np.array((["train", "val"] * 3)[: len(names)])
    rows = sorted([i, k.tobytes().hex(), s] for i, k, s in zip(names, keys, splits.tolist(), strict=True))
    assert named_rows(Ids(pa.array(names)), keys, splits) == fingerprint("manifest", 1, rows=rows)

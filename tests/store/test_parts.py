"""Parquet at an address is fetched as far as it is read, once, and read as it is here.

python -m pytest tests/store/test_parts.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.open import open_manifest
from influence_cli.data.tables import read_parquet, read_table
from influence_cli.errors import ManifestError, UsageError
from influence_cli.store import parts, remote
from influence_cli.store.parquet import write_sealed
from influence_cli.store.putting import put
from tests.cases import call_cli, column, environment
from tests.served import BUCKET, SECRET, asking_afresh, cut_off, s3_environment, s3_server

PART = 1 << 16


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as address:
        yield address


def asking(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> mock._patch_dict:
    monkeypatch.setattr(remote, "PART", PART)
    return asking_afresh(endpoint, monkeypatch)


@pytest.fixture
def here(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with asking(endpoint, monkeypatch):
        yield endpoint


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(start, bytes) of every part that is fetched from now on."""
    found, part_of = list[tuple[int, int]](), remote.part_of

    def counted(address: remote.Address, item: remote.Object, start: int, size: int) -> bytes:
        found.append((start, size))
        return part_of(address, item, start, size)

    monkeypatch.setattr(remote, "part_of", counted)
    return found


def address(name: str) -> str:
    return f"s3://{BUCKET}/{name}"


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A sealed manifest of 3 MB, nearly all of which is features."""
    rng = np.random.default_rng(0)
    rows, width = 3000, 256
    features = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=rows * width).astype(np.float32)), width)
    table = pa.table({
        "id": [f"r{k}" for k in range(rows)], "features": features.cast(pa.list_(pa.float32())),
        "label": rng.integers(0, 2, rows), "split": ["train"] * 2600 + ["val"] * 300 + ["test"] * 100,
    })  # fmt: skip
    with pa.OSFile(str(tmp_path / "wide.parquet"), "wb") as sink:
        write_sealed(table, sink)
    return tmp_path / "wide.parquet"


def test_narrow_columns_are_read_without_the_others(here: str, wide: Path, fetches: list[tuple[int, int]]) -> None:
    put(wide, address("narrow.parquet"))
    table = read_table(address("narrow.parquet"), ["id", "label"])
    assert table.equals(read_table(str(wide), ["id", "label"]))
    assert 0 < sum(size for _, size in fetches) < wide.stat().st_size / 4
    assert len(set(fetches)) == len(fetches)


def test_a_manifest_is_the_one_here_and_every_byte_is_fetched_once(
    here: str, wide: Path, fetches: list[tuple[int, int]]
) -> None:
    put(wide, address("whole.parquet"))
    there, own = open_manifest(address("whole.parquet")), open_manifest(str(wide))
    assert there.fingerprint == own.fingerprint
    assert np.array_equal(there.payload_keys, own.payload_keys)
    for _ in range(2):  # passes over the rows
        pairs = zip(there.payloads(np.arange(len(own))), own.payloads(np.arange(len(own))), strict=True)
        assert all(a == b and np.array_equal(x, y) for (a, x), (b, y) in pairs)
    assert len(set(fetches)) == len(fetches)
    assert sum(size for _, size in fetches) <= wide.stat().st_size


def test_the_command_line_says_of_it_what_it_says_of_one_here(here: str, wide: Path, tmp_path: Path) -> None:
    put(wide, address("scored.parquet"))
    trained = call_cli("retrain", wide, "--model", "linear", "--epochs", 1, "-o", "RUN", cwd=tmp_path)
    assert trained.code == 0, trained.err
    options = ("--checkpoint", "RUN", "--method", "ip", "-o")
    env = environment(s3_environment(here))
    for source, out, more in ((wide, "a.parquet", {}), (address("scored.parquet"), "b.parquet", env)):
        ran = call_cli("score", source, *options, out, "--store", out.split(".")[0], cwd=tmp_path, env=more or None)
        assert ran.code == 0, ran.err
    a, b = (pq.read_table(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    assert np.array_equal(column(a), column(b))
    ran = call_cli("curate", "b.parquet", "--budget", "5%", "-o", "clean.parquet", cwd=tmp_path, env=env)
    assert ran.code == 0, ran.err
    assert len(read_parquet(tmp_path / "clean.parquet", ["id"])) == 3000 - 130


def test_a_connection_that_drops_costs_the_part_in_hand(
    endpoint: str, wide: Path, monkeypatch: pytest.MonkeyPatch, fetches: list[tuple[int, int]]
) -> None:
    with asking(endpoint, monkeypatch):
        put(wide, address("dropped.parquet"))
    with cut_off(endpoint, cuts=2, after=40_000) as proxy, asking(proxy, monkeypatch):
        assert open_manifest(address("dropped.parquet")).fingerprint == open_manifest(str(wide)).fingerprint


def test_a_server_that_goes_away_and_a_file_that_changes_are_told_as_they_are(
    here: str, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(wide, address("changing.parquet"))
    monkeypatch.setattr(remote, "TRIES", 2)
    manifest = open_manifest(address("changing.parquet"))
    part_of = remote.part_of

    def gone(*_: object) -> bytes:
        raise OSError(f"connection dropped while {SECRET} was sent")

    def changed(*args: object) -> bytes:
        found = part_of(*args)  # type: ignore[arg-type]
        put(wide.with_name("other.parquet"), address("changing.parquet"))
        return found

    pq.write_table(pq.read_table(wide).slice(1), wide.with_name("other.parquet"))
    for what, broken in (("cannot read all of it .connection dropped while ...", gone), ("it has changed", changed)):
        monkeypatch.setattr(parts, "_by_place", {})
        monkeypatch.setattr(remote, "_copies", {})
        put(wide, address("changing.parquet"))
        monkeypatch.setattr(remote, "part_of", broken)
        with pytest.raises(UsageError, match=what) as caught:
            open_manifest(address("changing.parquet"))
        assert caught.value.where == address("changing.parquet")
        assert SECRET not in str(caught.value)
        monkeypatch.setattr(remote, "part_of", part_of)
    assert len(manifest) == 3000


def test_damage_at_an_address_is_named_by_it(here: str, wide: Path) -> None:
    raw = bytearray(wide.read_bytes())
    raw[len(raw) // 2] ^= 1
    (broken := wide.with_name("broken.parquet")).write_bytes(raw)
    put(broken, address("broken.parquet"))
    with pytest.raises(ManifestError, match="damaged Parquet") as caught:
        open_manifest(address("broken.parquet"))
    assert caught.value.where == address("broken.parquet")

"""Payload files are read once and named again from what the file system says; any change is seen."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.open import open_manifest
from influence_cli.store import Store
from influence_cli.store.file_keys import RACY_NS, StoredFileKeys
from influence_cli.store.tensors import METADATA_KEY
from tests.cases import call_cli, png, write

LONG_AGO = 1_700_000_000


def picture(k: int) -> bytes:
    return png(np.full((4, 4), 20 * k))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pictures and a manifest of their paths; files count as settled at once."""
    monkeypatch.setattr("influence_cli.store.file_keys.RACY_NS", 0)
    for k in range(4):
        (tmp_path / f"{k}.png").write_bytes(picture(k))
    table = pa.table({"id": list("abcd"), "path": [f"{k}.png" for k in range(4)], "label": [0, 1, 0, 1]})
    write(table, tmp_path / "m.parquet")
    return tmp_path


def keys(folder: Path) -> tuple[list[bytes], int]:
    """(payload keys, files read) with the folder's store."""
    read: list[Path] = []
    original = Path.read_bytes

    def counted(path: Path) -> bytes:
        read.append(path)
        return original(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", counted)
        manifest = open_manifest(folder / "m.parquet", known=Store(folder / "store").file_keys())
    return [k.tobytes() for k in manifest.payload_keys], len(read)


def test_files_are_read_once_and_their_keys_are_those_of_their_bytes(folder: Path) -> None:
    plain = [k.tobytes() for k in open_manifest(folder / "m.parquet").payload_keys]
    assert keys(folder) == (plain, 4)
    assert keys(folder) == (plain, 0)


def test_keys_of_an_earlier_version_are_made_again(folder: Path) -> None:
    """Names of images of more than 8 bits a pixel have changed, and a path does not say which images those are."""
    plain, _ = keys(folder)
    (place,) = (folder / "store").rglob("payload-files.parquet")
    table = pq.read_table(place)
    about = json.loads(table.schema.metadata[METADATA_KEY.encode()])
    assert about.pop("revision") == 2
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(about)}), place)
    assert keys(folder) == (plain, 4)
    assert keys(folder) == (plain, 0)


def other_bytes(path: Path) -> None:
    path.write_bytes(picture(9))


def same_size_and_times(path: Path) -> None:
    """Other bytes, as many, with the old times put back: only the time of change of status tells."""
    before, raw = path.stat(), bytearray(path.read_bytes())
    raw[-20] ^= 1
    path.write_bytes(bytes(raw))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_an_older_file(path: Path) -> None:
    other = path.with_name("other.png")
    other.write_bytes(picture(9))
    os.utime(other, (LONG_AGO, LONG_AGO))
    os.replace(other, path)


def replaced_by_a_link(path: Path) -> None:
    (path.parent / "elsewhere.png").write_bytes(picture(9))
    path.unlink()
    path.symlink_to("elsewhere.png")


@pytest.mark.parametrize(
    "change",
    [other_bytes, same_size_and_times, replaced_by_an_older_file, replaced_by_a_link],
    ids=lambda f: f.__name__,
)
def test_every_change_of_a_file_is_seen(folder: Path, change: object) -> None:
    before, _ = keys(folder)
    change(folder / "2.png")  # type: ignore[operator]
    after, read = keys(folder)
    assert read == 1
    assert after == [k.tobytes() for k in open_manifest(folder / "m.parquet").payload_keys]
    assert [a != b for a, b in zip(after, before, strict=True)] == [False, False, True, False]


def test_a_touched_file_is_read_again_and_has_its_key(folder: Path) -> None:
    before, _ = keys(folder)
    os.utime(folder / "1.png")
    assert keys(folder) == (before, 1)
    assert keys(folder) == (before, 0)


def test_a_file_changed_just_now_is_not_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influence_cli.store.file_keys.RACY_NS", 3600 * 10**9)
    assert keys(folder)[1] == 4
    assert keys(folder)[1] == 4
    assert RACY_NS >= 10**9


def test_a_file_that_changes_while_it_is_read_is_not_remembered(folder: Path) -> None:
    known = StoredFileKeys(folder / "k.parquet")
    assert known.find(folder / "0.png") is None
    (folder / "0.png").write_bytes(picture(7))
    known.put(folder / "0.png", b"k" * 16)
    assert known.find(folder / "0.png") is None


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:40] + b"\xff" + b[41:]])
def test_a_damaged_memory_of_keys_is_forgotten(folder: Path, damage: object) -> None:
    expected, _ = keys(folder)
    file = folder / "store" / "payload-files.parquet"
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    assert keys(folder)[0] == expected


def test_a_moved_folder_is_read_again_and_a_dry_run_remembers_nothing(folder: Path, tmp_path: Path) -> None:
    expected, _ = keys(folder)
    shutil.copytree(folder, folder / "copy" / "of", ignore=shutil.ignore_patterns("copy"))
    assert keys(folder / "copy" / "of") == (expected, 4)
    dry = Store(folder / "dry", remember=False)
    open_manifest(folder / "m.parquet", known=dry.file_keys())
    assert not (folder / "dry").exists()


def test_a_warm_score_reads_no_file_and_gc_forgets_files_that_are_gone(folder: Path, tmp_path: Path) -> None:
    table = pa.table(
        {"id": list("abcdefgh"), "path": [f"{k}.png" for k in range(8)], "label": [0, 1] * 4,
         "split": ["train"] * 4 + ["val"] * 2 + ["test"] * 2}
    )  # fmt: skip
    for k in range(4, 8):
        (folder / f"{k}.png").write_bytes(picture(k))
    write(table, folder / "m.parquet")
    trained = call_cli("retrain", "m.parquet", "--model", "linear", "--epochs", "1", "-o", "run", cwd=folder)
    assert trained.code == 0, trained.err
    asked = ("score", "--method", "ip", "m.parquet", "--checkpoint", "run", "--store", "store")
    cold = call_cli(*asked, "-o", "a.parquet", cwd=folder)
    assert cold.code == 0, cold.err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("influence_cli.data.payloads.read_payload", lambda *_: pytest.fail("a payload was read"))
        warm = call_cli(*asked, "-o", "b.parquet", cwd=folder)
    assert warm.code == 0, warm.err
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()
    (folder / "7.png").unlink()
    time.sleep(0.01)
    known = Store(folder / "store").file_keys()
    assert known.drop_stale() == 1
    assert known.drop_stale() == 0

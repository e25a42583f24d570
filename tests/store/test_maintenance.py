"""Looking after a store changes no score: verify, gc and key on a real one, interrupted and asked for nonsense."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest

from influence_cli.data.open import open_manifest
from influence_cli.errors import StoreError
from influence_cli.store.file_keys import StoredFileKeys
from influence_cli.store.layout import DAMAGED
from influence_cli.store.maintenance import collect
from tests.cases import Heard, call_cli, column, digits_table, examples, feature_table, job_of, verify, write
from tests.opened import fill, score


@pytest.fixture
def store(tmp_path: Path, tabular: Path, tabular_run: Path) -> Path:
    """A store of many small shards: 40 rows, five a shard."""
    fill(job_of(tabular, tabular_run, tmp_path / "store", shard_rows=5, batch_size=5))
    return tmp_path / "store"


def scores(manifest: Path, run: Path, store: Path) -> tuple[int, pa.Table]:
    """(rows computed, score table)."""
    job = job_of(manifest, run, store)
    return fill(job), score(job)


def shards(store: Path, kind: str) -> list[Path]:
    """The shards of one kind."""
    return sorted(p for p in (store / kind).rglob("*.safetensors") if not p.name.startswith("."))


@pytest.mark.parametrize("action", ["ls", "verify", "gc"])
def test_a_store_that_is_not_there_is_empty_and_is_not_made(action: str, tmp_path: Path) -> None:
    ran = call_cli("cache", action, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_action_and_a_missing_manifest_exit_2(store: Path) -> None:
    before = sorted(store.rglob("*"))
    for asked in (["gcc"], ["key"], ["gc", "--keep", "gone.parquet"]):
        ran = call_cli("cache", *asked, "--store", store, cwd=store.parent)
        assert ran.code == 2
        assert "fix: " in ran.err
    assert sorted(store.rglob("*")) == before


def test_damage_in_a_store_that_may_only_be_read_is_named_all_of_it(
    store: Path, tabular: Path, tabular_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def closed(path: Path, place: Path) -> None:
        if Path(place).name.startswith(DAMAGED):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        replace(path, place)

    hurt = [shards(store, kind)[1] for kind in ("outputs", "tangents")]
    for path in hurt:
        path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr("influence_cli.store.layout.os.replace", closed)
    files, damaged = verify(store)
    assert files == 26
    assert {text.split(" (")[0] for text in damaged} == {str(path) for path in hurt}
    assert all("it cannot be set aside" in text for text in damaged)
    with pytest.raises(StoreError, match=r"is damaged .* cannot be set aside: Permission denied"):
        scores(tabular, tabular_run, store)


def test_verify_names_what_is_damaged_and_only_that_is_computed_again(
    store: Path, tabular: Path, tabular_run: Path
) -> None:
    assert verify(store) == (26, [])
    before = scores(tabular, tabular_run, store)[1]
    hurt = shards(store, "outputs")[3]
    raw = bytearray(hurt.read_bytes())
    raw[-1] ^= 1
    hurt.write_bytes(raw)
    ran = call_cli("cache", "verify", "--store", store, cwd=store.parent)
    assert (ran.code, ran.json["files"]) == (0, 26)
    assert [d for d in ran.json["damaged"] if str(hurt) in d]
    computed, after = scores(tabular, tabular_run, store)
    assert computed == 5
    assert np.allclose(column(after), column(before), rtol=0, atol=1e-6 * np.abs(column(before)).max())


def test_gc_merges_shards_and_changes_no_answer(store: Path, tabular: Path, tabular_run: Path) -> None:
    _, before = scores(tabular, tabular_run, store)
    ran = call_cli("cache", "gc", "--store", store, cwd=store.parent)
    assert ran.json["rows_dropped"] == 0
    assert (len(shards(store, "outputs")), len(shards(store, "tangents"))) == (1, 2)
    computed, after = scores(tabular, tabular_run, store)
    assert computed == 0
    assert np.array_equal(column(after), column(before))
    again = call_cli("cache", "gc", "--store", store, cwd=store.parent).json
    assert (again["files_removed"], again["shards_merged"], again["bytes_freed"]) == (0, 0, 0)


def test_gc_drops_what_no_listed_manifest_holds_and_no_more(
    store: Path, tabular: Path, tabular_run: Path, tmp_path: Path
) -> None:
    few = write(feature_table(examples()[:25] + examples()[40:]), tmp_path / "few.parquet")
    relabelled = [r.relabelled() for r in examples()[20:30]]
    more = write(feature_table(relabelled), tmp_path / "more.parquet")
    flags = ["--keep", few, "--keep", more]
    ran = call_cli("cache", "gc", *flags, "--store", store, cwd=tmp_path)
    assert ran.json["rows_dropped"] == 3 * 10  # rows 30 to 39, of logits, tangents and half tangents
    assert scores(few, tabular_run, store)[0] == 0
    assert scores(tabular, tabular_run, store)[0] == 10


def test_gc_removes_old_rubbish_of_the_store_and_spares_the_rest(store: Path) -> None:
    folder = shards(store, "outputs")[0].parent
    young, old = (folder / f".{c * 32}.safetensors.1.{c * 2}.tmp" for c in "ab")
    damaged = store / "directions" / f".damaged-{'d' * 32}.safetensors"
    foreign = [store / ".editor-backup.tmp", store / "notes" / ".draft.tmp"]
    for path in (young, old, damaged, *foreign):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    yesterday = time.time() - 25 * 3600
    for path in (old, *foreign):
        os.utime(path, (yesterday, yesterday))
    collect(store, None)
    assert young.exists()
    assert not old.exists()
    assert not damaged.exists()
    assert all(path.exists() for path in foreign), "files that the store never wrote"


@pytest.mark.parametrize("moment", [1, 4, 9])
def test_an_interrupted_gc_loses_nothing(
    moment: int, store: Path, tabular: Path, tabular_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before = scores(tabular, tabular_run, store)
    unlink, removed = Path.unlink, []

    def interrupted(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".safetensors":
            removed.append(path)
            if len(removed) == moment:
                raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect(store, None)
    computed, after = scores(tabular, tabular_run, store)
    assert computed == 0
    assert np.array_equal(column(after), column(before))


def test_key_prints_the_keys_that_rows_are_stored_under(store: Path, tabular: Path) -> None:
    ran = call_cli("cache", "key", "--keep", tabular, cwd=store.parent)
    manifest = open_manifest(tabular)
    lines = [line.split(" ", 2) for line in ran.text.splitlines()]
    assert [line[2] for line in lines] == manifest.ids
    assert [bytes.fromhex(line[0]) for line in lines] == [k.tobytes() for k in manifest.payload_keys]
    assert [bytes.fromhex(line[1]) for line in lines] == [k.tobytes() for k in manifest.row_keys]


def test_damage_met_while_collecting_is_said(store: Path) -> None:
    shards(store, "tangents")[2].write_bytes(b"")
    heard = Heard()
    collect(store, None, heard)
    assert any("is damaged" in w for w in heard.warnings)


def test_gc_forgets_files_that_are_gone_and_undecodable_payloads_of_no_kept_manifest(
    tmp_path: Path, digits_run: Path
) -> None:
    rows = digits_table(60, 20, 0)
    (tmp_path / "img").mkdir()
    images = rows.column("image").to_pylist()
    images[3], images[4] = images[3][:60], images[4][:50]
    for k, image in enumerate(images):
        (tmp_path / "img" / f"{k}.png").write_bytes(image)
    table = rows.drop_columns(["image"]).append_column("path", pa.array([f"img/{k}.png" for k in range(80)]))
    write(table, tmp_path / "m.parquet")
    now, place = time.time_ns, tmp_path / "store"
    later = lambda: now() + 10_000_000_000  # noqa: E731 - the files are old enough to be remembered
    with mock.patch("influence_cli.store.file_keys.time.time_ns", later):
        asked = (
            "score",
            "--method",
            "ip",
            "m.parquet",
            "--checkpoint",
            digits_run,
            "--skip-bad",
            "--store",
            place,
            "-o",
            "s.parquet",
        )
        assert call_cli(*asked, cwd=tmp_path).code == 0
    assert len(StoredFileKeys(place / "payload-files.parquet")._load()) == 80
    before = (tmp_path / "s.parquet").read_bytes()
    (tmp_path / "img" / "70.png").unlink()
    (tmp_path / "img" / "4.png").unlink()
    bad = call_cli("cache", "gc", "--store", place, "--keep", "m.parquet", cwd=tmp_path)
    assert bad.code == 2
    gone = call_cli("cache", "gc", "--store", place, "--keep", "m.parquet", "--skip-bad", cwd=tmp_path)
    assert gone.code == 0, gone.err
    assert gone.json["payload_files_forgotten"] == 2
    assert gone.json["undecodable_forgotten"] == 1
    for k in (4, 70):
        (tmp_path / "img" / f"{k}.png").write_bytes(images[k])
    assert call_cli(*asked, cwd=tmp_path).code == 0
    assert (tmp_path / "s.parquet").read_bytes() == before
    again = call_cli("cache", "gc", "--store", place, cwd=tmp_path)
    assert again.json["undecodable_forgotten"] == 0

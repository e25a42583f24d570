"""Every note of the store is checked when it is read: a damaged one is named, set aside and found again, never used."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from influence_cli.errors import StoreError
from influence_cli.settings import GradSpec
from influence_cli.store import Store
from influence_cli.store.file_keys import StoredFileKeys
from influence_cli.store.maintenance import collect, examine
from influence_cli.store.notes import read_note, read_revisions, write_note
from tests.cases import Heard, call_cli, column, digits_table, job_of, write
from tests.opened import fill, score

HEX = "0123456789abcdef" * 2
NOTE = {"mean": [0.485, 0.456], "about": {"crop": 0.95, "none": None, "large": 1e300, "odd": float("nan")}, "n": 3}


def flip(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def plain(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def test_no_flipped_bit_and_no_truncation_of_a_note_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / f"{HEX}.json"
    write_note(path, NOTE)
    assert plain(read_note(path)) == plain(NOTE)
    raw = path.read_bytes()
    changed = [raw[:k] + bytes([raw[k] ^ 1 << (k % 8)]) + raw[k + 1 :] for k in range(len(raw))]
    used = 0
    for damaged in [*changed, *(raw[:k] for k in range(len(raw) - 1))]:
        path.write_bytes(damaged)
        heard = Heard()
        found = read_note(path, heard)
        if found is None:
            assert any("is damaged" in w and "set aside" in w for w in heard.warnings), damaged
            assert not path.exists()
        else:
            used += 1
            assert plain(found) == plain(NOTE)  # white space was hit
    assert used < 40


def test_a_note_of_another_name_is_no_note(tmp_path: Path) -> None:
    a, b = tmp_path / f"{HEX}.json", tmp_path / f"{HEX[::-1]}.json"
    write_note(a, NOTE)
    b.write_bytes(a.read_bytes())
    assert read_note(b) is None


def test_a_note_of_an_earlier_version_is_found_again_and_one_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path, heard = tmp_path / f"{HEX}.json", Heard()
    path.write_text(json.dumps({"mean": [0.885]}))
    assert read_note(path, heard) is None
    assert (heard.warnings, path.exists()) == ([], True)
    path.unlink()
    assert read_note(path, heard) is None
    path.mkdir()
    with pytest.raises(StoreError, match="cannot read a note") as error:
        read_note(path)
    assert error.value.fix


def test_revisions_of_an_earlier_version_count_as_far_as_they_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / f"{HEX}.json"
    good = {"code": "a", "outputs": {"k": [1.0, "nan"]}}
    path.write_text(json.dumps([good, {"code": 3, "outputs": {}}, {"code": "b", "outputs": {"k": ["one"]}}, 7]))
    assert read_revisions(path) == [good]
    write_note(path, [good])
    assert read_revisions(path) == [good]
    flip(path, '"a"', '"b"')
    heard = Heard()
    assert read_revisions(path, heard) == []
    assert "is damaged" in heard.warnings[0]


def test_a_damaged_note_of_a_model_changes_no_score_and_is_named(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "w.safetensors")
    rng, images = np.random.default_rng(0), []
    for _ in range(12):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(out, "PNG")
        images.append(out.getvalue())
    splits = ["train"] * 8 + ["val"] * 4
    rows = {"id": [f"i{k}" for k in range(12)], "image": pa.array(images, pa.binary()), "label": [0, 1, 2] * 4}
    write(pa.table({**rows, "split": splits}), tmp_path / "m.parquet")
    asked = ["score", "m.parquet", "--model", "test_resnet", "--checkpoint", "w.safetensors", "--method", "loss"]
    asked += ["--input-size", "32", "--num-classes", "3"]
    assert call_cli(*asked, "-o", "a.parquet", cwd=tmp_path).code == 0
    (note,) = [p for p in (tmp_path / ".influence" / "models").glob("*.json") if "mean" in p.read_text()]
    before = note.read_bytes()
    flip(note, "0.5", "0.9")
    ran = call_cli(*asked, "-o", "b.parquet", cwd=tmp_path)
    assert "is damaged (checksum differs); set aside" in ran.err
    assert note.with_name(f".damaged-{note.name}").exists()
    assert note.read_bytes() == before
    a, b = (column(pq.read_table(tmp_path / name)) for name in ("a.parquet", "b.parquet"))
    assert np.array_equal(a, b)
    flip(note, "0.5", "0.9")
    verified = call_cli("cache", "verify", "--json", cwd=tmp_path).json
    assert [d for d in verified["damaged"] if note.name in d]
    assert call_cli("cache", "verify", "--json", cwd=tmp_path).json["damaged"] == []


def test_what_was_noted_of_a_curvature_is_found_again(tmp_path: Path, tabular: Path, tabular_run: Path) -> None:
    spec, root = GradSpec(("self-lissa",), options={"self-lissa": {"solve": "ekfac"}}), tmp_path / "s"
    job = job_of(tabular, tabular_run, root, spec=spec)
    before = score(job)
    (note,) = root.glob("row_values/*/curvature.json")
    content = note.read_bytes()
    for damage in (lambda: note.write_bytes(content[:-9]), note.unlink):
        damage()
        heard = Heard()
        after = score(job_of(tabular, tabular_run, root, spec=spec, listener=heard))
        assert after.schema.metadata == before.schema.metadata
        assert np.allclose(column(after), column(before), rtol=1e-6, atol=0)
        assert json.loads(note.read_bytes())["note"] == json.loads(content)["note"]
    raw = bytearray(note.read_bytes())
    raw[raw.index(b'"fit"') + 9] ^= 1
    note.write_bytes(raw)
    heard = Heard()
    collect(root, None, heard, fits={job.fit.fingerprint if job.fit else ""})
    assert any("curvature.json is damaged" in w for w in heard.warnings)
    assert list(root.glob("row_values/*/*.safetensors")), "a damaged note decides nothing"


def test_notes_of_engines_and_of_undecodable_payloads_are_checked(tmp_path: Path, digits_run: Path) -> None:
    rows = digits_table(40, 20, 0)
    images = rows.column("image").to_pylist()
    images[3] = images[3][:60]
    write(rows.set_column(rows.column_names.index("image"), "image", pa.array(images)), tmp_path / "m.parquet")
    asked = ("score", "--method", "ip", "m.parquet", "--checkpoint", digits_run, "--skip-bad", "--store", "s")
    assert call_cli(*asked, "-o", "a.parquet", cwd=tmp_path).code == 0
    undecodable, timings = tmp_path / "s" / "undecodable.json", tmp_path / "s" / "timings.json"
    (engine,) = (tmp_path / "s" / "engines").glob("*.json")
    key = next(iter(json.loads(undecodable.read_text())["note"].values()))
    flip(undecodable, next(iter(key)), HEX)  # another row would be left out
    flip(engine, "engine", "engime")
    flip(timings, "e", "f")
    warm = call_cli(*asked, "-o", "b.parquet", cwd=tmp_path)
    assert warm.code == 0, warm.err
    for path in (undecodable, engine):
        assert f"{path.name} is damaged" in warm.err
    a, b = (pq.read_table(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    assert a.column("id").equals(b.column("id"))
    assert np.array_equal(column(a), column(b))
    assert list(json.loads(undecodable.read_text())["note"].values()) == [key]


def test_no_damage_to_the_keys_of_files_goes_unnoticed(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(bytes([k]))
    place = tmp_path / "payload-files.parquet"
    with mock.patch("influence_cli.store.file_keys.RACY_NS", 0):
        known = StoredFileKeys(place)
        for k in range(3):
            assert known.find(tmp_path / f"{k}.png") is None
            known.put(tmp_path / f"{k}.png", bytes([k]) * 16)
        known.save()
    raw, expected = place.read_bytes(), StoredFileKeys(place)._load()
    assert len(expected) == 3
    for position in range(0, len(raw), 9):
        place.write_bytes(raw[:position] + bytes([raw[position] ^ 1 << (position % 8)]) + raw[position + 1 :])
        heard = Heard()
        found = StoredFileKeys(place, listener=heard)._load()
        assert found in ({}, expected), position
        assert bool(heard.warnings) == (not place.exists())
    place.write_bytes(raw)
    pq.write_table(pq.read_table(place).replace_schema_metadata(None), place)  # of an earlier version
    assert StoredFileKeys(place)._load() == {}
    assert place.exists()


def test_verify_reads_every_note(tmp_path: Path, digits: Path, digits_run: Path) -> None:
    root = tmp_path / "s"
    fill(job_of(digits, digits_run, root))
    store = Store(root)
    store.write_undecodable("png", {"00": "cut"})
    store.write_task_revisions(HEX, [])
    store.write_model_note(HEX, NOTE)
    notes = [root / "undecodable.json", root / "timings.json", root / "tasks" / f"{HEX}.json"]
    notes += [root / "models" / f"{HEX}.json", *root.glob("engines/*.json")]
    found = examine(root)
    assert (found.notes, found.damaged) == (5, [])
    for note in notes:
        note.write_bytes(note.read_bytes()[:-5])
    assert len(examine(root).damaged) == 5
    assert examine(root).notes == 0
    assert fill(job_of(digits, digits_run, root)) == 0


def test_notes_written_by_many_at_once_stay_whole(tmp_path: Path) -> None:
    heard = Heard()

    def write_some(number: int) -> None:
        for k in range(5):
            store = Store(tmp_path / "s", heard)
            store.write_model_note(HEX, {"by": number})
            store.write_timing(f"t{number}", float(k))
            assert store.read_model_note(HEX) is not None

    threads = [threading.Thread(target=write_some, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard.warnings == []
    assert examine(tmp_path / "s").damaged == []

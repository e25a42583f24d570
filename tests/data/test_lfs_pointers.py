"""A Git LFS pointer in place of a file is called what it is, with how to get the file, wherever a file is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from influence_cli.errors import InfluenceError
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.store.lfs import is_pointer
from tests.cases import Heard, call_cli, digits_table, examples, feature_table, job_of, train_run, write

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
SOURCES = ("rows.csv", "rows.tsv", "rows.jsonl", "rows.parquet", "rows.npz")


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_of_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(POINTER)
    ran = call_cli("manifest", name, "-o", "m.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "Git LFS pointer" in ran.err
    assert f"in: {name}" in ran.err
    assert "git lfs pull" in ran.err
    assert not (tmp_path / "m.parquet").exists()


@pytest.mark.parametrize("name", ["part.parquet", "metadata.csv", "metadata.jsonl"])
def test_a_file_of_a_folder_of_rows(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "cat").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "cat" / "1.png")
    (folder / name).write_bytes(POINTER)
    ran = call_cli("manifest", "folder", "-o", "m.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "Git LFS pointer" in ran.err
    assert name in ran.err


def test_an_image_of_a_folder_or_of_a_column(tmp_path: Path) -> None:
    for k in range(4):
        place = tmp_path / "photos" / "ab"[k % 2] / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(place)
    (tmp_path / "photos" / "a" / "2.png").write_bytes(POINTER)
    ran = call_cli("manifest", "photos", "-o", "m.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "Git LFS pointer" in ran.err
    assert "2.png" in ran.err
    assert "git lfs pull" in ran.err
    ran = call_cli("manifest", "photos", "-o", "m.parquet", "--skip-bad", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "Git LFS pointer" in ran.err
    table = digits_table(6, 2, 0)
    images = [POINTER, *table.column("image").to_pylist()[1:]]
    write(table.set_column(table.column_names.index("image"), "image", [images]), tmp_path / "p.parquet")
    ran = call_cli(
        "score", "--method", "ip", "p.parquet", "--model", "mlp:4", "--checkpoint", "absent.pt", cwd=tmp_path
    )
    assert ran.code == 2
    assert "Git LFS pointer" in ran.err
    assert "row id=d0000" in ran.err


def test_what_is_beside_rows_and_tables(tmp_path: Path) -> None:
    write(feature_table(examples(12, 4, 4)).replace_schema_metadata(None), tmp_path / "m.parquet")
    (tmp_path / "classes.json").write_bytes(POINTER)
    with pytest.raises(InfluenceError, match="Git LFS pointer"):
        job_of(tmp_path / "m.parquet", tmp_path, None, listener=Heard())
    (tmp_path / "classes.json").unlink()
    for command in (["score", "t.parquet"], ["curate", "t.csv", "--manifest", "m.parquet"], ["evaluate", "t.jsonl"]):
        (tmp_path / command[1]).write_bytes(POINTER)
        ran = call_cli(*command, cwd=tmp_path)
        assert ran.code == 2
        assert "Git LFS pointer" in ran.err, command


@pytest.mark.parametrize(
    "name", ["w.pt", "w.pth", "w.bin", "w.safetensors", "model.safetensors.index.json", "hub/model.safetensors"]
)
def test_weights(name: str, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(InfluenceError, match="Git LFS pointer") as raised:
        find_checkpoint(str(tmp_path / name))
    assert raised.value.where == str(tmp_path / name)
    assert "git lfs pull" in raised.value.fix


def test_a_shard_and_a_run_folder(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "one.safetensors").write_bytes(POINTER)
    with pytest.raises(InfluenceError, match="Git LFS pointer") as raised:
        find_checkpoint(str(tmp_path))
    assert raised.value.where.endswith("one.safetensors")
    manifest = write(feature_table(examples(12, 4, 4)), tmp_path / "m.parquet")
    run = train_run(manifest, tmp_path / "RUN", "mlp:4")
    (run / "run.json").write_bytes(POINTER)
    with pytest.raises(InfluenceError, match="Git LFS pointer"):
        find_checkpoint(str(run))


def test_what_only_speaks_of_pointers_is_none(tmp_path: Path) -> None:
    assert not is_pointer(b"a file about version https://git-lfs.github.com/spec/v1")
    assert not is_pointer(tmp_path)
    assert not is_pointer(tmp_path / "absent")

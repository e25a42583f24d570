"""Rows name files in the folder of what names them, unless whoever runs the command says otherwise."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import influence_cli
from influence_cli.data.open import open_manifest
from influence_cli.data.outside import Inside, allowing_outside, outside_allowed
from influence_cli.errors import ManifestError
from tests.cases import call_cli, png

SAID = "is not in the folder of what names it"


def place(root: Path, *paths: str) -> Path:
    """A manifest in ``root/data`` with rows that name these paths, and files beside the folder and in it."""
    folder = root / "data"
    folder.mkdir()
    for k, file in enumerate((folder / "in.png", root / "out.png")):
        file.write_bytes(png(np.full((4, 4), k)))
    table = {
        "id": [f"r{k}" for k in range(len(paths))],
        "path": list(paths),
        "label": [k % 2 for k in range(len(paths))],
    }
    pq.write_table(pa.table(table), folder / "m.parquet")
    return folder


def test_a_path_that_leaves_the_folder_is_refused_with_its_row_and_allowed_when_asked(tmp_path: Path) -> None:
    folder = place(tmp_path, "in.png", "../out.png")
    with pytest.raises(ManifestError) as caught:
        open_manifest(folder / "m.parquet")
    said = str(caught.value)
    assert "row id=r1" in said
    assert "column path" in said
    assert SAID in said
    assert "--allow-outside" in said
    with allowing_outside(True):
        assert len(open_manifest(folder / "m.parquet")) == 2
    assert not outside_allowed()


def test_absolute_paths_links_and_names_with_dots_are_told_by_where_they_lead(tmp_path: Path) -> None:
    folder = place(tmp_path)
    (folder / "away.png").symlink_to(tmp_path / "out.png")
    (folder / "near.png").symlink_to("in.png")
    (folder / "up").symlink_to(tmp_path)
    (tmp_path / "data-2").mkdir()
    (tmp_path / "alias").symlink_to(folder)
    inside = Inside(tmp_path / "alias")
    within = ["in.png", "near.png", str(folder / "in.png"), "gone/x.png", "up/data/in.png", "a/../in.png"]
    beyond = [
        "away.png",
        "up/out.png",
        "../out.png",
        str(tmp_path / "out.png"),
        "/dev/zero",
        "..",
        ".",
        "../data-2/x.png",
    ]
    assert [p for p in within if not inside.holds(folder / p)] == []
    assert [p for p in beyond if inside.holds(folder / p)] == []
    assert Inside(Path("/")).holds(folder / "in.png")
    assert inside.holds(folder / "a\0b")  # whoever reads it says that there is no such name


@pytest.mark.parametrize("shape", ["path", "struct"])
def test_every_command_that_reads_rows_refuses_them_and_takes_them_when_asked(tmp_path: Path, shape: str) -> None:
    folder = place(tmp_path)
    paths = ["in.png", "in.png", "../out.png", "in.png"]
    held: Any = paths if shape == "path" else pa.array([{"bytes": None, "path": p} for p in paths])
    column = "path" if shape == "path" else "image"
    table = pa.table({"id": list("abcd"), column: held, "label": [0, 1, 0, 1], "split": ["train"] * 3 + ["val"]})
    pq.write_table(table, folder / "m.parquet")
    asked = ("cache", "key", "--keep", "data/m.parquet")
    refused = call_cli(*asked, cwd=tmp_path)
    assert refused.code == 2
    assert SAID in refused.err
    assert call_cli(*asked, "--allow-outside", cwd=tmp_path).code == 0
    assert call_cli(*asked, cwd=tmp_path, env={"INFLUENCE_ALLOW_OUTSIDE": "1"}).code == 0
    skipped = call_cli(*asked, "--skip-bad", "--json", cwd=tmp_path)
    assert skipped.code == 0
    (tmp_path / "influence.toml").write_text("allow_outside = true\n")
    assert call_cli(*asked, cwd=tmp_path).code == 0


def test_a_source_names_files_of_its_own_folder_and_a_manifest_elsewhere_says_what_it_takes(tmp_path: Path) -> None:
    place(tmp_path)
    source = tmp_path / "data" / "s.csv"
    source.write_text("image,label\n../out.png,a\nin.png,b\n")
    made = call_cli("manifest", "data/s.csv", "--image", "image", "-o", "data/made.parquet", cwd=tmp_path)
    assert made.code == 2
    assert SAID in made.err
    assert not (tmp_path / "data" / "made.parquet").exists()
    source.write_text("image,label,split\nin.png,a,train\nin.png,b,val\n")
    near = call_cli(
        "manifest", "data/s.csv", "--image", "image", "--id", "none", "-o", "data/made.parquet", cwd=tmp_path
    )
    assert near.code == 0
    assert "--allow-outside" not in near.err
    away = call_cli(
        "manifest", "data/s.csv", "--image", "image", "--id", "none", "-o", "other/made.parquet", cwd=tmp_path
    )
    assert away.code == 0
    assert "outside of the manifest's folder (2 rows)" in away.err
    assert "retrain other/made.parquet" in away.err
    assert "--model resnet18 --allow-outside" in away.err.replace("\n", " ")
    embedded = ("manifest", "data/s.csv", "--image", "image", "--embed", "-o", "other/embedded.parquet")
    assert "--allow-outside" not in call_cli(*embedded, cwd=tmp_path).err


def test_from_python_it_is_an_argument_and_rows_in_memory_are_the_programs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place(tmp_path, "in.png", "../out.png")
    options: dict[str, Any] = {"method": "random", "store": None, "model": "resnet18", "num_classes": 2}
    with pytest.raises(ManifestError, match="allow_outside=True"):
        influence_cli.plan(folder / "m.parquet", **options)
    monkeypatch.chdir(folder)
    assert len(open_manifest(pq.read_table(folder / "m.parquet"))) == 2
    with pytest.raises(Exception, match="allow_outside is 'yes'"):
        influence_cli.plan(folder / "m.parquet", allow_outside="yes")  # type: ignore[typeddict-item]


def test_no_table_says_that_files_outside_may_be_read(tmp_path: Path) -> None:
    folder = place(tmp_path, "in.png", "../out.png", "in.png")
    origin = {"stage": "score", "allow_outside": True, "model_flags": {"allow_outside": True}, "manifest": {}}
    table = pq.read_table(folder / "m.parquet").replace_schema_metadata(
        {"influence": str(origin).replace("'", '"').replace("True", "true")}
    )
    pq.write_table(table, folder / "m.parquet")
    ran = call_cli("score", "data/m.parquet", "--model", "resnet18", "--method", "random", "--no-store", cwd=tmp_path)
    assert ran.code == 2
    assert SAID in ran.err


@pytest.mark.skipif(os.geteuid() != 0, reason="a device takes root to make")
def test_devices_are_refused_wherever_they_are(tmp_path: Path) -> None:
    folder = place(tmp_path, "in.png", "dev")
    os.mknod(folder / "dev", 0o600 | 0o020000, os.makedev(1, 5))
    with allowing_outside(True), pytest.raises(ManifestError, match="a device, not a regular file"):
        open_manifest(folder / "m.parquet")
    shutil.rmtree(folder)


def test_a_link_in_the_folder_says_where_it_leads(tmp_path: Path) -> None:
    folder = place(tmp_path, "in.png", "away.png")
    (folder / "away.png").symlink_to(tmp_path / "out.png")
    with pytest.raises(ManifestError, match=r"away.png leads by a link to .*/out.png, which is not in the folder"):
        open_manifest(folder / "m.parquet")


def scored_by_path(tmp_path: Path) -> None:
    """Images in ``photos``, their manifest ``m.parquet`` beside it, and its scores ``s.parquet``."""
    (tmp_path / "photos").mkdir()
    for k in range(42):
        (tmp_path / "photos" / f"{k}.png").write_bytes(png(np.full((4, 4), k)))
    named = [f"photos/{k}.png" for k in range(42)]
    splits = ["train"] * 40 + ["val"] * 2
    table = {"id": [str(k) for k in range(42)], "path": named, "label": [k % 2 for k in range(42)], "split": splits}
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    asked = ("--method", "random", "--no-store", "-o", "s.parquet")
    ran = call_cli("score", "m.parquet", "--model", "mlp:4", *asked, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "--allow-outside" not in ran.err


def test_edits_written_elsewhere_say_what_reads_them_and_the_next_command_has_it(tmp_path: Path) -> None:
    scored_by_path(tmp_path)
    asked = ("curate", "s.parquet", "--budget", "1")
    here = call_cli(*asked, "-o", "clean.parquet", "--edits", "e.parquet", cwd=tmp_path)
    assert here.code == 0, here.err
    assert "--allow-outside" not in here.err
    away = call_cli(*asked, "-o", "out/clean.parquet", cwd=tmp_path)
    said = " ".join(away.err.split())
    assert "41 rows of out/clean.parquet name files outside of its folder: pass --allow-outside" in said
    assert "--allow-outside" in said.partition("influence retrain out/clean.parquet")[2]
    read = ("cache", "key", "--keep", "out/clean.parquet")
    assert call_cli(*read, cwd=tmp_path).code == 2
    assert call_cli(*read, "--allow-outside", cwd=tmp_path).code == 0
    score = ("score", "out/clean.parquet", "--target", "m.parquet", "--model", "mlp:4", "--method", "random")
    again = call_cli(*score, "--no-store", "--allow-outside", "-o", "t.parquet", cwd=tmp_path)
    assert again.code == 0, again.err
    assert "curate t.parquet --allow-outside" in " ".join(again.err.split())
    undo = ("curate", "e.parquet", "--undo", "--manifest", "clean.parquet", "-o", "back/m.parquet")
    assert "42 rows of back/m.parquet name files outside" in " ".join(call_cli(*undo, cwd=tmp_path).err.split())
    with allowing_outside(True):
        asked_so = call_cli(*asked, "-o", "further/clean.parquet", "--allow-outside", cwd=tmp_path)
    assert "name files outside" not in asked_so.err


@pytest.mark.parametrize(("link", "told"), [("symbolic", True), ("copy", False)])
def test_an_export_of_links_says_what_reads_it(tmp_path: Path, link: str, told: bool) -> None:
    scored_by_path(tmp_path)
    asked = ("curate", "s.parquet", "--budget", "1", "--export", "new", "--export-as", "folder", "--link", link)
    ran = call_cli(*asked, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert ("--allow-outside" in ran.err) is told
    made = call_cli("manifest", "new", "-o", "made.parquet", cwd=tmp_path)  # which follows links
    assert made.code == 0, made.err
    assert "--allow-outside" not in made.err  # what they lead to is in the folder of this manifest
    assert call_cli("cache", "key", "--keep", "made.parquet", cwd=tmp_path).code == 0
    away = call_cli("manifest", "new", "-o", "other/made.parquet", cwd=tmp_path)
    assert "--allow-outside" in away.err
    read = ("cache", "key", "--keep", "other/made.parquet")
    assert [call_cli(*read, *more, cwd=tmp_path).code for more in ((), ("--allow-outside",))] == [2, 0]

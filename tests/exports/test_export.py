"""Exports: what was edited is edited, what was not is as it was, nothing is lost and nothing is overwritten."""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import csv as pa_csv

from influence_cli.data.ingest import make_manifest
from influence_cli.data.open import open_manifest
from influence_cli.data.request import IngestRequest
from influence_cli.data.sources import Columns, open_source
from influence_cli.data.sources.origin import read_origin
from influence_cli.exports.csv_table import read_records, text_of
from influence_cli.exports.json_lines import read_objects
from tests.cases import Ran, call_cli, examples, feature_table, png, with_column, write

CLASSES = ("cat", "dog", "mouse")


def picture(k: int) -> bytes:
    """A picture that no other number has."""
    return png(np.full((4, 4, 3), [k % 251, k // 251, 7], np.uint8))


def run(*asked: Any, cwd: Path) -> Ran:
    """A command that has to succeed."""
    ran = call_cli(*asked, cwd=cwd)
    assert ran.code == 0, ran.err
    return ran


def refused(*asked: Any, cwd: Path, says: str) -> None:
    """A command that ends with exit code 2, says why and how to go on, and writes nothing."""
    before = sorted(cwd.rglob("*"))
    ran = call_cli(*asked, cwd=cwd)
    assert ran.code == 2, ran.err
    assert says in ran.err
    assert "fix: " in ran.err
    assert sorted(cwd.rglob("*")) == before


def scores(cwd: Path, proposed: dict[str, int | None], manifest: str = "m.parquet") -> dict[str, str]:
    """Score a manifest so that the rows ``proposed`` are the most harmful, in order, and that label theirs.

    Returns the manifest's ids, which is a check that the proposed rows are there.
    """
    run("score", manifest, "--method", "random", "-o", "s.parquet", cwd=cwd)
    table = pq.read_table(cwd / "s.parquet")
    ids = table.column("id").to_pylist()
    assert set(proposed) <= set(ids)
    order = {name: k for k, name in enumerate(proposed)}
    score = [float(order[i] - 100) if i in order else 1.0 + k for k, i in enumerate(ids)]
    table = with_column(table, "score", pa.array(score))
    table = with_column(table, "other_label", pa.array([proposed.get(i) for i in ids], pa.int64()))
    table = with_column(table, "other_probability", pa.array([0.9 if i in order else 0.1 for i in ids]))
    write(table, cwd / "s.parquet")
    return dict(zip(ids, ids, strict=True))


def curate(cwd: Path, action: str, budget: int, *more: Any) -> Ran:
    """Edit the ``budget`` most harmful rows."""
    return run(*asked(action, budget), *more, cwd=cwd)


def asked(action: str, budget: int) -> list[str]:
    """The command line of such a curation."""
    guard = [] if action == "reweight" else ["--budget", str(budget), "--set", "guard=false"]
    return ["curate", "s.parquet", "--action", action, *guard]


def files(root: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {f.relative_to(root).as_posix(): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


def photos(root: Path, splits: tuple[str, ...] = ("train", "validation", "test")) -> Path:
    """A folder of 36 images, with sub-folders, dots, spaces and letters of other alphabets in their names."""
    names = ["{k}.png", "a.b.{k}.png", "sub folder/{k}.png", "ж-é-{k}.PNG"]
    for k in range(36):
        split = splits[0 if k < 24 else 1 if k < 30 else 2] if splits else ""
        file = root / "photos" / split / CLASSES[k % 3] / names[k % 4].format(k=k)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(k))
    return root / "photos"


# ---- image folders ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("link", ["symbolic", "hard", "copy"])
def test_a_folder_comes_back_as_a_folder_and_loses_no_file(tmp_path: Path, link: str) -> None:
    before = files(photos(tmp_path))
    run("manifest", "photos", "-o", "in/m.parquet", cwd=tmp_path)
    proposed = {"train/cat/0.png": 1, "train/dog/a.b.1.png": 2, "train/mouse/sub folder/2.png": 0}
    scores(tmp_path, proposed, "in/m.parquet")
    curate(tmp_path, "relabel", 3, "-o", "c.parquet", "--export", "out/relabelled", "--link", link)
    moved = {
        "train/cat/0.png": "train/dog/0.png",
        "train/dog/a.b.1.png": "train/mouse/a.b.1.png",
        "train/mouse/sub folder/2.png": "train/cat/sub folder/2.png",
    }
    assert files(tmp_path / "out" / "relabelled") == {moved.get(name, name): data for name, data in before.items()}
    scores(tmp_path, {"train/cat/ж-é-3.PNG": None, "train/dog/a.b.13.png": None}, "c.parquet")
    curate(tmp_path, "trim", 2, "--export", "out/trimmed", "--link", link)
    gone = {"train/cat/ж-é-3.PNG", "train/dog/a.b.13.png"}
    after = {moved.get(name, name): data for name, data in before.items() if name not in gone}
    assert files(tmp_path / "out" / "trimmed") == after
    assert files(photos(tmp_path)) == before
    for file in (f for f in (tmp_path / "out").rglob("*") if not f.is_dir()):
        assert file.is_symlink() == (link == "symbolic")
        assert (file.stat().st_nlink > 1) == (link == "hard")
        assert link != "symbolic" or not os.path.isabs(os.readlink(file))


def test_links_still_lead_to_the_images_where_the_folder_is_reached_by_a_link(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "away")
    run("manifest", "photos", "-o", "m.parquet", cwd=tmp_path)
    scores(tmp_path, {})
    curate(tmp_path, "trim", 0, "--export", "near/out")
    assert files(tmp_path / "far" / "away" / "out") == files(tmp_path / "photos")


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("splits", [(), ("train", "test", "test"), ("train", "dev", "eval")])
def test_folder_manifest_curate_folder_and_again_keeps_ids(tmp_path: Path, splits: tuple[str, ...]) -> None:
    """Also where val rows were drawn by us: they go back into the folder that they came from."""
    before = files(photos(tmp_path, splits))
    run("manifest", "photos", "-o", "m.parquet", cwd=tmp_path)
    first = open_manifest(tmp_path / "m.parquet")
    train = [i for i, s in zip(first.ids, first.splits.tolist(), strict=True) if s == "train"]
    scores(tmp_path, {train[3]: None, train[7]: None})
    curate(tmp_path, "trim", 2, "--export", "out")
    assert files(tmp_path / "out") == {n: d for n, d in before.items() if n not in (train[3], train[7])}
    run("manifest", "out", "-o", "again.parquet", cwd=tmp_path)
    again = open_manifest(tmp_path / "again.parquet")
    kept = {i: (int(y), s) for i, y, s in zip(first.ids, first.labels, first.splits.tolist(), strict=True)}
    found = {i: (int(y), s) for i, y, s in zip(again.ids, again.labels, again.splits.tolist(), strict=True)}
    assert found == {i: v for i, v in kept.items() if i not in (train[3], train[7])}
    assert again.classes == first.classes
    scores(tmp_path, {train[0]: (kept[train[0]][0] + 1) % 3}, "again.parquet")
    curate(tmp_path, "relabel", 1, "--export", "third")
    run("manifest", "third", "-o", "third.parquet", cwd=tmp_path)
    third = open_manifest(tmp_path / "third.parquet")
    assert len(set(third.ids) - set(again.ids)) == 1
    assert sorted(files(tmp_path / "third").values()) == sorted(files(tmp_path / "out").values())


def test_names_that_clash_are_told_apart_and_never_lost(tmp_path: Path) -> None:
    for k in range(12):
        for c, name in enumerate(CLASSES):
            file = tmp_path / "photos" / "train" / name / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(100 * c + k))
    (tmp_path / "photos" / "train" / "dog" / "0-2.png").write_bytes(picture(900))
    (tmp_path / "photos" / "train" / "dog" / "1.PNG").write_bytes(picture(901))
    for folder, number in (("cat/9.jpg", 902), ("mouse/x.png", 903)):  # folders with names of files
        (tmp_path / "photos" / "train" / folder).mkdir()
        (tmp_path / "photos" / "train" / folder / "y.png").write_bytes(picture(number))
    (tmp_path / "photos" / "train" / "cat" / "x.png").write_bytes(picture(904))
    (tmp_path / "photos" / "train" / "mouse" / "9.jpg").write_bytes(picture(905))
    before = files(tmp_path / "photos")
    run("manifest", "photos", "-o", "m.parquet", "--split", "100/0/0", cwd=tmp_path)
    proposed: dict[str, int | None] = {
        "train/cat/0.png": 1, "train/mouse/0.png": 1, "train/cat/1.png": 1, "train/mouse/1.png": 1,
        "train/mouse/x.png/y.png": 0, "train/mouse/9.jpg": 0,
    }  # fmt: skip
    scores(tmp_path, proposed)
    ran = curate(tmp_path, "relabel", 6, "--export", "out")
    after = files(tmp_path / "out")
    assert sorted(after.values()) == sorted(before.values())
    moved = {name: data for name, data in after.items() if before.get(name) != data}
    assert {before[i] for i in proposed} == set(moved.values())
    assert {"train/dog/0-3.png", "train/dog/0-4.png", "train/dog/1-2.png", "train/dog/1-3.png"} <= set(moved)
    low = [name.casefold() for name in after]
    assert all(low.count(name.casefold()) == 1 for name in moved)
    assert "6 files have the name of another" in ran.err


def test_embedded_images_become_files_with_the_suffix_of_their_format(tmp_path: Path) -> None:
    rows, kinds = [], ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]
    for k in range(12):
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), 9 * k, np.uint8)).save(buffer, kinds[k % 6])
        rows.append({"bytes": buffer.getvalue(), "path": f"p/{k}.jpeg" if k >= 6 else None})
    table = pa.table(
        {
            "id": [f"../{'.' * (k % 2)}é/{k}" for k in range(12)],
            "image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": [k % 2 for k in range(12)],
            "split": ["train"] * 10 + ["val", "test"],
        }
    )
    write(table.replace_schema_metadata({"classes": '["été", "bird.x"]'}), tmp_path / "m.parquet")
    scores(tmp_path, {table.column("id")[4].as_py(): None})
    curate(tmp_path, "trim", 1, "--export", "out", "--export-as", "folder")
    expected = {
        "train/été/_.._é_0.png": 0, "train/bird.x/_.._.é_1.jpg": 1, "train/été/_.._é_2.gif": 2,
        "train/bird.x/_.._.é_3.bmp": 3, "train/bird.x/_.._.é_5.tif": 5, "train/été/6.jpeg": 6,
        "train/bird.x/7.jpeg": 7, "train/été/8.jpeg": 8, "train/bird.x/9.jpeg": 9, "val/été/10.jpeg": 10,
        "test/bird.x/11.jpeg": 11,
    }  # fmt: skip
    assert files(tmp_path / "out") == {name: rows[k]["bytes"] for name, k in expected.items()}


def test_an_embedded_folder_comes_back_with_its_names(tmp_path: Path) -> None:
    before = files(photos(tmp_path))
    run("manifest", "photos", "--embed", "-o", "m.parquet", cwd=tmp_path)
    scores(tmp_path, {"train/cat/0.png": None})
    curate(tmp_path, "trim", 1, "--export", "out")
    assert files(tmp_path / "out") == {n: d for n, d in before.items() if n != "train/cat/0.png"}
    assert not any(f.is_symlink() for f in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\nb", "\x7f", ".hidden", "é" * 128])
def test_class_names_that_cannot_be_folders_are_named(tmp_path: Path, name: str) -> None:
    table = pa.table({"id": ["a", "b"], "image": [picture(0), picture(1)], "label": [0, 1]})
    write(table.replace_schema_metadata({"classes": json.dumps(["fine", name])}), tmp_path / "m.parquet")
    scores(tmp_path, {})
    export = [*asked("trim", 0), "--export", "out", "--export-as", "folder"]
    refused(*export, cwd=tmp_path, says="class 1 is named")


def test_numbered_classes_keep_their_order_as_folders(tmp_path: Path) -> None:
    table = pa.table({"id": [f"r{k}" for k in range(12)], "image": [picture(k) for k in range(12)], "label": range(12)})
    write(table, tmp_path / "m.parquet")
    scores(tmp_path, {})
    curate(tmp_path, "trim", 0, "--export", "out", "--export-as", "folder")
    run("manifest", "out", "-o", "again.parquet", cwd=tmp_path)
    again = open_manifest(tmp_path / "again.parquet")
    first = open_manifest(tmp_path / "m.parquet")
    pairs = [{k.tobytes(): int(y) for k, y in zip(m.payload_keys, m.labels, strict=True)} for m in (first, again)]
    assert pairs[0] == pairs[1]


def test_two_classes_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "image": [picture(0), picture(1)], "label": [0, 1]})
    write(table.replace_schema_metadata({"classes": '["same", "same"]'}), tmp_path / "m.parquet")
    scores(tmp_path, {})
    export = [*asked("trim", 0), "--export", "out", "--export-as", "folder"]
    refused(*export, cwd=tmp_path, says="class 1 is named 'same', which cannot be a folder: class 0 has it")


def test_sub_folders_and_odd_names_stay_and_hidden_ones_are_no_part_of_the_source(tmp_path: Path) -> None:
    names = ["cat/cache./1.png", "cat/a\\b\n.png", "dog/x../y./2.png", "dog/*?.png"]
    for k, name in enumerate(names):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(picture(k))
    for hidden in ("cat/.cache/1.png", "dog/..x/.y/2.png"):
        (tmp_path / "photos" / hidden).parent.mkdir(parents=True)
        (tmp_path / "photos" / hidden).write_bytes(picture(9))
    run("manifest", "photos", "-o", "m.parquet", "--split", "100/0/0", cwd=tmp_path)
    scores(tmp_path, {"dog/x../y./2.png": 0})
    curate(tmp_path, "relabel", 1, "--export", "out")
    moved = {name.replace("dog/x..", "cat/x.."): picture(k) for k, name in enumerate(names)}
    assert files(tmp_path / "out") == moved


# ---- CSV and JSONL ------------------------------------------------------------------------------------------------


def csv_source(root: Path, end: str = "\r\n") -> Path:
    """A CSV as people have it: quotes, an empty line, other columns, labels with capitals, and two bad rows."""
    (root / "data" / "img").mkdir(parents=True)
    lines = ["\ufeffpath,note,kind,price,ref"]
    for k in range(14):
        (root / "data" / "img" / f"{k}.png").write_bytes(picture(k))
        note = ['"said ""hi"", twice"', "", "5,5".join('""'), " padded "][k % 4]
        kind = ['"Dog, big"', "Cat"][k % 2]
        lines.append(f"img/{k}.png,{note},{kind},{k}.50,r0{k}")
        if k == 4:
            lines.append("")
        if k in (2, 9):
            lines.append(f"img/missing-{k}.png,bad,Cat,0,x")
    (root / "data" / "rows.csv").write_bytes(end.join(lines).encode() + (b"" if end == "\n" else end.encode()))
    return root / "data" / "rows.csv"


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_embedded_images_that_changed_on_disk_are_refused(tmp_path: Path, name: str) -> None:
    for k in range(4):
        (tmp_path / f"{k}.png").write_bytes(picture(k))
    rows = [{"path": f"{k}.png", "label": "ab"[k % 2]} for k in range(4)]
    text = "path,label\n" + "".join(f"{r['path']},{r['label']}\n" for r in rows)
    (tmp_path / name).write_text(text if name == "rows.csv" else "".join(json.dumps(r) + "\n" for r in rows))
    run("manifest", name, "--embed", "--split", "100/0/0", "-o", "m.parquet", cwd=tmp_path)
    scores(tmp_path, {"row-1": None})
    curate(tmp_path, "trim", 1, "--export", f"out-{name}")
    assert (
        len((tmp_path / f"out-{name}").read_text().splitlines()) == len((tmp_path / name).read_text().splitlines()) - 1
    )
    (tmp_path / "2.png").write_bytes(picture(77))
    export = [*asked("trim", 1), "--export", f"again-{name}"]
    refused(*export, cwd=tmp_path, says="2.png has changed since it was embedded")
    (tmp_path / "2.png").unlink()
    refused(*export, cwd=tmp_path, says="2.png is not there any more")


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_csv_rows_are_the_sources_own_bytes_but_for_the_label(tmp_path: Path, end: str) -> None:
    source = csv_source(tmp_path, end)
    asked_for = ["--label", "kind", "--split", "100/0/0", "--skip-bad"]
    run("manifest", source, *asked_for, "-o", "m/m.parquet", cwd=tmp_path)
    manifest = open_manifest(tmp_path / "m" / "m.parquet")
    assert manifest.ids[:4] == ["row-0", "row-1", "row-2", "row-4"]  # row 3 was bad
    labels = dict(zip(manifest.ids, manifest.labels.tolist(), strict=True))
    scores(tmp_path, {"row-4": 1 - labels["row-4"], "row-0": 1 - labels["row-0"]}, "m/m.parquet")
    ran = curate(tmp_path, "relabel", 2, "-o", "c.parquet", "--export", "data/relabelled.csv")
    assert "2 rows of the source are not in the manifest" in ran.err
    lines = [line for line in source.read_bytes().split(end.encode()) if line and b"missing" not in line]
    expected = [
        line.replace(b'"Dog, big"', b"Cat") if k == 1 else line.replace(b"Cat", b'"Dog, big"') if k == 4 else line
        for k, line in enumerate(lines)
    ]
    found = (tmp_path / "data" / "relabelled.csv").read_bytes()
    last = b"" if end == "\n" else end.encode()  # as in the source
    assert found == end.encode().join(expected) + last
    scores(tmp_path, {"row-15": None, "row-1": None}, "c.parquet")  # after a relabel: the source still says the old one
    curate(tmp_path, "trim", 2, "--export", "data/trimmed.csv")
    left = [line for k, line in enumerate(expected) if k not in (2, 14)]
    assert (tmp_path / "data" / "trimmed.csv").read_bytes() == end.encode().join(left) + last


@pytest.mark.usefixtures("outside")
def test_csv_in_another_folder_still_finds_its_images(tmp_path: Path) -> None:
    source = csv_source(tmp_path)
    flags = ["--label", "kind", "--id", "ref", "--split", "100/0/0", "--skip-bad"]
    text = source.read_text(encoding="utf-8-sig").replace(",x\n", ",y\n", 1)  # bad rows need ids of their own
    source.write_text(text)
    run("manifest", source, *flags, "-o", "m.parquet", cwd=tmp_path)
    scores(tmp_path, {"r03": None})
    ran = curate(tmp_path, "trim", 1, "--export", "elsewhere/deep/rows.csv")
    assert "column path count from" in ran.err
    again = ["manifest", "elsewhere/deep/rows.csv", *flags, "-o", "again.parquet"]
    run(*again, cwd=tmp_path)
    first, second = (open_manifest(tmp_path / name) for name in ("m.parquet", "again.parquet"))
    keys = {i: k.tobytes() for i, k in zip(first.ids, first.row_keys, strict=True) if i != "r03"}
    assert {i: k.tobytes() for i, k in zip(second.ids, second.row_keys, strict=True)} == keys
    with open(tmp_path / "elsewhere" / "deep" / "rows.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    with open(source, newline="") as handle:
        before = [r for r in csv.DictReader(handle) if "missing" not in r["path"] and r["ref"] != "r03"]
    assert [{**r, "path": ""} for r in rows] == [{**r, "path": ""} for r in before]


def test_csv_of_features_with_numbers_as_labels_and_weights(tmp_path: Path) -> None:
    lines = ["a,b,label,weight,note"] + [f"{k},1e{k % 3},{k % 2}.0,{'' if k % 3 else 2},n{k}" for k in range(20)]
    (tmp_path / "rows.tsv").write_text("\n".join(lines).replace(",", "\t") + "\n")
    weighted = ["--weight", "weight"]  # beside numbers it is a weight of rows only where that is said
    run("manifest", "rows.tsv", "-o", "m.parquet", "--split", "100/0/0", *weighted, cwd=tmp_path)
    scores(tmp_path, {"row-5": 0})
    curate(tmp_path, "relabel", 1, "--export", "relabelled.tsv")
    expected = [*lines]
    expected[6] = expected[6].replace(",1.0,", ",0.0,")
    assert (tmp_path / "relabelled.tsv").read_text() == "\n".join(expected).replace(",", "\t") + "\n"
    curate(tmp_path, "reweight", 0, "-o", "c.parquet", "--export", "weighted.tsv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "weighted.tsv").read_text()), delimiter="\t"))
    assert [float(r["weight"]) for r in rows] == open_manifest(tmp_path / "c.parquet").weights().tolist()
    assert [[r[n] for n in ("a", "b", "label", "note")] for r in rows] == [
        [v for k, v in enumerate(line.split(",")) if k != 3] for line in lines[1:]
    ]
    without = (tmp_path / "rows.tsv").read_text().replace("\tweight", "\tother")
    (tmp_path / "rows.tsv").write_text(without)
    run("manifest", "rows.tsv", "--features", "a", "-o", "m.parquet", "--split", "100/0/0", cwd=tmp_path)
    scores(tmp_path, {})
    curate(tmp_path, "reweight", 0, "-o", "c.parquet", "--export", "added.tsv")
    added = [line.rpartition("\t") for line in (tmp_path / "added.tsv").read_text().splitlines()]
    assert [line for line, _, _ in added] == without.splitlines()
    assert added[0][2] == "weight"
    assert [float(w) for _, _, w in added[1:]] == open_manifest(tmp_path / "c.parquet").weights().tolist()


def test_json_lines_keep_their_text_but_for_what_was_edited(tmp_path: Path) -> None:
    photos(tmp_path, ())
    names = sorted(files(tmp_path / "photos"))
    lines = []
    for k, name in enumerate(names):
        label = json.dumps(CLASSES[k % 3] + "é", ensure_ascii=k % 2 == 0)
        more = '"big": 12345678901234567890123.50, "nested": {"label": [1], "}": "{"}, "n": 1.10e-2'
        lines.append(f'{{"label" : {label},"image": {json.dumps("photos/" + name)}, {more} }}')
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n\n")
    run("manifest", "rows.jsonl", "-o", "m.parquet", "--split", "100/0/0", cwd=tmp_path)
    scores(tmp_path, {"row-3": 2})
    curate(tmp_path, "relabel", 1, "-o", "c.parquet", "--export", "relabelled.jsonl")
    expected = [*lines]
    expected[3] = lines[3].replace('"caté"', '"mouse\\u00e9"')
    assert (tmp_path / "relabelled.jsonl").read_text() == "\n".join(expected) + "\n"
    scores(tmp_path, {"row-0": None}, "c.parquet")
    curate(tmp_path, "trim", 1, "--export", "trimmed.jsonl")
    assert (tmp_path / "trimmed.jsonl").read_text() == "\n".join(expected[1:]) + "\n"
    curate(tmp_path, "reweight", 0, "-o", "w.parquet", "--export", "there/weighted.jsonl")
    weighted = [json.loads(line) for line in (tmp_path / "there" / "weighted.jsonl").read_text().splitlines()]
    assert [w.pop("weight") for w in weighted] == open_manifest(tmp_path / "w.parquet").weights().tolist()
    originals = [json.loads(line) for line in expected]
    assert weighted == [{**o, "image": f"../{o['image']}"} for o in originals]


TEXT = pa_csv.ConvertOptions(column_types={"x": pa.string(), "y": pa.string()})
PIECES = ["a", "b", ",", ",", '"', '""', "\n", "\r\n", "\r", "é", " "]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join))
def test_csv_lines_are_split_as_arrow_splits_them_and_kept_byte_for_byte(tmp_path: Path, body: str) -> None:
    data = f"x,y\n{body}".encode()
    (tmp_path / "a.csv").write_bytes(data)
    try:
        table = pa_csv.read_csv(io.BytesIO(data), convert_options=TEXT)
    except pa.ArrowInvalid:
        return  # is no source
    _, header, records = read_records(tmp_path / "a.csv")
    assert [{"x": text_of(r.fields[0]), "y": text_of(r.fields[1])} for r in records] == table.to_pylist()
    lines = b"".join(b",".join(r.fields) + r.end for r in (header, *records))
    assert lines.translate(None, b"\r\n") == data.translate(None, b"\r\n")  # but for empty lines


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.sampled_from('a}{",:\\é\n')),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from("abcé"), JSON, max_size=4), min_size=1, max_size=4))
def test_json_objects_take_a_value_and_keep_every_other(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(r, indent=1 if "a" in r else None) for r in rows))
    records = read_objects(tmp_path / "a.jsonl")
    assert [json.loads(r.text) for r in records] == rows
    assert [{n: json.loads(r.raw(n)) for n in r.spans} for r in records] == rows
    assert [json.loads(r.replaced({"b": "[7]", "z": '"x"'})) for r in records] == [
        {**r, "b": [7], "z": "x"} for r in rows
    ]


# ---- datasets and arrays ------------------------------------------------------------------------------------------

FEATURES = {
    "note": {"dtype": "string", "_type": "Value"},
    "img": {"_type": "Image"},
    "label": {"names": list(CLASSES), "_type": "ClassLabel"},
}


def saved_dataset(root: Path) -> Path:
    """A saved DatasetDict, the train split of which is in two files."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    first = 0
    for split, sizes in (("train", (9, 8)), ("validation", (5,)), ("test", (4,))):
        folder = root / "saved" / split
        folder.mkdir(parents=True)
        names = [f"data-{k:05d}-of-{len(sizes):05d}.arrow" for k in range(len(sizes))]
        for name, size in zip(names, sizes, strict=True):
            here = range(first, first + size)
            table = pa.table(
                {
                    "note": [f"n{k}" for k in here],
                    "img": pa.array([{"bytes": picture(k), "path": f"{k}.png"} for k in here], kind),
                    "label": pa.array([k % 3 for k in here], pa.int64()),
                }
            )
            with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            first += size
        info = {"description": "ours", "features": FEATURES, "splits": {split: {"num_examples": 1}}}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        state = {"_data_files": [{"filename": n} for n in names], "_fingerprint": "old", "_split": split}
        (folder / "state.json").write_text(json.dumps(state))
    (root / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    return root / "saved"


def rows_of(source: Path, columns: Columns | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a source by our own reader."""
    for table in open_source(str(source), columns or Columns()).tables():
        yield from table.to_pylist()


def test_a_saved_dataset_comes_back_with_its_columns_and_features(tmp_path: Path) -> None:
    before = [pa.ipc.open_stream(f).read_all() for f in sorted((saved_dataset(tmp_path) / "train").glob("*.arrow"))]
    run("manifest", "saved", "-o", "m.parquet", cwd=tmp_path)
    scores(tmp_path, {"train-10": 0, "train-2": 1})
    curate(tmp_path, "relabel", 2, "-o", "c.parquet", "--export", "relabelled")
    scores(tmp_path, {"train-16": None, "train-0": None}, "c.parquet")
    curate(tmp_path, "trim", 2, "--export", "out")
    (file,) = (tmp_path / "out" / "train").glob("*.arrow")
    found = pa.ipc.open_stream(file).read_all()
    labels = [k % 3 for k in range(17)]
    labels[10], labels[2] = 0, 1
    expected = with_column(pa.concat_tables(before), "label", pa.array(labels)).slice(1, 15)
    assert found.replace_schema_metadata(None).equals(expected)
    read = [(r["image"], r["label"], r["split"]) for r in rows_of(tmp_path / "out")]
    source = [(r["image"], r["label"], r["split"]) for r in rows_of(tmp_path / "saved")]
    assert [r for r in read if r[2] != "train"] == [r for r in source if r[2] != "train"]
    info = json.loads((tmp_path / "out" / "train" / "dataset_info.json").read_text())
    assert (info["features"], info["description"]) == (FEATURES, "ours")
    assert "splits" not in info  # its numbers were of the source
    fingerprints = {
        json.loads((tmp_path / n / s / "state.json").read_text())["_fingerprint"]
        for n in ("out", "relabelled")
        for s in ("train", "test")
    }
    assert "old" not in fingerprints
    assert len(fingerprints) == 3  # the test rows are the same, the train rows are not
    assert read_origin(pq.read_schema(tmp_path / "c.parquet")) is not None


def test_caches_beside_a_saved_dataset_are_no_change_of_it(tmp_path: Path) -> None:
    saved_dataset(tmp_path)
    run("manifest", "saved", "-o", "m.parquet", cwd=tmp_path)
    scores(tmp_path, {"train-0": None})
    (tmp_path / "saved" / "train" / "cache-0123.arrow").write_bytes(b"cache")
    curate(tmp_path, "trim", 1, "--export", "out")
    assert sum(1 for _ in rows_of(tmp_path / "out")) == 25
    state = tmp_path / "saved" / "test" / "state.json"
    state.write_text(state.read_text() + " ")
    refused(*asked("trim", 1), "--export", "more", cwd=tmp_path, says="the source has changed")


def test_a_new_saved_dataset_has_images_classes_and_splits(tmp_path: Path) -> None:
    photos(tmp_path)
    run("manifest", "photos", "-o", "m.parquet", cwd=tmp_path)
    scores(tmp_path, {"train/cat/0.png": None})
    curate(tmp_path, "trim", 1, "--export", "out", "--export-as", "huggingface")
    run("manifest", "out", "-o", "again.parquet", cwd=tmp_path)
    first, second = (open_manifest(tmp_path / name) for name in ("m.parquet", "again.parquet"))
    keys = {i: k.tobytes() for i, k in zip(first.ids, first.row_keys, strict=True) if i != "train/cat/0.png"}
    assert {i: k.tobytes() for i, k in zip(second.ids, second.row_keys, strict=True)} == keys
    assert second.classes == first.classes
    splits = dict(zip(first.ids, first.splits.tolist(), strict=True))
    assert dict(zip(second.ids, second.splits.tolist(), strict=True)) == {i: splits[i] for i in keys}
    curate(tmp_path, "reweight", 0, "-o", "c.parquet", "--export", "weighted", "--export-as", "huggingface")
    weights = [r["weight"] for r in rows_of(tmp_path / "weighted")]
    assert sorted(weights) == sorted(open_manifest(tmp_path / "c.parquet").weights().tolist())


def test_arrays_come_back_under_their_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 255, (9, 5, 5), dtype=np.uint8),
        "train_labels": np.arange(9, dtype=np.uint8).reshape(9, 1) % 3,
        "val_images": rng.integers(0, 255, (4, 5, 5), dtype=np.uint8),
        "val_labels": np.zeros((4, 1), np.uint8),
        "info": np.array(["a", "b"]),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)  # pyright: ignore[reportArgumentType]
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive, archive.open("file.npy", "w") as handle:
        np.lib.format.write_array(handle, np.arange(3))  # a name that savez would not take
    arrays["file"] = np.arange(3)
    run("manifest", "a.npz", "-o", "m.parquet", cwd=tmp_path)
    scores(tmp_path, {"train-4": 2})
    curate(tmp_path, "relabel", 1, "-o", "c.parquet", "--export", "relabelled.npz")
    scores(tmp_path, {"train-0": None}, "c.parquet")
    curate(tmp_path, "trim", 1, "--export", "out.npz")
    found = dict(np.load(tmp_path / "out.npz"))
    arrays["train_labels"][4] = 2
    arrays["train_images"], arrays["train_labels"] = arrays["train_images"][1:], arrays["train_labels"][1:]
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
    curate(tmp_path, "reweight", 0, "-o", "w.parquet", "--export", "weighted.npz")
    weighted = np.load(tmp_path / "weighted.npz")
    both = np.concatenate([weighted["train_weights"], weighted["val_weights"]])
    assert both.tolist() == [1.0, *open_manifest(tmp_path / "w.parquet").weights().tolist()][-len(both) :]


def test_arrays_with_named_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.eye(6), y=np.array(["no", "no", "perhaps", "no", "perhaps", "no"]))
    run("manifest", "a.npz", "-o", "m.parquet", "--split", "100/0/0", cwd=tmp_path)
    scores(tmp_path, {"row-1": 1})
    curate(tmp_path, "relabel", 1, "--export", "out.npz")
    assert np.load(tmp_path / "out.npz")["y"].tolist() == ["no", "perhaps", "perhaps", "no", "perhaps", "no"]


@pytest.mark.parametrize("form", ["csv", "jsonl", "npz", "huggingface"])
def test_features_go_into_every_form_that_holds_them(tmp_path: Path, form: str) -> None:
    write(feature_table(examples()), tmp_path / "m.parquet")
    scores(tmp_path, {"r003": None, "r004": None})
    out = tmp_path / ("out" if form == "huggingface" else f"out.{form}")
    curate(tmp_path, "trim", 2, "--export", out.name, "--export-as", form)
    columns = Columns(features=tuple(f"feature_{k}" for k in range(5))) if form == "csv" else Columns()
    found = sorted((r["split"], tuple(r["features"]), str(r["label"])) for r in rows_of(out, columns))
    name = "{}" if form in ("npz", "huggingface") else "class {}"
    expected = [(e.split, e.features, name.format(e.label)) for e in examples() if e.id not in ("r003", "r004")]
    assert found == sorted(expected)


# ---- Label Studio -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("outside")
def test_label_studio_tasks_hold_the_label_that_was_and_the_one_proposed(tmp_path: Path) -> None:
    photos(tmp_path)
    run("manifest", "photos", "-o", "in/m.parquet", cwd=tmp_path)
    scores(tmp_path, {"train/cat/ж-é-3.PNG": 1, "train/mouse/sub folder/2.png": 0}, "in/m.parquet")
    curate(tmp_path, "relabel", 2, "--edits", "e.parquet", "--export", "t/tasks.json", "--export-as", "label-studio")
    first, second = json.loads((tmp_path / "t" / "tasks.json").read_text())
    edits = pq.read_table(tmp_path / "e.parquet").to_pylist()
    assert first["data"] == {"image": "../photos/train/cat/ж-é-3.PNG"}
    assert (tmp_path / "t" / first["data"]["image"]).read_bytes() == picture(3)
    assert first["meta"]["id"] == "train/cat/ж-é-3.PNG"
    assert first["meta"]["score"] == edits[0]["score"] == -100.0
    assert first["meta"]["row_key"] == bytes(edits[0]["row_key"]).hex()
    assert first["meta"]["reason"] == edits[0]["reason"] == "model gives dog probability 0.90"
    (annotation,), (prediction,) = first["annotations"], first["predictions"]
    assert annotation["result"][0]["value"] == {"choices": ["cat"]}
    assert prediction["result"][0]["value"] == {"choices": ["dog"]}
    assert (prediction["model_version"], prediction["score"]) == ("influence", 0.0)
    assert second["predictions"][0]["score"] == pytest.approx(1 / 24)
    results = [r for t in (first, second) for p in (*t["annotations"], *t["predictions"]) for r in p["result"]]
    assert len({r["id"] for r in results}) == 4
    assert {(r["from_name"], r["to_name"], r["type"]) for r in results} == {("label", "image", "choices")}
    prefix = ["--url-prefix", "/data/local-files/?d=photos/"]
    curate(tmp_path, "trim", 1, "--export", "t/trim.json", "--export-as", "label-studio", *prefix)
    (task,) = json.loads((tmp_path / "t" / "trim.json").read_text())
    assert task["data"]["image"] == "/data/local-files/?d=photos/train/cat/%D0%B6-%C3%A9-3.PNG"
    assert task["predictions"] == [{"model_version": "influence", "result": [], "score": 0.0}]  # a trim proposes none
    assert task["meta"]["reason"] == "rank 1 of 24 by score"


def test_label_studio_tasks_of_features_and_of_embedded_images(tmp_path: Path) -> None:
    write(feature_table(examples()), tmp_path / "m.parquet")
    scores(tmp_path, {"r007": None})
    curate(tmp_path, "trim", 1, "--export", "tasks.json")  # by suffix
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["data"] == {"features": list(examples()[7].features)}
    write(pa.table({"id": ["a", "b"], "image": [picture(0), picture(1)], "label": [0, 1]}), tmp_path / "m.parquet")
    scores(tmp_path, {"b": None})
    curate(tmp_path, "trim", 1, "--export", "images.json")
    (task,) = json.loads((tmp_path / "images.json").read_text())
    assert base64.b64decode(task["data"]["image"].removeprefix("data:image/png;base64,")) == picture(1)
    assert task["annotations"][0]["result"][0]["value"] == {"choices": ["1"]}


# ---- refusals and what is written when ----------------------------------------------------------------------------


@pytest.fixture
def from_csv(tmp_path: Path) -> Path:
    """A folder with rows.csv, the manifest made from it, and its scores."""
    lines = ["id,a,label"] + [f"k{k},{k},{k % 2}" for k in range(12)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    run("manifest", "rows.csv", "-o", "m.parquet", "--split", "100/0/0", cwd=tmp_path)
    scores(tmp_path, {"k3": 0})
    return tmp_path


REFUSALS = {
    "a form of another suffix": (["--export", "out.jsonl"], "made from csv"),
    "no suffix": (["--export", "out"], "cannot export csv to 'out'"),
    "an unknown form": (["--export", "out.csv", "--export-as", "xlsx"], "'xlsx' is unknown"),
    "the source itself": (["--export", "rows.csv"], "is there already"),
    "features as images": (["--export", "out", "--export-as", "folder"], "features are no images"),
    "another delimiter": (["--export", "out.tsv"], "the source is .csv"),
    "the same place twice": (["--export", "c.parquet", "-o", "c.parquet"], "-o and --export are both"),
    "a gate": (["--export", "out.csv", "--check"], "a gate decides and writes nothing"),
}


@pytest.mark.parametrize("case", list(REFUSALS))
def test_what_cannot_be_exported_is_refused(from_csv: Path, case: str) -> None:
    flags, says = REFUSALS[case]
    refused(*asked("trim", 1), *flags, cwd=from_csv, says=says)


def test_a_source_that_has_changed_is_refused_and_nothing_is_written(from_csv: Path) -> None:
    good = (from_csv / "rows.csv").read_text()
    for text, says in (
        (good.replace("k5,5", "k5,6"), "the source has changed"),
        (good + "k99,1,1\n", "the source has changed"),
    ):
        (from_csv / "rows.csv").write_text(text)
        refused(*asked("trim", 1), "-o", "c.parquet", "--export", "out.csv", cwd=from_csv, says=says)
    (from_csv / "rows.csv").unlink()
    refused(*asked("trim", 1), "--export", "out.csv", cwd=from_csv, says="not there any more")
    (from_csv / "rows.csv").write_text(good)
    curate(from_csv, "trim", 1, "--export", "out.csv")
    assert (from_csv / "out.csv").read_text() == good.replace("k3,3,1\n", "")


def test_a_row_that_the_source_has_not_is_refused(from_csv: Path) -> None:
    table = pq.read_table(from_csv / "m.parquet")
    more = with_column(table.slice(0, 1), "id", pa.array(["new"]))
    more = with_column(more, "features", pa.array([[77.0]], pa.list_(pa.float32())))
    write(pa.concat_tables([table, more]), from_csv / "m.parquet")
    scores(from_csv, {"k3": None})
    refused(*asked("trim", 1), "--export", "out.csv", cwd=from_csv, says="row id=new of the manifest is not in")


def test_without_a_word_on_the_source_the_forms_are_listed(tmp_path: Path) -> None:
    write(feature_table(examples()), tmp_path / "m.parquet")
    scores(tmp_path, {})
    refused(*asked("trim", 1), "--export", "out", cwd=tmp_path, says="folder|csv|jsonl|huggingface|label-studio|npz")


def test_folders_that_are_taken_and_weights_in_folders_are_refused(tmp_path: Path) -> None:
    photos(tmp_path)
    run("manifest", "photos", "-o", "m.parquet", cwd=tmp_path)
    scores(tmp_path, {"train/cat/0.png": None})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    trim = asked("trim", 1)
    refused(*trim, "--export", "full", cwd=tmp_path, says="is not empty")
    refused(*trim, "--export", "dangling", cwd=tmp_path, says="is there already")
    refused(*trim, "--export", "photos/train/new", cwd=tmp_path, says="inside of the source")
    refused(*trim, "--export", "out", "--link", "soft", cwd=tmp_path, says="--link 'soft' is unknown")
    refused(*trim, "--export", "o.csv", cwd=tmp_path, says="made from folder")
    refused(*asked("reweight", 0), "--export", "out", cwd=tmp_path, says="no place for weights")
    (tmp_path / "empty").mkdir()
    curate(tmp_path, "trim", 1, "--export", "empty")
    assert len(files(tmp_path / "empty")) == 35


def test_embedded_images_do_not_fit_into_text(tmp_path: Path) -> None:
    write(pa.table({"id": ["a", "b"], "image": [picture(0), picture(1)], "label": [0, 1]}), tmp_path / "m.parquet")
    scores(tmp_path, {})
    for name in ("out.csv", "out.jsonl"):
        refused(*asked("trim", 0), "--export", name, cwd=tmp_path, says="images are embedded")


def test_dry_run_writes_nothing_and_says_what_it_would(from_csv: Path) -> None:
    before = {p: p.read_bytes() for p in from_csv.iterdir() if p.is_file()}
    ran = curate(from_csv, "trim", 1, "-n", "-o", "c.parquet", "--export", "deep/out.csv")
    assert "would be: 11 rows exported as csv to deep/out.csv" in ran.err
    assert {p: p.read_bytes() for p in from_csv.iterdir() if p.is_file()} == before
    assert not (from_csv / "deep").exists()


def test_an_export_combines_with_a_manifest_and_edits_and_is_enough_alone(from_csv: Path) -> None:
    ran = curate(from_csv, "trim", 1, "--export", "alone.csv")
    assert ran.out == b""
    curate(from_csv, "trim", 1, "-o", "c.parquet", "--edits", "e.csv", "--export", "all.csv")
    assert (from_csv / "all.csv").read_bytes() == (from_csv / "alone.csv").read_bytes()
    assert pq.read_table(from_csv / "c.parquet").num_rows == 11
    assert (from_csv / "e.csv").exists()


def test_edits_may_stand_in_the_folder_that_is_exported(tmp_path: Path) -> None:
    photos(tmp_path)
    run("manifest", "photos", "-o", "m.parquet", cwd=tmp_path)
    scores(tmp_path, {"train/cat/0.png": None})
    curate(tmp_path, "trim", 1, "--export", "out", "--edits", "out/edits.csv")
    assert len(files(tmp_path / "out")) == 36
    assert "train/cat/0.png" in (tmp_path / "out" / "edits.csv").read_text()


@pytest.mark.parametrize(
    ("number", "code", "says"), [(errno.ENOSPC, 3, "the disk is full"), (errno.EXDEV, 2, "--link copy")]
)
def test_a_folder_that_fails_half_way_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, says: str
) -> None:
    photos(tmp_path)
    run("manifest", "photos", "-o", "m.parquet", cwd=tmp_path)
    scores(tmp_path, {})
    made: list[str] = []
    link = os.link

    def failing(target: str, file: Path) -> None:
        made.append(target)
        if len(made) == 20:
            raise OSError(number, os.strerror(number))
        link(target, file)

    monkeypatch.setattr(os, "link", failing)
    ran = call_cli(*asked("trim", 0), "--export", "out", "--link", "hard", cwd=tmp_path)
    assert (ran.code, len(made)) == (code, 20)
    assert says in ran.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.parquet", "photos", "s.parquet"]


def test_the_manifest_says_where_it_came_from_also_when_it_moves(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,a,b,label\n" + "".join(f"k{k},{k},1,{k % 2}\n" for k in range(6)))
    flags = ["--features", "a", "--id", "id", "--split", "100/0/0"]
    run("manifest", "rows.csv", *flags, "-o", "one/m.parquet", cwd=tmp_path)
    scores(tmp_path, {"k1": None}, "one/m.parquet")
    curate(tmp_path, "trim", 1, "-o", "two/three/m.parquet")
    digest = hashlib.blake2b((tmp_path / "rows.csv").read_bytes(), digest_size=16).hexdigest()
    for path, locator in (("one/m.parquet", "../rows.csv"), ("two/three/m.parquet", "../../rows.csv")):
        origin = read_origin(pq.read_schema(tmp_path / path))
        assert origin is not None
        assert (origin.form, origin.locator, origin.digest) == ("csv", locator, digest)
        assert origin.columns == Columns(id="id", features=("a",))
        assert not origin.splits


def test_features_of_a_table_go_out_under_their_names(tmp_path: Path) -> None:
    frame = pa.table({
        "age": [20 + k for k in range(20)], "job": ["clerk", "nurse"] * 10, "label": [k % 3 % 2 for k in range(20)],
    })  # fmt: skip
    make_manifest(IngestRequest(frame, str(tmp_path / "m.parquet"), split="100/0/0"))  # from memory: in no form
    scores(tmp_path, {"row-3": 1})
    curate(tmp_path, "relabel", 1, "--export", "tasks.json", "--export-as", "label-studio")
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["data"] == {"features": "age=23; job=nurse"}
    curate(tmp_path, "trim", 1, "--export", "rows.csv", "--export-as", "csv")
    with open(tmp_path / "rows.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [r["job=nurse"] for r in rows[:3]] == ["0.0", "1.0", "0.0"]
    assert len(rows) == 19

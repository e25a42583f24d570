"""One test per source form: the manifest has the rows, labels, classes, splits and payloads that went in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from influence_cli.data.ingest import Ingested, make_manifest
from influence_cli.data.request import IngestRequest
from influence_cli.data.sources import Columns
from influence_cli.errors import InfluenceError, ManifestError, UsageError

CLASSES = ("cat", "dog")
LABELS = [0, 1, 1, 0, 1, 0]
SPLITS = ["train", "train", "val", "val", "test", "test"]


def picture(k: int) -> np.ndarray:
    return np.full((4, 4, 3), 10 * k, np.uint8)


def png(k: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(k)).save(buffer, format="PNG")
    return buffer.getvalue()


def image_folder(root: Path) -> Path:
    for k, (label, split) in enumerate(zip(LABELS, SPLITS, strict=True)):
        file = root / "data" / {"val": "validation"}.get(split, split) / CLASSES[label] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(k))
    return root / "data"


def csv_file(root: Path) -> Path:
    (root / "images").mkdir()
    with open(root / "rows.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["filename", "label", "split"])
        for k, (label, split) in enumerate(zip(LABELS, SPLITS, strict=True)):
            (root / "images" / f"{k}.png").write_bytes(png(k))
            writer.writerow([f"images/{k}.png", CLASSES[label], split])
    return root / "rows.csv"


def jsonl_file(root: Path) -> Path:
    csv_file(root)
    lines = [
        json.dumps({"id": f"r{k}", "image_path": f"images/{k}.png", "label": CLASSES[y], "split": s})
        for k, (y, s) in enumerate(zip(LABELS, SPLITS, strict=True))
    ]
    (root / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return root / "rows.jsonl"


def npz_file(root: Path) -> Path:
    arrays = {}
    for split in ("train", "val", "test"):
        rows = [k for k, s in enumerate(SPLITS) if s == split]
        arrays[f"{split}_images"] = np.stack([picture(k) for k in rows])
        arrays[f"{split}_labels"] = np.array([[LABELS[k]] for k in rows])
    np.savez(root / "medical.npz", **arrays)
    return root / "medical.npz"


FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": list(CLASSES)},
}


def image_table(rows: list[int]) -> pa.Table:
    images = [{"bytes": png(k), "path": f"{k}.png"} for k in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"image": pa.array(images, kind), "label": pa.array([LABELS[k] for k in rows])})


def saved_dataset(root: Path) -> Path:
    folder = root / "saved"
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        part = folder / name
        part.mkdir(parents=True)
        table = image_table([k for k, s in enumerate(SPLITS) if s == split])
        with (
            pa.OSFile(str(part / "data-00000-of-00001.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as w,
        ):
            w.write_table(table)
        (part / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
        (part / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    return folder


def hub_parquet(root: Path) -> Path:
    folder = root / "hub" / "data"
    folder.mkdir(parents=True)
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        table = image_table([k for k, s in enumerate(SPLITS) if s == split]).replace_schema_metadata(metadata)
        pq.write_table(table, folder / f"{name}-00000-of-00001.parquet")
    return root / "hub"


FORMS: list[Callable[[Path], Path]] = [
    image_folder, csv_file, jsonl_file, npz_file, saved_dataset, hub_parquet,
]  # fmt: skip


def ingest(source: Path, tmp_path: Path, **more: object) -> Ingested:
    output = tmp_path / "out" / "manifest.parquet"
    return make_manifest(IngestRequest(str(source), str(output), **more))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("embed", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_image_sources_keep_rows_labels_splits_and_pixels(
    tmp_path: Path, form: Callable[[Path], Path], embed: bool
) -> None:
    made = ingest(form(tmp_path), tmp_path, embed=embed)
    manifest = made.manifest
    found = []
    for row, payload in manifest.payloads(manifest.all_rows().index):
        assert isinstance(payload, bytes)
        with Image.open(io.BytesIO(payload)) as image:
            k = int(np.asarray(image)[0, 0, 0]) // 10
        found.append((k, int(manifest.labels[row]), str(manifest.splits[row])))
    assert sorted(found) == [(k, LABELS[k], SPLITS[k]) for k in range(len(LABELS))]
    if form is not npz_file:
        assert manifest.classes == CLASSES
    assert len(set(manifest.ids)) == len(LABELS)
    if embed:
        assert manifest.kind == "image"
    assert made.skipped == []


def test_features_from_csv_columns(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b,label,note\n1,2.5,0,x\n3,4,1,y\n5,6,1,z\n")
    manifest = ingest(tmp_path / "rows.csv", tmp_path, split="100/0/0").manifest
    values = [v for _, v in manifest.payloads(manifest.all_rows().index)]
    assert np.array_equal(np.stack(values), np.array([[1, 2.5], [3, 4], [5, 6]], np.float32))  # pyright: ignore
    assert manifest.labels.tolist() == [0, 1, 1]


def test_chosen_columns(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("key,a,b,outcome\nk1,1,2,no\nk2,3,4,yes\n")
    columns = Columns(label="outcome", id="key", features=("b",))
    manifest = ingest(tmp_path / "rows.csv", tmp_path, columns=columns, split="100/0/0").manifest
    assert manifest.ids == ["k1", "k2"]
    assert manifest.classes == ("no", "yes")
    assert [v.tolist() for _, v in manifest.payloads(manifest.all_rows().index)] == [[2.0], [4.0]]  # pyright: ignore


def test_npz_features(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)), rng.integers(0, 2, 50)
    np.savez(tmp_path / "f.npz", x=x, y=y)
    manifest = ingest(tmp_path / "f.npz", tmp_path).manifest
    assert manifest.kind == "features"
    assert manifest.labels.tolist() == y.tolist()


def test_missing_splits_are_drawn_by_payload_and_seed(tmp_path: Path) -> None:
    lines = ["a,label"] + [f"{k % 400},{k % 2}" for k in range(800)]  # every payload twice
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    one, again = (ingest(tmp_path / "rows.csv", tmp_path, seed=1).manifest for _ in range(2))
    other = ingest(tmp_path / "rows.csv", tmp_path, seed=2).manifest
    assert one.splits.tolist() == again.splits.tolist() != other.splits.tolist()
    shares = [(one.splits == s).mean() for s in ("train", "val", "test")]
    assert np.allclose(shares, [0.8, 0.1, 0.1], atol=0.06)
    assert one.splits[:400].tolist() == one.splits[400:].tolist()  # equal payloads stay together


def test_val_is_taken_from_train_where_there_is_none(tmp_path: Path) -> None:
    lines = ["a,label,split"] + [f"{k},{k % 2},{'test' if k < 100 else 'train'}" for k in range(1000)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    made = ingest(tmp_path / "rows.csv", tmp_path)
    assert (made.manifest.splits[:100] == "test").all()
    assert 60 <= (made.manifest.splits[100:] == "val").sum() <= 140
    assert any("no val rows" in note for note in made.notes)


def test_duplicates_conflicts_and_overlap_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,a,label,split\nr0,1,0,train\nr1,1,1,train\nr2,2,1,train\nr3,2,1,val\n")
    notes = "\n".join(ingest(tmp_path / "rows.csv", tmp_path).notes)
    assert "1 val rows are also train rows (same payload): r3" in notes
    assert "another label: r0 and r1" in notes


BAD = {
    "null label": ("a,label\n1,0\n2,\n", "label is null"),
    "missing image": ("path,label\nnone.png,0\n", "cannot read none.png"),
    "not an image": ("path,label\nrows.csv,0\n", "cannot be decoded"),
    "NaN feature": ("a,label\n1,0\nnan,1\n", "not finite"),
    "negative label": ("a,label\n1,-1\n", "no class number"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_rows_are_refused_by_name_or_listed(tmp_path: Path, case: str) -> None:
    content, says = BAD[case]
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(ManifestError, match=says) as caught:
        ingest(tmp_path / "rows.csv", tmp_path, split="100/0/0")
    assert "row id=row-" in caught.value.where
    assert "--skip-bad" in caught.value.fix
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    good = content.splitlines()[1:-1]
    if good:
        made = ingest(tmp_path / "rows.csv", tmp_path, skip_bad=True, split="100/0/0")
        assert len(made.manifest) == len(good)
        assert len(made.skipped) == 1
        assert says.split()[-1] in made.skipped[0][1]


def test_texts_without_labels_are_told_of_their_task(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    with pytest.raises(ManifestError, match="no label column") as caught:
        ingest(tmp_path / "t.jsonl", tmp_path, split="100/0/0")
    assert "--task language" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.csv", None, "no such file"),
        ("rows.xlsx", b"x", "cannot make a manifest"),
        ("rows.csv", b"a,b\n1,2\n", "no label column"),
        ("rows.csv", b"note,label\nx,0\n", "no payload"),
        ("rows.csv", b"a,label,split\n1,0,holdout\n", "unknown split 'holdout'"),
        ("rows.csv", b"id,a,label\nr,1,0\nr,2,1\n", "an id is there twice"),
        ("rows.npz", b"not a zip", "cannot be read"),
    ],
)
def test_unusable_sources_are_explained(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=says) as caught:
        ingest(tmp_path / name, tmp_path, split="100/0/0")
    assert caught.value.where
    assert caught.value.fix


def test_an_empty_folder_and_bad_shares(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no image in a class folder"):
        ingest(tmp_path / "empty", tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        ingest(csv_file(tmp_path), tmp_path, split="80-20")


def narrow(made: Ingested) -> tuple[list[str], list[int], tuple[str, ...] | None]:
    return made.manifest.ids, made.manifest.labels.tolist(), made.manifest.classes


@pytest.mark.parametrize(
    ("label", "labels", "classes"),
    [
        (["1", "0", "2"], [1, 0, 2], None),
        (["1.0", "0.0", "2.0"], [1, 0, 2], None),
        (["007", "010", "007"], [0, 1, 0], ("007", "010")),
        (["true", "false", "true"], [1, 0, 1], ("false", "true")),
        (["2024-01-02", "2024-01-01", "2024-01-02"], [1, 0, 1], ("2024-01-01", "2024-01-02")),
    ],
)
def test_ids_of_a_csv_are_text_and_labels_keep_their_meaning(
    tmp_path: Path, label: list[str], labels: list[int], classes: tuple[str, ...] | None
) -> None:
    names = ["007", "0010", "1e3"]
    lines = [f"{i},{k}.5,{y}\n" for k, (i, y) in enumerate(zip(names, label, strict=True))]
    (tmp_path / "t.csv").write_text("id,x,label\n" + "".join(lines))
    assert narrow(ingest(tmp_path / "t.csv", tmp_path)) == (names, labels, classes)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (b"a,1,\xe9t\xe9\n", "not UTF-8"),
        (b"", "no rows"),
        (b",1,0\nb,2,1\n", "an id is null"),
        (b"a,1,0\na,2,1\n", "an id is there twice"),
        (b"a,1,\nb,2,x\n", "label is null"),
    ],
)
def test_rows_of_a_csv_that_cannot_be_used_are_explained(tmp_path: Path, rows: bytes, says: str) -> None:
    (tmp_path / "t.csv").write_bytes(b"id,x,label\n" + rows)
    with pytest.raises(ManifestError, match=says):
        ingest(tmp_path / "t.csv", tmp_path)
    if says.endswith(("null", "twice")):
        assert len(ingest(tmp_path / "t.csv", tmp_path, skip_bad=True).skipped) == 1


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_folder_with_metadata_is_read_by_file_name(tmp_path: Path, form: str) -> None:
    root = tmp_path / "data"
    for part in ("train", "test"):
        (root / part).mkdir(parents=True)
        for k in range(3):
            (root / part / f"{k}.png").write_bytes(png(k + 10 * (part == "test")))
        rows = [{"file_name": f"{k}.png", "label": CLASSES[LABELS[k]]} for k in range(3)]
        text = "".join(json.dumps(r) + "\n" for r in rows)
        if form == "csv":
            text = "file_name,label\n" + "".join(f"{r['file_name']},{r['label']}\n" for r in rows)
        (root / part / f"metadata.{form}").write_text(text)
    made = ingest(root, tmp_path, split="100/0/0")
    assert made.manifest.ids == [f"{part}/{k}.png" for part in ("test", "train") for k in range(3)]
    assert made.manifest.labels.tolist() == [*LABELS[:3], *LABELS[:3]]
    assert made.manifest.classes == CLASSES
    payloads = dict(made.manifest.payloads(made.manifest.all_rows().index))
    assert payloads[0] == png(10)
    (root / "metadata.csv").write_text("file_name,label\ntrain/1.png,x\ntest/2.png,y\n")  # of the whole folder
    assert ingest(root, tmp_path).manifest.ids == ["train/1.png", "test/2.png"]
    (root / "metadata.csv").write_text("something,else\n1,2\n")
    assert len(ingest(root, tmp_path).manifest.ids) == 6
    (root / "dev").mkdir()
    with pytest.raises(ManifestError, match="no metadata file"):
        ingest(root, tmp_path)


def test_two_splits_of_one_meaning_lose_no_row(tmp_path: Path) -> None:
    values = {f"x_{s}": np.random.default_rng(0).normal(size=(4, 2)) for s in ("train", "val", "dev")}
    labels = {f"y_{s}": np.array([b"a", b"b", b"a", b"b"]) for s in ("train", "val", "dev")}
    np.savez(tmp_path / "two.npz", **values, **labels)
    with pytest.raises(ManifestError, match="val and dev both mean split val"):
        ingest(tmp_path / "two.npz", tmp_path)
    np.savez(tmp_path / "nan.npz", x=values["x_val"], y=np.array([0.0, 1.0, np.nan, 1.0]))
    with pytest.raises(ManifestError, match="nan is no class number"):
        ingest(tmp_path / "nan.npz", tmp_path)
    np.savez(tmp_path / "latin.npz", x=values["x_val"], y=np.array([b"\xe9", b"a", b"a", b"a"]))
    with pytest.raises(ManifestError, match="not UTF-8"):
        ingest(tmp_path / "latin.npz", tmp_path)
    for name in ("x_dev", "y_dev"):
        (values if name in values else labels).pop(name)
    np.savez(tmp_path / "one.npz", **values, **labels)
    assert ingest(tmp_path / "one.npz", tmp_path).manifest.classes == ("a", "b")
    root = saved_dataset(tmp_path)
    index = root / "dataset_dict.json"
    index.write_text(json.dumps({"splits": ["train", "validation", "dev"]}))
    with pytest.raises(ManifestError, match="validation and dev both mean split val"):
        ingest(root, tmp_path)


def test_a_place_where_nothing_can_be_written_is_the_users_to_fix(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,label\n1,0\n2,1\n")
    too_long = tmp_path / ("x" * 250 + ".parquet")
    for place in (Path("/proc/manifest.parquet"), tmp_path / "rows.csv" / "m.parquet", too_long):
        with pytest.raises(InfluenceError, match=r"cannot (write|create)") as caught:
            make_manifest(IngestRequest(str(tmp_path / "rows.csv"), str(place)))
        assert caught.value.fix
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]

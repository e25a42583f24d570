"""Manifests: what is read, and that every wrong row is refused with its source, id and column, and with a fix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.manifest import Manifest, without_overlap
from influence_cli.data.open import open_manifest
from influence_cli.errors import InfluenceError, ManifestError
from tests.cases import (
    Example,
    Heard,
    call_cli,
    digits_table,
    draw_features,
    examples,
    feature_table,
    job_of,
    named,
    png,
    train_run,
    with_column,
    write,
)


def small(**columns: Any) -> pa.Table:
    """Four feature rows, with columns replaced or added."""
    table = feature_table([Example(f"r{k}", draw_features(k), k % 3) for k in range(4)])
    for name, values in columns.items():
        table = with_column(table, name, values)
    return table


def pixels(k: int) -> bytes:
    """A 4x4 grey PNG of one brightness."""
    return png(np.full((4, 4), 10 * k))


# ---- every check --------------------------------------------------------------------------------------------------


WRONG: dict[str, tuple[Callable[[], pa.Table], str, tuple[str, ...]]] = {
    "no payload": (lambda: small().drop_columns(["features"]), "no payload column", ()),
    "no id": (lambda: small().drop_columns(["id"]), "no column 'id'", ()),
    "no label": (lambda: small().drop_columns(["label"]), "no column 'label'", ()),
    "no rows": (lambda: small().slice(0, 0), "has no rows", ()),
    "ids that are numbers": (lambda: small(id=[1, 2, 3, 4]), "not strings", ("column id",)),
    "a null id": (lambda: small(id=["a", None, "c", "d"]), "an id is null", ("row 1", "column id")),
    "an id twice": (lambda: small(id=["a", "b", "c", "b"]), "there twice", ("id=b", "column id")),
    "labels that are text": (lambda: small(label=list("abcd")), "not integers", ("column label",)),
    "labels with a fraction": (lambda: small(label=[0.0, 1, 2, 0]), "not integers", ("column label",)),
    "a null label": (
        lambda: small(label=pa.array([0, 1, None, 2], pa.int64())),
        "a label is null",
        ("id=r2", "column label"),
    ),
    "a negative label": (lambda: small(label=[0, 1, 2, -1]), "negative (-1)", ("id=r3", "column label")),
    "an unknown split": (
        lambda: small(split=["train", "valid", "test", "train"]),
        "unknown split 'valid'",
        ("id=r1", "column split"),
    ),
    "a null split": (
        lambda: small(split=["train", None, "test", "train"]),
        "unknown split None",
        ("id=r1", "column split"),
    ),
    "a negative weight": (lambda: small(weight=[1.0, 1, -2, 1]), "-2", ("id=r2", "column weight")),
    "a weight that is NaN": (lambda: small(weight=[1.0, float("nan"), 1, 1]), "nan", ("id=r1", "column weight")),
    "an infinite weight": (lambda: small(weight=[1.0, 1, 1, float("inf")]), "inf", ("id=r3", "column weight")),
    "weights that are text": (lambda: small(weight=["1", "x", "1", "1"]), "weight", ("column weight",)),
    "no features": (
        lambda: small(features=pa.array([[1.0], None, [1.0], [1.0]], pa.list_(pa.float32()))),
        "payload is empty",
        ("id=r1", "column features"),
    ),
    "a feature that is NaN": (
        lambda: small(features=[[1.0], [2.0], [float("nan")], [1.0]]),
        "not finite",
        ("id=r2", "column features"),
    ),
    "a feature that is null": (
        lambda: small(features=[[1.0], [2.0], [None], [1.0]]),
        "not finite",
        ("id=r2", "column features"),
    ),
    "features that are text": (lambda: small(features=[["a"], ["b"], ["c"], ["d"]]), "", ("column features",)),
    "no image": (
        lambda: images(pa.array([pixels(0), None, pixels(2), pixels(3)])),
        "payload is empty",
        ("id=r1", "column image"),
    ),
    "an image struct of nothing": (
        lambda: images(pa.array([{"bytes": pixels(0), "path": None}] * 3 + [{"bytes": None, "path": None}])),
        "payload is empty",
        ("id=r3", "column image"),
    ),
    "images that are text": (lambda: images(pa.array(["a.png"] * 4)), "", ("column image",)),
    "a missing file": (
        lambda: images(pa.array(["here.png", "here.png", "gone.png", "here.png"]), "path"),
        "",
        ("id=r2", "column path", "gone.png"),
    ),
    "a missing file in a struct": (
        lambda: images(pa.array([{"bytes": None, "path": "here.png"}] * 3 + [{"bytes": None, "path": "gone.png"}])),
        "",
        ("id=r3", "column image", "gone.png"),
    ),
}


def images(column: pa.Array, kind: str = "image") -> pa.Table:
    """Four image rows with this payload column."""
    return named(pa.table({"id": [f"r{k}" for k in range(4)], kind: column, "label": [0, 1, 2, 0]}), 3)


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_manifest_is_refused_by_name_with_a_fix(what: str, tmp_path: Path) -> None:
    make, said, where = WRONG[what]
    (tmp_path / "here.png").write_bytes(pixels(1))
    path = write(make(), tmp_path / "wrong.parquet")
    with pytest.raises(ManifestError) as caught:
        open_manifest(path)
    error = caught.value
    assert said in error.what
    assert error.fix
    assert "wrong.parquet" in error.where
    for part in where:
        assert part in str(error)
    assert call_cli("score", path, "--method", "random", cwd=tmp_path).code == 2


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("id,label\na,1\n")
    whole = write(small(), tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    (tmp_path / "zero.parquet").write_bytes(b"")
    for name in ("gone.parquet", "empty", "table.csv", "cut.parquet", "zero.parquet"):
        with pytest.raises(ManifestError) as caught:
            open_manifest(tmp_path / name)
        assert name in caught.value.where
        assert caught.value.fix


def test_a_parquet_file_with_damaged_pages_exits_2_and_is_named(tmp_path: Path) -> None:
    path = write(small(), tmp_path / "damaged.parquet")
    raw = bytearray(path.read_bytes())
    raw[4:200] = b"\xff" * 196
    path.write_bytes(raw)
    ran = call_cli("score", "damaged.parquet", "--method", "random", cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert "damaged.parquet" in ran.err


def test_files_of_a_folder_that_do_not_fit_together_exit_2(tmp_path: Path) -> None:
    write(small(), tmp_path / "parts" / "a.parquet")
    other = small(id=[f"s{k}" for k in range(4)])
    for odd in (
        other.drop_columns(["label"]),
        other.drop_columns(["features"]),
        with_column(other, "split", [1, 2, 3, 4]),
    ):
        write(odd, tmp_path / "parts" / "b.parquet")
        ran = call_cli("score", "parts", "--method", "random", cwd=tmp_path)
        assert ran.code == 2, ran.err
        assert "b.parquet" in ran.err


# ---- what is read -------------------------------------------------------------------------------------------------


def keys(manifest: Manifest) -> list[bytes]:
    """Payload keys as bytes."""
    return [k.tobytes() for k in manifest.payload_keys]


def test_narrow_columns_and_defaults(tmp_path: Path) -> None:
    manifest = open_manifest(write(small().drop_columns(["split"]), tmp_path / "m.parquet"))
    assert manifest.ids == ["r0", "r1", "r2", "r3"]
    assert manifest.splits.tolist() == ["train"] * 4
    assert manifest.weights().tolist() == [1.0] * 4
    assert manifest.classes == ("class 0", "class 1", "class 2")
    assert manifest.column("group") is None
    weighted = open_manifest(write(small(weight=[2.0, None, 0.5, 0.0]), tmp_path / "w.parquet"))
    assert weighted.weights().tolist() == [2.0, 1.0, 0.5, 0.0]


def test_the_same_images_as_bytes_as_structs_and_as_paths_have_the_same_keys(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    for k in range(4):
        (tmp_path / "img" / f"{k}.png").write_bytes(pixels(k))
    as_bytes = images(pa.array([pixels(k) for k in range(4)]))
    as_struct = images(pa.array([{"bytes": pixels(k), "path": f"x{k}"} for k in range(4)]))
    as_paths = images(pa.array([f"img/{k}.png" for k in range(4)]), "path")
    in_struct = images(pa.array([{"bytes": None, "path": f"img/{k}.png"} for k in range(4)]))
    large = images(pa.array([pixels(k) for k in range(4)], pa.large_binary()))
    found = []
    for n, table in enumerate((as_bytes, as_struct, as_paths, in_struct, large)):
        manifest = open_manifest(write(table, tmp_path / f"{n}.parquet"))
        assert [p for _, p in manifest.payloads(np.arange(4))] == [pixels(k) for k in range(4)]
        found.append(keys(manifest))
    assert all(k == found[0] for k in found)
    assert len(set(found[0])) == 4


def test_features_are_float32_whatever_they_are_stored_as(tmp_path: Path) -> None:
    rows = [[1.0, 2.5], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]
    whole = [[int(v) for v in row] for row in rows]
    tables = [
        small(features=pa.array(rows, pa.list_(pa.float32()))),
        small(features=pa.array(rows, pa.list_(pa.float64()))),
        small(features=pa.array(rows, pa.list_(pa.float32(), 2))),
        small(features=pa.array(rows, pa.large_list(pa.float64()))),
        small(features=pa.array(whole, pa.list_(pa.int64()))),
    ]
    opened = [open_manifest(write(t, tmp_path / f"{n}.parquet")) for n, t in enumerate(tables)]
    assert all(keys(m) == keys(opened[0]) for m in opened[:4])
    assert keys(opened[4])[1:] == keys(opened[0])[1:]
    (_, payload), *_ = opened[1].payloads(np.array([0]))
    assert isinstance(payload, np.ndarray)
    assert payload.dtype == np.float32
    assert payload.tolist() == [1.0, 2.5]


def test_payloads_are_streamed_for_the_rows_asked_for_in_ascending_order(tmp_path: Path) -> None:
    rows = [Example(f"r{k}", (float(k),), 0) for k in range(2500)]
    path = write(feature_table(rows), tmp_path / "m.parquet")
    wanted = np.array([2400, 3, 1024, 1023])
    got = [(row, float(value[0])) for row, value in open_manifest(path).payloads(wanted)]
    assert got == [(3, 3.0), (1023, 1023.0), (1024, 1024.0), (2400, 2400.0)]


def test_a_folder_is_read_in_the_order_of_its_file_names_and_skips_hidden_ones(tmp_path: Path) -> None:
    for name, ids in (("b", "cd"), ("a", "ab")):
        rows = [Example(i, draw_features(ord(i)), 0) for i in ids]
        write(feature_table(rows), tmp_path / "parts" / f"{name}.parquet")
    (tmp_path / "parts" / ".hidden.parquet").write_bytes(b"half")
    (tmp_path / "parts" / "notes.txt").write_text("not a table")
    manifest = open_manifest(tmp_path / "parts")
    assert manifest.ids == list("abcd")
    assert [tuple(v) for _, v in manifest.payloads(np.arange(4))] == [draw_features(ord(i)) for i in "abcd"]
    write(feature_table([Example("a", draw_features(1), 0)]), tmp_path / "parts" / "c.parquet")
    with pytest.raises(ManifestError, match="there twice"):
        open_manifest(tmp_path / "parts")


def test_class_names_from_schema_metadata_or_from_beside(tmp_path: Path) -> None:
    bare = small().replace_schema_metadata(None)
    path = write(bare, tmp_path / "m.parquet")
    assert open_manifest(path).classes is None
    (tmp_path / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    assert open_manifest(path).classes == ("a", "b", "c")
    write(small(), path)
    assert open_manifest(path).classes == ("class 0", "class 1", "class 2")


def test_another_label_column_changes_labels_and_row_keys_only(tmp_path: Path) -> None:
    path = write(small(other=pa.array([2, 1, 0, 0], pa.int8())), tmp_path / "m.parquet")
    usual, other = open_manifest(path), open_manifest(path, "other")
    assert other.labels.tolist() == [2, 1, 0, 0]
    assert keys(other) == keys(usual)
    same = [a.tobytes() == b.tobytes() for a, b in zip(usual.row_keys, other.row_keys, strict=True)]
    assert same == [False, True, False, True]
    scored = call_cli("score", path, "--method", "random", "--label", "other", cwd=tmp_path)
    assert [r["label"] for r in scored.rows] == [2, 1, 0, 0]


def test_the_fingerprint_of_a_manifest(tmp_path: Path) -> None:
    def name(table: pa.Table) -> str:
        return open_manifest(write(table, tmp_path / "m.parquet")).fingerprint

    same = name(small())
    assert name(small().take([3, 1, 0, 2])) == same
    assert name(small(note=["a", "b", "c", "d"])) == same
    assert name(small(weight=[1.0, 1, 1, 2])) == same  # a weight changes no score
    others = [
        small(id=["r0", "r1", "r2", "x"]),
        small(label=[0, 1, 2, 1]),
        small(split=["train", "train", "train", "val"]),
        small(features=[list(draw_features(k)) for k in (0, 1, 2, 9)]),
        small().slice(0, 3),
    ]
    assert len({same, *map(name, others)}) == 6


# ---- target rows --------------------------------------------------------------------------------------------------


def overlapping(shared: int, targets: int) -> list[Example]:
    """Train rows of which ``shared`` are among the ``targets`` val rows, by payload."""
    train = [Example(f"t{k}", draw_features(k), k % 3) for k in range(20)]
    own = [Example(f"v{k}", draw_features(500 + k), k % 3, "val") for k in range(targets - shared)]
    both = [Example(f"both{k}", draw_features(k), k % 3, "val") for k in range(shared)]
    return train + own + both


def test_target_rows_that_are_train_rows_are_left_out_and_named_up_to_a_hundredth(
    tmp_path: Path, tabular_run: Path
) -> None:
    path = write(feature_table(overlapping(1, 100)), tmp_path / "m.parquet")
    heard = Heard()
    job = job_of(path, tabular_run, None, listener=heard)
    assert (len(job.target), job.overlap) == (99, 1)
    assert "both0" not in job.target.ids
    assert any("both0" in w and "left out" in w for w in heard.warnings)
    alone = write(feature_table(overlapping(0, 99)), tmp_path / "n.parquet")
    assert job_of(alone, tabular_run, None).target.fingerprint() == job.target.fingerprint()


def test_stages_may_differ_in_whether_they_measure_on_the_target(tmp_path: Path, tabular_run: Path) -> None:
    """Leaving overlap out of the target is no change of it: a method without directions has no target at all."""
    write(feature_table(overlapping(1, 100)), tmp_path / "m.parquet")
    asked = ["grads", "m.parquet", "--checkpoint", tabular_run, "--method", "ip", "-o", "g.parquet"]
    assert call_cli(*asked, cwd=tmp_path).code == 0
    for source, method, output in (("g.parquet", "loss", "s.parquet"), ("s.parquet", "ip", "t.parquet")):
        ran = call_cli("score", source, "--method", method, "-o", output, cwd=tmp_path)
        assert ran.code == 0, ran.err


def test_more_overlap_is_refused_unless_it_is_accepted(tmp_path: Path, tabular_run: Path) -> None:
    write(feature_table(overlapping(2, 100)), tmp_path / "m.parquet")
    asked = ["score", "--method", "ip", "m.parquet", "--checkpoint", tabular_run, "-o", "s.parquet"]
    ran = call_cli(*asked, cwd=tmp_path)
    assert ran.code == 2
    for part in ("2 of 100 target rows are training rows", "both0, both1", "--overlap keep", "--overlap drop"):
        assert part in ran.err
    accepted = call_cli(*asked, "--allow-overlap", cwd=tmp_path)
    assert accepted.code == 0, accepted.err
    assert "2 target rows are training rows and were left out" in accepted.err


def test_no_target_rows_and_none_of_their_own(tmp_path: Path, tabular_run: Path) -> None:
    for rows, said in (
        (overlapping(0, 0), "no target rows"),
        (overlapping(3, 3), "every target row is a training row"),
        ([r for r in overlapping(0, 5) if r.split == "val"], "no train rows"),
    ):
        write(feature_table(rows), tmp_path / "m.parquet")
        ran = call_cli(
            "score", "--method", "ip", "m.parquet", "--checkpoint", tabular_run, "--allow-overlap", cwd=tmp_path
        )
        assert ran.code == 2
        assert said in ran.err
        assert "fix: " in ran.err
    for split, said in (("train", "no train rows"), ("test", "no test rows")):
        rows = [r for r in examples(6, 3, 3) if r.split != split]
        write(feature_table(rows), tmp_path / "m.parquet")
        ran = call_cli("retrain", "m.parquet", "--model", "linear", "-o", "RUN", cwd=tmp_path)
        assert (ran.code, said in ran.err) == (2, True)
        assert not (tmp_path / "RUN").exists()


def test_overlap_is_by_payload_and_not_by_label_or_id(tmp_path: Path) -> None:
    rows = overlapping(2, 5)
    rows[-1] = rows[-1].relabelled()
    manifest = open_manifest(write(feature_table(rows), tmp_path / "m.parquet"))
    kept, out = without_overlap(manifest.rows("val"), manifest.rows("train"))
    assert out.ids == ["both0", "both1"]
    assert kept.ids == ["v0", "v1", "v2"]


def test_target_rows_of_another_manifest_are_its_val_rows_or_all_of_it(tmp_path: Path, tabular_run: Path) -> None:
    path = write(feature_table(examples()), tmp_path / "m.parquet")
    other = [Example(f"o{k}", draw_features(900 + k), k % 3, "val" if k < 2 else "train") for k in range(5)]
    some = write(feature_table(other), tmp_path / "some.parquet")
    assert job_of(path, tabular_run, None, target=str(some)).target.ids == ["o0", "o1"]
    rest = write(feature_table(other[2:]), tmp_path / "rest.parquet")
    assert job_of(path, tabular_run, None, target=str(rest)).target.ids == ["o2", "o3", "o4"]


# ---- rows and the model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_label_outside_the_models_classes_names_the_row(split: str, tmp_path: Path, tabular_run: Path) -> None:
    rows = examples(6, 4, 0)
    worst = next(k for k, r in enumerate(rows) if r.split == split) + 1
    rows[worst] = Example(rows[worst].id, rows[worst].features, 3, split)
    write(feature_table(rows), tmp_path / "m.parquet")
    ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", tabular_run, cwd=tmp_path)
    assert ran.code == 2
    assert "label 3 is outside the model's 3 classes" in ran.err
    assert f"m.parquet, row id={rows[worst].id}, column label" in ran.err
    flags = ["--model", "linear", "--num-classes", "3", "-o", "RUN"]
    trained = call_cli("retrain", "m.parquet", "--test", "m.parquet", *flags, cwd=tmp_path)
    assert trained.code == 2
    assert f"row id={rows[worst].id}" in trained.err


def test_classes_in_another_order_than_the_checkpoints_are_refused(tmp_path: Path, tabular_run: Path) -> None:
    swapped = json.dumps(["class 1", "class 0", "class 2"])
    table = feature_table(examples()).replace_schema_metadata({"classes": swapped})
    write(table, tmp_path / "m.parquet")
    ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", tabular_run, cwd=tmp_path)
    assert ran.code == 2, "labels mean other classes than those the checkpoint was trained on"
    assert "classes" in ran.err


@pytest.mark.parametrize("first", [True, False], ids=["the first row", "another row"])
@pytest.mark.parametrize("stage", ["score", "retrain"])
def test_an_image_that_cannot_be_decoded_names_its_row(
    stage: str, first: bool, tmp_path: Path, digits_run: Path
) -> None:
    table = digits_table(train=12, val=4, test=4)
    payloads = table.column("image").to_pylist()
    k = 0 if first else 7
    payloads[k] = payloads[k][:40]
    write(with_column(table, "image", pa.array(payloads, pa.binary())), tmp_path / "m.parquet")
    asked: list[Any] = ["--checkpoint", digits_run] if stage == "score" else ["--model", "linear", "-o", "RUN"]
    ran = call_cli(stage, "m.parquet", *asked, cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert "cannot be decoded" in ran.err
    assert f"m.parquet, row id=d{k:04d}, column image" in ran.err
    assert "fix: " in ran.err


def test_features_of_another_width_name_their_row(tmp_path: Path, tabular_run: Path) -> None:
    table = feature_table(examples(6, 3, 3))
    rows = table.column("features").to_pylist()
    rows[4] = rows[4][:3]
    write(with_column(table, "features", pa.array(rows, pa.list_(pa.float32()))), tmp_path / "m.parquet")
    ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", tabular_run, cwd=tmp_path)
    assert ran.code == 2
    assert "row id=r004, column features" in ran.err


def test_another_kind_of_payload_than_the_model_takes_exits_2(
    tmp_path: Path, digits: Path, tabular: Path, digits_run: Path, tabular_run: Path
) -> None:
    for manifest, run in ((digits, tabular_run), (tabular, digits_run)):
        ran = call_cli(
            "score", "--method", "ip", manifest, "--checkpoint", run, "--store", "s", "--allow-overlap", cwd=tmp_path
        )
        assert ran.code == 2, ran.err
        assert "fix: " in ran.err


def test_payload_paths_count_from_the_manifest_wherever_one_stands(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "img").mkdir(parents=True)
    table = digits_table(train=12, val=6, test=6)
    for name, image in zip(table.column("id").to_pylist(), table.column("image").to_pylist(), strict=True):
        (folder / "img" / f"{name}.png").write_bytes(image)
    paths = [f"img/{name}.png" for name in table.column("id").to_pylist()]
    write(table.drop_columns(["image"]).append_column("path", pa.array(paths)), folder / "m.parquet")
    bytes_run = train_run(write(table, tmp_path / "b.parquet"), tmp_path / "A", "mlp:4")
    paths_run = train_run(folder / "m.parquet", tmp_path / "B", "mlp:4")
    weights = [(run / "model.safetensors").read_bytes() for run in (bytes_run, paths_run)]
    assert weights[0] == weights[1]
    shutil.move(folder, tmp_path / "moved")
    assert len(open_manifest(tmp_path / "moved" / "m.parquet")) == 24


@pytest.mark.parametrize("name", ["2024-01-01T10:00.parquet", "data:v2.parquet", "a b%20c.parquet", "é#1?.parquet"])
def test_any_file_name_is_a_file_name(name: str, tmp_path: Path) -> None:
    write(small(), tmp_path / "m.parquet").rename(tmp_path / name)
    assert len(open_manifest(tmp_path / name)) == 4
    ran = call_cli("score", name, "--method", "random", "-o", f"scores of {name}", cwd=tmp_path)
    assert ran.code == 0, ran.err
    curated = call_cli("curate", f"scores of {name}", "--budget", "0", "-o", f"clean {name}", cwd=tmp_path)
    assert curated.code == 0, curated.err
    assert pq.ParquetFile(tmp_path / f"clean {name}").metadata.num_rows == 4


def test_errors_print_what_where_and_fix() -> None:
    error = InfluenceError("what", where="there", fix="do this")
    assert str(error) == "what\nin: there\nfix: do this"
    assert str(InfluenceError("what")) == "what"


def test_reading_keeps_no_payload_in_memory(tmp_path: Path) -> None:
    manifest = open_manifest(write(small(), tmp_path / "m.parquet"))
    assert "features" not in manifest.table.column_names
    assert set(pq.read_schema(tmp_path / "m.parquet").names) - set(manifest.table.column_names) == {"features"}

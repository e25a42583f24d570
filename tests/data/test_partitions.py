"""Columns in names of folders, as Spark, DuckDB and pyarrow write them: read, never lost, and a clash is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from influence_cli.data.ingest import Ingested, make_manifest
from influence_cli.data.open import open_manifest
from influence_cli.data.request import Columns, IngestRequest
from influence_cli.data.tables import parquet_in, read_table
from influence_cli.errors import ManifestError
from tests.cases import call_cli

N = 40


def rows(**more: Any) -> pa.Table:
    x = np.random.default_rng(0).normal(size=(N, 2)).astype(np.float32)
    features = pa.array(x.tolist(), pa.list_(pa.float32()))
    label = pa.array((x[:, 0] > 0).astype(np.int64))
    return pa.table({"id": [f"r{k}" for k in range(N)], "features": features, "label": label, **more})


SPLIT = ["train"] * 20 + ["val"] * 10 + ["test"] * 10


def divided(root: Path, table: pa.Table, *keys: str) -> Path:
    """The table as pyarrow writes it in folders ``key=value``."""
    schema = pa.schema([table.schema.field(key) for key in keys])
    ds.write_dataset(table, root, format="parquet", partitioning=ds.partitioning(schema, flavor="hive"))
    return root


def read(source: Path, output: Path, **columns: Any) -> Ingested:
    return make_manifest(IngestRequest(str(source), str(output / "m.parquet"), Columns(**columns)))


def test_a_split_in_names_of_folders_is_the_split_of_the_rows(tmp_path: Path) -> None:
    made = read(divided(tmp_path / "h", rows(split=SPLIT), "split"), tmp_path).manifest
    assert dict(zip(made.ids, made.splits.tolist(), strict=True)) == {f"r{k}": s for k, s in enumerate(SPLIT)}
    pq.write_table(rows(split=SPLIT), tmp_path / "one.parquet")
    assert made.fingerprint == open_manifest(tmp_path / "one.parquet").fingerprint


def test_a_stage_does_not_train_on_rows_whose_split_stands_in_names_alone(tmp_path: Path) -> None:
    table = rows()
    for name in ("train-0.parquet", "test-0.parquet", "train/0.parquet", "test/0.parquet"):
        kind = "files" if "-" in name else "folders"
        (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(20 * name.startswith("test"), 20), tmp_path / kind / name)
    divided(tmp_path / "hive", rows(split=SPLIT), "split")
    for kind in ("files", "folders", "hive"):
        with pytest.raises(ManifestError, match="stands in names alone") as refused:
            open_manifest(tmp_path / kind)
        assert f"influence manifest {tmp_path / kind} -o" in refused.value.fix
        assert (read(tmp_path / kind, tmp_path).manifest.splits == "test").sum() == (10 if kind == "hive" else 20)
    ran = call_cli("retrain", "hive", "--model", "linear", "-o", "run", cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("key", "values", "kind"), [
    ("year", [2023 + k % 2 for k in range(N)], pa.int64()),
    ("group", [("a b/c", "\u00fc=1%")[k % 2] for k in range(N)], pa.string()),
    ("zip", [("01", "02")[k % 2] for k in range(N)], pa.string()),
    ("group", [("g", None)[k % 2] for k in range(N)], pa.string()),
    ("weight", [(0.5, 2.0)[k % 2] for k in range(N)], pa.float64()),
])  # fmt: skip
def test_a_column_in_names_of_folders_is_a_column(tmp_path: Path, key: str, values: list[Any], kind: Any) -> None:
    plain = open_manifest(rows())
    source = divided(tmp_path / "h", rows(**{key: pa.array([v if v is None else str(v) for v in values])}), key)
    manifest = open_manifest(source)
    column = manifest.table.column(key)
    assert column.type == kind
    assert {i: v for i, v in zip(manifest.ids, column.to_pylist(), strict=True)} == {
        f"r{k}": v for k, v in enumerate(values)
    }
    assert manifest.fingerprint == plain.fingerprint  # names of rows are of what they are
    assert sorted(map(bytes, manifest.payload_keys)) == sorted(map(bytes, plain.payload_keys))
    assert key in read_table(source).column_names
    assert manifest.folder == source


def test_labels_in_names_of_folders(tmp_path: Path) -> None:
    names = pa.array([("cat", "big dog")[k % 2] for k in range(N)])
    made = read(divided(tmp_path / "h", rows().set_column(2, "label", names), "label"), tmp_path).manifest
    classes = ("big dog", "cat")
    assert made.classes == classes
    assert {i: classes[y] for i, y in zip(made.ids, made.labels.tolist(), strict=True)} == {
        f"r{k}": v for k, v in enumerate(names.to_pylist())
    }
    direct = open_manifest(divided(tmp_path / "numbers", rows(), "label"))
    assert direct.fingerprint == open_manifest(rows()).fingerprint


def test_other_columns_in_names_of_folders_are_features_only_where_they_are_asked_for(tmp_path: Path) -> None:
    table = pa.table({"a": np.arange(8.0), "year": [2023, 2024] * 4, "label": [0, 1] * 4})
    source = divided(tmp_path / "h", table, "year")
    made = read(source, tmp_path)
    assert {len(v) for _, v in made.manifest.payloads(made.manifest.all_rows().index)} == {1}
    assert any(note.startswith("left out: column year: it stands in names of folders") for note in made.notes)
    assert len(set(made.manifest.ids)) == 8
    asked = read(source, tmp_path, features=("a", "year")).manifest
    assert sorted(v.tolist() for _, v in asked.payloads(asked.all_rows().index)) == [
        [float(k), 2023.0 + k % 2] for k in range(8)
    ]


def test_a_file_that_says_otherwise_than_its_folder_is_refused(tmp_path: Path) -> None:
    for name, table in (("same", rows(split=["test"] * N)), ("other", rows(split=SPLIT))):
        (tmp_path / name / "split=test").mkdir(parents=True)
        pq.write_table(table, tmp_path / name / "split=test" / "p.parquet")
    assert set(open_manifest(tmp_path / "same").splits.tolist()) == {"test"}  # as polars writes it
    for refused in (open_manifest, lambda source: read(source, tmp_path)):
        with pytest.raises(ManifestError, match="other values than the name of its folder, split=test") as clash:
            refused(tmp_path / "other")
        assert "p.parquet, column split" in clash.value.where


def test_a_file_outside_of_the_folders_that_say_what_rows_are_is_refused(tmp_path: Path) -> None:
    (tmp_path / "h" / "split=test").mkdir(parents=True)
    pq.write_table(rows().slice(0, 20), tmp_path / "h" / "split=test" / "p.parquet")
    pq.write_table(rows().slice(20), tmp_path / "h" / "p.parquet")
    with pytest.raises(ManifestError, match="this one does not") as refused:
        read(tmp_path / "h", tmp_path)
    assert refused.value.where.endswith("h/p.parquet")


def test_hidden_parquet_is_no_part_of_a_folder_and_links_are(tmp_path: Path) -> None:
    for folder in ("", ".ipynb_checkpoints", "_temporary/0", "part"):
        (tmp_path / "h" / folder).mkdir(parents=True, exist_ok=True)
        pq.write_table(rows(), tmp_path / "h" / folder / "p.parquet")
    (tmp_path / "h" / "again").symlink_to(tmp_path / "h" / "part")
    (tmp_path / "h" / "part" / "up").symlink_to(tmp_path / "h")
    found = [p.relative_to(tmp_path / "h").as_posix() for p in parquet_in(tmp_path / "h")]
    assert found == ["again/p.parquet", "p.parquet", "part/p.parquet"]


def test_what_stands_beside_parquet_is_said(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir()
    pq.write_table(rows(), tmp_path / "h" / "p.parquet")
    (tmp_path / "h" / "more.csv").write_text("a,label\n1,0\n")
    assert "left out: 1 file .csv: the folder is read as Parquet, since it holds some (more.csv)" in (
        read(tmp_path / "h", tmp_path).notes
    )


def test_the_columns_stay_through_an_edit(tmp_path: Path) -> None:
    source = divided(tmp_path / "h", rows(split=SPLIT, group=["a", "b"] * 20), "group")
    model = ("--model", "linear", "--epochs", "2", "-o", "run")
    assert call_cli("retrain", source, *model, cwd=tmp_path).code == 0
    assert call_cli("score", "--method", "ip", source, "--checkpoint", "run", "-o", "s.parquet", cwd=tmp_path).code == 0
    ran = call_cli("curate", "s.parquet", "--action", "trim", "--budget", "5", "-o", "c.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    curated = pq.read_table(tmp_path / "c.parquet")
    assert len(curated) == N - 5
    before = {f"r{k}": "ab"[k % 2] for k in range(N)}
    assert all(before[i] == g for i, g in zip(curated["id"].to_pylist(), curated["group"].to_pylist(), strict=True))


@pytest.mark.parametrize("name", ["Split", "SPLIT", "subset", "_split", "fold"])
def test_splits_in_folders_of_any_name_are_splits(name: str, tmp_path: Path) -> None:
    for k, value in enumerate(("train", "val", "test")):
        place = tmp_path / "h" / f"{name}={value}"
        place.mkdir(parents=True)
        rows = {"id": [f"{value}{n}" for n in range(4)], "features": [[float(k), float(n)] for n in range(4)]}
        pq.write_table(pa.table({**rows, "label": [0, 1, 0, 1]}), place / "p.parquet")
    made = make_manifest(IngestRequest(str(tmp_path / "h"), str(tmp_path / "m.parquet"))).manifest
    assert [i.rstrip("0123456789") for i in made.ids] == made.splits.tolist()
    with pytest.raises(ManifestError, match="stands in names alone"):
        open_manifest(tmp_path / "h")


@pytest.mark.parametrize(
    ("name", "label", "command"),
    [
        ("t.csv", "label", "influence manifest t.csv -o t.parquet"),
        ("my table.tsv", "income", "influence manifest 'my table.tsv' --label income -o 'my table.parquet'"),
        ("d.npz", "label", "rename it to d.csv"),  # which it is
        ("plain.parquet", "income", "influence manifest plain.parquet --label income -o plain-manifest.parquet"),
        ("named.parquet", "label", "influence manifest named.parquet -o named-manifest.parquet"),
        ("photos", "label", "influence manifest photos -o photos.parquet"),
        ("taken.csv", "label", "influence manifest taken.csv -o taken-manifest.parquet"),
    ],
)
def test_what_is_no_manifest_names_the_command_that_makes_one(
    name: str, label: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos/cat").mkdir(parents=True)
    Path("taken.parquet").touch()
    plain = pa.table({"a": [1.0, 2.0], "income": ["x", "y"]})
    pq.write_table(plain, "plain.parquet")
    pq.write_table(pa.table({"id": ["a", "b"], "features": [[1.0], [2.0]], "label": ["x", "y"]}), "named.parquet")
    for text in ("t.csv", "my table.tsv", "d.npz", "taken.csv"):
        Path(text).write_text("a,income\n1,x\n")
    with pytest.raises(ManifestError) as caught:
        open_manifest(name, label)
    assert caught.value.fix.endswith(command)

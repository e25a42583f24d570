"""Labels of each task from sources to a manifest, through edits and back into the source's form.

Behavioural: columns, lists, texts and arrays give the same labels; a label of the wrong type names column and row;
edits of a regression go back into its CSV line by line, and are undone.

    python -m pytest tests/data/test_label_kinds.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data import request
from influence_cli.data.ingest import make_manifest
from influence_cli.data.label_kinds import TASKS
from influence_cli.data.labels import wrong_labels
from influence_cli.data.open import open_manifest
from influence_cli.data.request import Columns, IngestRequest
from influence_cli.errors import ManifestError
from influence_cli.store.keys import row_key, row_keys
from tests.cases import call_cli

NAMES = ("blue", "green", "red")
FLAGS = np.random.default_rng(5).integers(0, 2, (12, 3))
VALUES = np.random.default_rng(6).normal(size=(12, 2)).round(3)


def made(folder: Path, source: Any, **columns: Any) -> Any:
    request = IngestRequest(source, str(folder / "m.parquet"), Columns(**columns), split="100/0/0")
    return make_manifest(request).manifest


def csv(folder: Path, header: str, *columns: Any) -> str:
    path = folder / "rows.csv"
    rows = zip(VALUES[:, 0], VALUES[:, 1], *columns, strict=True)
    path.write_text(f"a,b,{header}\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return str(path)


def present(row: Any, names: Any = NAMES) -> list[Any]:
    return [name for name, there in zip(names, row, strict=True) if there]


@pytest.mark.parametrize("form", ["columns", "pattern", "text", "lists of names", "lists of flags", "npz", "described"])
def test_several_labels_are_the_same_from_every_source(form: str, tmp_path: Path) -> None:
    several: dict[str, Any] = {"task": "multi-label"}
    if form in ("columns", "pattern"):
        asked = "is_blue,is_green,is_red" if form == "columns" else "is_*"
        source: Any = csv(tmp_path, "is_blue,is_green,is_red", *FLAGS.T)
        found = made(tmp_path, source, label=asked, **several)
        assert found.classes == ("is_blue", "is_green", "is_red")
    elif form == "text":
        source = csv(tmp_path, "tags", ["; ".join(present(row)) for row in FLAGS])
        found = made(tmp_path, source, label="tags", **several)
        assert found.classes == NAMES
    elif form == "npz":
        np.savez(tmp_path / "rows.npz", x=VALUES, y=FLAGS)
        found = made(tmp_path, str(tmp_path / "rows.npz"), **several)
        assert found.classes == ("0", "1", "2")
    else:
        write = {"lists of names": present, "described": lambda row: present(row, range(3))}.get(form, list)
        values = [write(row) for row in FLAGS.tolist()]
        table = pa.table({"a": VALUES[:, 0], "b": VALUES[:, 1], "tags": pa.array(values)})
        if form == "described":
            about = {"tags": {"feature": {"names": list(NAMES), "_type": "ClassLabel"}, "_type": "Sequence"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": about}})})
        found = made(tmp_path, table, label="tags", **several)
        assert found.classes == (("0", "1", "2") if form == "lists of flags" else NAMES)
    assert found.task == "multi-label"
    assert found.labels.dtype == np.int8
    assert np.array_equal(found.labels, FLAGS)


def test_numbers_are_read_as_they_are_written(tmp_path: Path) -> None:
    y = np.array([1.5, -2.0, 0.0, 3e3, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.25])
    found = made(tmp_path, csv(tmp_path, "y", y), task="regression")
    assert found.labels.tolist() == y.tolist()
    assert pq.read_schema(tmp_path / "m.parquet").metadata[b"task"] == b"regression"
    (tmp_path / "comma.csv").write_text("a;y\n1;1,5\n2;2,25\n3;-3,0\n")
    assert made(tmp_path, str(tmp_path / "comma.csv"), task="ordinal").labels.tolist() == [1.5, 2.25, -3.0]


@pytest.mark.parametrize(
    ("values", "task", "what"),
    [
        ([*range(11), "high"], "regression", "column y: 'high' is no number"),
        ([*range(11), ""], "regression", "column y is null"),
        ([*range(11), "inf"], "regression", "column y: inf is not finite"),
        ([*range(11), "-1e200"], "regression", r"column y: -1e\+200 is too large to be squared"),
        ([*range(11), 2.5], None, r"column y: 2.5 is no class number"),
    ],
)
def test_a_label_of_the_wrong_type_names_column_and_row(values: Any, task: Any, what: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=what) as caught:
        made(tmp_path, csv(tmp_path, "y", values), task=task)
    assert "row id=row-11" in str(caught.value.where)


def test_columns_that_are_none_of_the_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="names 2 columns, and a row has one label"):
        made(tmp_path, csv(tmp_path, "u,v", *FLAGS.T[:2]), label="u,v")
    with pytest.raises(ManifestError, match="needs lists or texts"):
        made(tmp_path, csv(tmp_path, "u,v", *FLAGS.T[:2]), label="u", task="multi-label")
    with pytest.raises(ManifestError, match="neither 0 nor 1"):
        made(tmp_path, csv(tmp_path, "u,v", FLAGS[:, 0] * 2, FLAGS[:, 1]), label="u,v", task="multi-label")
    bad = pa.table({"id": ["a", "b"], "features": [[1.0], [2.0]], "label": ["x", "y"]})
    pq.write_table(bad.replace_schema_metadata({"task": "regression"}), tmp_path / "bad.parquet")
    with pytest.raises(ManifestError, match="labels are string, and task regression needs numbers"):
        open_manifest(str(tmp_path / "bad.parquet"))
    worse = pa.table({"id": ["a", "b"], "features": [[1.0], [2.0]], "label": [1.0, float("inf")]})
    pq.write_table(worse.replace_schema_metadata({"task": "regression"}), tmp_path / "bad.parquet")
    with pytest.raises(ManifestError, match="a label is inf, not finite"):
        open_manifest(str(tmp_path / "bad.parquet"))
    assert [b.id for b in open_manifest(str(tmp_path / "bad.parquet"), skip_bad=True).bad] == ["b"]
    large = pa.table({"id": ["a", "b"], "features": [[1.0], [2.0]], "label": [1e149, 1e151]})
    pq.write_table(large.replace_schema_metadata({"task": "regression"}), tmp_path / "bad.parquet")
    with pytest.raises(ManifestError, match="too large to be squared") as caught:
        open_manifest(str(tmp_path / "bad.parquet"))
    assert "row id=b" in str(caught.value.where)


def test_row_keys_of_classes_stay_and_no_other_label_has_theirs() -> None:
    payloads = np.arange(48, dtype=np.uint8).reshape(3, 16)
    classes = row_keys(payloads, np.array([0, 1, 2]))
    assert classes[1].tobytes() == row_key(payloads[1].tobytes(), 1)
    numbers = row_keys(payloads, np.array([0.0, 1.0, 2.0]))
    several = row_keys(payloads, np.zeros((3, 8), dtype=np.int8))
    every = {k.tobytes() for keys in (classes, numbers, several) for k in keys}
    assert len(every) == 9
    assert not np.array_equal(several, row_keys(payloads, np.eye(3, 8, dtype=np.int8)))


def test_true_numbers_and_lists_tell_which_labels_are_wrong(tmp_path: Path) -> None:
    y = np.arange(12.0)
    true = [*y[:9], y[9] + 1, None, y[11]]
    table = pa.table({"a": VALUES[:, 0], "y": y, "clean_label": pa.array(true)})
    found = wrong_labels(made(tmp_path, table, label="y", task="regression").all_rows())
    assert found is not None
    assert np.flatnonzero(found[0]).tolist() == [9]
    assert np.flatnonzero(~found[1]).tolist() == [10]


def test_every_task_can_be_asked_for() -> None:
    assert set(request.TASKS) == set(TASKS)


def test_tables_show_labels_as_people_read_them() -> None:
    assert TASKS["multi-label"].shown(FLAGS[:2].astype(np.int8), NAMES).to_pylist() == [
        ";".join(present(row)) for row in FLAGS[:2]
    ]
    assert TASKS["regression"].shown(np.array([1.5, np.nan]), None).to_pylist() == [1.5, None]


def test_a_regression_goes_from_its_csv_through_edits_back_to_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2)).round(4)
    lines = [f"{a},{b},{2 * a - b + 0.1 * e:.3f}" for (a, b), e in zip(x, rng.normal(size=80), strict=True)]
    (tmp_path / "rows.csv").write_text("a,b,y\n" + "\n".join(lines) + "\n")

    def into(command: str, output: str) -> str:
        ran = call_cli(*command.split(), "-o", output, cwd=tmp_path)
        assert ran.code == 0, ran.err
        return ran.err

    said = into("manifest rows.csv --label y --task regression", "m.parquet")
    assert "label: column y (task regression)" in said
    linear = "--model linear --optimizer lbfgs --weight-decay 0.001"
    assert "test RMSE 0." in into(f"retrain m.parquet {linear}", "RUN")
    assert "train RMSE" in into("score m.parquet --checkpoint RUN --method exact --method loss", "s.parquet")
    said = into("curate s.parquet --budget 5 --edits e.parquet --export clean.csv", "c.parquet")
    assert "class" not in said
    kept, before = ((tmp_path / name).read_text().splitlines() for name in ("clean.csv", "rows.csv"))
    assert len(kept) == len(before) - 5
    assert [line for line in before if line in set(kept)] == kept
    assert "of test loss over no edit" in into(f"retrain c.parquet --against m.parquet {linear}", "BOTH")
    into("curate e.parquet --undo --manifest c.parquet", "back.parquet")
    assert pq.read_table(tmp_path / "back.parquet").equals(pq.read_table(tmp_path / "m.parquet"))
    refused = call_cli("curate", "s.parquet", "--action", "relabel", "-o", "r.parquet", cwd=tmp_path)
    assert refused.code == 2
    assert "these labels are no classes" in refused.err
    refused = call_cli(*f"retrain m.parquet {linear} --canaries 5% -o C".split(), cwd=tmp_path)
    assert (refused.code, "canaries are rows with another class" in refused.err) == (2, True)


@pytest.mark.parametrize("bad", [None, "k.A.", "true", "1'234", "5 €"])
@pytest.mark.parametrize("labels", [("1.234", "2.500"), ("1,5", "2,25"), ("1.234,5", "007")])
def test_a_bad_label_changes_no_other(bad: str | None, labels: tuple[str, str], tmp_path: Path) -> None:
    lines = [f"0,12{k};{labels[k % 2]}" for k in range(8)] + ([f"0,5;{bad}"] if bad else [])
    (tmp_path / "rows.csv").write_text("x;y\n" + "\n".join(lines) + "\n")
    asked = IngestRequest(
        str(tmp_path / "rows.csv"), str(tmp_path / "m.parquet"), Columns(task="regression"), skip_bad=True
    )
    found = make_manifest(asked)
    want = {"1.234": 1234.0, "2.500": 2500.0, "1,5": 1.5, "2,25": 2.25, "1.234,5": 1234.5, "007": 7.0}
    assert sorted(set(found.manifest.all_rows().labels.tolist())) == sorted(want[v] for v in labels)
    assert "column y: 1,5 is read as 1.5, and 1.234 as 1234" in found.taken
    assert len(found.skipped) == (bad is not None)


@pytest.mark.parametrize("form", ["csv", "frame"])
def test_an_empty_cell_among_columns_of_labels_is_a_bad_row(form: str, tmp_path: Path) -> None:
    values = [[*map(float, column)] for column in FLAGS.T]
    values[1][7] = float("nan") if form == "frame" else ""  # type: ignore[call-overload]
    columns = dict(zip(("t1", "t2", "t3"), values, strict=True))
    source: Any = csv(tmp_path, "t1,t2,t3", *values)
    if form == "frame":
        source = pa.table({"a": VALUES[:, 0], "b": VALUES[:, 1], **columns})
    asked: dict[str, Any] = {"label": "t*", "task": "multi-label"}
    with pytest.raises(ManifestError, match="column t2: a value is missing, which is neither 0 nor 1") as caught:
        made(tmp_path, source, **asked)
    assert "row id=row-7" in str(caught.value.where)
    found = make_manifest(IngestRequest(source, str(tmp_path / "m.parquet"), Columns(**asked), skip_bad=True))
    assert [name for name, _ in found.skipped] == ["row-7"]
    assert np.array_equal(found.manifest.labels, np.delete(FLAGS, 7, axis=0))


@pytest.mark.parametrize("form", ["jsonl", "frame", "parquet", "csv"])
def test_a_null_label_is_no_row_without_labels(form: str, tmp_path: Path) -> None:
    tags = ["x;y", "", None, "y"] * 3
    table = pa.table({"a": VALUES[:, 0], "b": VALUES[:, 1], "tags": tags})
    source: Any = table
    if form == "jsonl":
        source = str(tmp_path / "rows.jsonl")
        Path(source).write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif form == "parquet":
        source = str(tmp_path / "rows.parquet")
        pq.write_table(table, source)
    elif form == "csv":
        source = csv(tmp_path, "tags", [tag or "" for tag in tags])
        assert made(tmp_path, source, label="tags", task="multi-label").labels.tolist() == [
            *[[1, 1], [0, 0], [0, 0], [0, 1]] * 3
        ]
        return
    asked = Columns(label="tags", task="multi-label")
    with pytest.raises(ManifestError, match="column tags is null in 3 rows"):
        make_manifest(IngestRequest(source, str(tmp_path / "m.parquet"), asked))
    found = make_manifest(IngestRequest(source, str(tmp_path / "m.parquet"), asked, skip_bad=True))
    assert [name for name, _ in found.skipped] == ["row-2", "row-6", "row-10"]
    assert found.manifest.labels.tolist() == [[1, 1], [0, 0], [0, 1]] * 3


@pytest.mark.parametrize("write", [str, json.dumps, np.array])
@pytest.mark.parametrize("flags", [False, True])
def test_lists_that_are_written_as_text_are_lists(write: Any, flags: bool, tmp_path: Path) -> None:
    lists = [row if flags else present(row) for row in FLAGS.tolist()]
    table = pa.table({"a": VALUES[:, 0], "b": VALUES[:, 1], "tags": [str(write(row)) for row in lists]})
    if write is np.array:
        with pytest.raises(ManifestError, match="is no list with commas") as caught:
            made(tmp_path, table, label="tags", task="multi-label")
        assert "write labels with ; between" in caught.value.fix
        return
    found = made(tmp_path, table, label="tags", task="multi-label")
    assert found.classes == (("0", "1", "2") if flags else NAMES)
    assert np.array_equal(found.labels, FLAGS)


def test_a_text_that_is_no_list_among_lists_is_a_bad_row(tmp_path: Path) -> None:
    tags = [str(present(row)) for row in FLAGS[:-1]] + ["k.A."]
    request = IngestRequest(
        csv(tmp_path, "tags", [f'"{t}"' for t in tags]), str(tmp_path / "m.parquet"),
        Columns(label="tags", task="multi-label"), skip_bad=True,
    )  # fmt: skip
    found = make_manifest(request)
    assert [name for name, _ in found.skipped] == ["row-11"]
    assert found.manifest.classes == NAMES
    assert np.array_equal(found.manifest.labels, FLAGS[:-1])


@pytest.mark.parametrize("form", ["csv", "frame"])
@pytest.mark.parametrize("copy", ["same", "codes"])
@pytest.mark.parametrize("task", ["regression", "ordinal"])
def test_a_column_of_the_numbers_to_predict_is_refused(form: str, copy: str, task: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    y = rng.normal(size=60).round(3) if copy == "same" else rng.integers(0, 4, 60).astype(float)
    table = {"a": rng.normal(size=60).round(3), "b": y if copy == "same" else 7 - 2 * y, "y": y}
    source: Any = pa.table(table)
    if form == "csv":
        source = str(tmp_path / "rows.csv")
        lines = [",".join(map(str, row)) for row in zip(*table.values(), strict=True)]
        Path(source).write_text("a,b,y\n" + "\n".join(lines) + "\n")
    with pytest.raises(ManifestError, match=r"column b is the label \(column y\)") as caught:
        made(tmp_path, source, task=task)
    assert "--drop-column b" in caught.value.fix
    assert made(tmp_path, source, task=task, drop=("b",)).labels.tolist() == y.tolist()
    assert made(tmp_path, source, task=task, features=("a", "b")).labels.tolist() == y.tolist()


@pytest.mark.parametrize("task", [None, "regression"])
def test_true_and_false_are_the_same_labels_from_text_and_from_parquet(task: str | None, tmp_path: Path) -> None:
    truth = [bool(k % 3) for k in range(12)]
    text = csv(tmp_path, "y", truth)
    pq.write_table(pa.table({"a": VALUES[:, 0], "b": VALUES[:, 1], "y": truth}), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"a": a, "b": b, "y": y}) + "\n" for (a, b), y in zip(VALUES, truth, strict=True))
    )
    for source in (text, str(tmp_path / "rows.parquet"), str(tmp_path / "rows.jsonl")):
        found = made(tmp_path, source, task=task)
        assert found.classes == (None if task else ("False", "True"))
        assert found.labels.tolist() == [float(y) if task else int(y) for y in truth]
        ran = call_cli(
            "manifest", source, *(("--task", task) if task else ()), "-o", tmp_path / "n.parquet", cwd=tmp_path
        )
        assert ("true is read as 1, and false as 0" in ran.err) == bool(task)


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (("blue", "green", "red"), "blue;red"),
        (("a; b", "green", "red"), "['a; b', 'red']"),
        (("green", "it's a,b", "x|y"), "['green', 'x|y']"),
    ],
)
def test_several_labels_in_a_csv_are_read_again_as_they_were(
    names: tuple[str, ...], written: str, tmp_path: Path
) -> None:
    """Whatever stands in their names: a semicolon, a comma, a bar or a quote."""
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]] * 3)
    table = pa.table({"a": VALUES[:, 0], "b": VALUES[:, 1], "tags": [present(row, names) for row in labels]})
    manifest = made(tmp_path, table, label="tags", task="multi-label")
    assert manifest.classes == names
    keys = pa.array([key.tobytes() for key in manifest.row_keys])
    pq.write_table(pa.table({"id": manifest.ids, "row_key": keys, "score": np.arange(12.0)}), tmp_path / "s.parquet")
    asked = ("curate", "s.parquet", "--manifest", "m.parquet", "--budget", "0", "--export", "o.csv")
    ran = call_cli(*asked, "--export-as", "csv", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert written in (tmp_path / "o.csv").read_text().splitlines()[1].replace('""', '"')
    again = made(tmp_path, str(tmp_path / "o.csv"), label="label", task="multi-label")
    assert again.classes == names
    assert np.array_equal(again.labels, labels)


def test_a_name_that_no_text_of_a_list_holds_is_refused(tmp_path: Path) -> None:
    names = ('it\'s; "x"', "y")
    table = pa.table({"a": VALUES[:, 0], "tags": [present(row, names) for row in FLAGS[:, :2]]})
    manifest = made(tmp_path, table, label="tags", task="multi-label")
    keys = pa.array([key.tobytes() for key in manifest.row_keys])
    pq.write_table(pa.table({"id": manifest.ids, "row_key": keys, "score": np.arange(12.0)}), tmp_path / "s.parquet")
    asked = ("curate", "s.parquet", "--manifest", "m.parquet", "--budget", "0", "--export")
    ran = call_cli(*asked, "o.csv", "--export-as", "csv", cwd=tmp_path)
    assert (ran.code, "no text of a table stands for the labels" in ran.err) == (2, True), ran.err
    assert not (tmp_path / "o.csv").exists()
    assert call_cli(*asked, "o.jsonl", "--export-as", "jsonl", cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    ("task", "label", "names", "told"),
    [
        ("classification", 1, ("cat", "dog"), "dog"),
        ("classification", 1, None, "1"),
        ("regression", 0.1 + 0.2, None, "0.3"),
        ("multi-label", np.array([1, 0, 1]), ("a", "b", "c"), "a, c"),
        ("multi-label", "a;c", ("a", "b", "c"), "a, c"),
        ("multi-label", "", ("a", "b", "c"), "no label"),
        ("multi-label", np.array([0, 0]), ("a", "b"), "no label"),
        ("language", 0, None, "no label"),
        ("classification", None, ("cat", "dog"), "no label"),
    ],
)
def test_a_label_is_told_alike_on_every_page(task: str, label: Any, names: Any, told: str) -> None:
    assert TASKS[task].told(label, names) == told


@pytest.mark.parametrize("copy", ["flag", "joined"])
def test_a_column_that_says_several_labels_is_refused(copy: str, tmp_path: Path) -> None:
    flags = np.random.default_rng(4).integers(0, 2, (60, 2))
    again = flags[:, 1] if copy == "flag" else [";".join(present(row, ("u", "v"))) for row in flags]
    table = pa.table({"a": np.arange(60) * 7 % 11, "b": again, "t1": flags[:, 0], "t2": flags[:, 1]})
    of = "t2" if copy == "flag" else "t1, t2"
    with pytest.raises(ManifestError, match=rf"column b is the label \(column {of}\)"):
        made(tmp_path, table, label="t1,t2", task="multi-label")
    found = made(tmp_path, table, label="t1,t2", task="multi-label", drop=("b",))
    assert np.array_equal(found.labels, flags)

"""Classes by name: whatever numbers a manifest gives them, rows mean what their names say; unknown names are refused.

Reference: the same rows with the numbers of the train manifest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import influence_cli
from influence_cli.data.classes import class_count
from influence_cli.data.labels import clean_labels, numbered_as
from influence_cli.data.manifest import Manifest
from influence_cli.data.open import open_manifest
from influence_cli.errors import ManifestError
from influence_cli.stages.retrain.request import CanaryRequest
from tests.cases import Heard, call_cli, column, write

NAMES = ("a", "b", "c", "d", "e")
MIXED = ("e", "c", "b", "a")
RECIPE: dict[str, Any] = {"model": "linear", "optimizer": "lbfgs", "weight_decay": 1e-2}


def named_rows(
    n: int, seed: int, prefix: str, order: tuple[str, ...] | None = NAMES, of: str = "abcde", **columns: Any
) -> pa.Table:
    """Rows of the classes ``of``, numbered as in ``order`` and named so; without names where that is None."""
    rng = np.random.default_rng(seed)
    true = rng.choice([NAMES.index(c) for c in of], n)
    x = np.random.default_rng(9).normal(size=(5, 6))[true] * 2 + rng.normal(size=(n, 6))
    labels = [(order or NAMES).index(NAMES[k]) for k in true]
    features = pa.array(x.tolist(), pa.list_(pa.float32()))
    table = pa.table({"id": [f"{prefix}{k}" for k in range(n)], "features": features, "label": labels, **columns})
    return called(table, order)


def called(table: pa.Table, names: tuple[str, ...] | None) -> pa.Table:
    """The table with other names of its classes."""
    return table.replace_schema_metadata(None if names is None else {"classes": json.dumps(names)})


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train, val and test rows, the latter two also in an order of their own, and a run folder."""
    folder = tmp_path_factory.mktemp("classes")
    write(named_rows(80, 1, "t"), folder / "train.parquet")
    for name, seed, of in (("val", 2, "abce"), ("test", 3, "abce")):
        write(named_rows(40, seed, name, of=of), folder / f"{name}.parquet")
        write(named_rows(40, seed, name, MIXED, of), folder / f"{name}-mixed.parquet")
    asked = {"test": str(folder / "test.parquet"), **RECIPE}
    influence_cli.retrain(str(folder / "train.parquet"), str(folder / "run"), **asked)
    return folder


def score(here: Path, target: Any, **options: Any) -> pa.Table:
    """Scores of the train rows at the run."""
    rows = options.pop("rows_of", str(here / "train.parquet"))
    return influence_cli.score(
        rows, target=target, **{"method": "ip", "checkpoint": str(here / "run"), "store": None, **options}
    )


class Held(torch.utils.data.Dataset):
    """A table's rows as a Dataset with its classes."""

    def __init__(self, table: pa.Table) -> None:
        self.x = torch.tensor(table["features"].to_pylist())
        self.y, self.classes = table["label"].to_pylist(), json.loads(table.schema.metadata[b"classes"])

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return self.x[k], self.y[k]


# ---- targets, fit rows, tests and arms -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"method": "ip-ensemble", "options": {"ip-ensemble": {"members": 2}}}])
def test_target_rows_are_numbered_by_name_in_files_and_in_memory(here: Path, options: dict[str, Any]) -> None:
    heard, mixed = Heard(), here / "val-mixed.parquet"
    expected = score(here, str(here / "val.parquet"), **options)
    found = score(here, str(mixed), listener=heard, **options)
    assert column(found).tolist() == column(expected).tolist()
    said = f"labels of {mixed} are numbered as in {here / 'train.parquet'}, by the names of the classes"
    assert heard.notes.count(said) == 1
    told = (json.loads(t.schema.metadata[b"influence"])["target"] for t in (found, expected))
    assert len({t["fingerprint"] for t in told}) == 1, "row keys are those of the new labels"
    assert column(score(here, pq.read_table(mixed), **options)).tolist() == column(expected).tolist()


def test_target_rows_one_by_one_are_numbered_by_name(here: Path) -> None:
    for rows in (None, "full"):
        asked = {"checkpoint": str(here / "run"), "store": None, "rows": rows, "top": 3}
        right, found = (
            influence_cli.per_target(str(here / "train.parquet"), target=str(here / name), **asked)
            for name in ("val.parquet", "val-mixed.parquet")
        )
        assert found.to_pylist() == right.to_pylist()


def test_datasets_are_numbered_by_their_classes(here: Path) -> None:
    torch.manual_seed(0)
    task, train = influence_cli.Task(nn.Linear(6, 5)), Held(pq.read_table(here / "train.parquet"))
    val, mixed = (Held(pq.read_table(here / f"{name}.parquet")) for name in ("val", "val-mixed"))
    found = [
        column(influence_cli.score(train, method="ip", target=t, task=task, store=None)).tolist() for t in (val, mixed)
    ]
    assert found[0] == found[1]
    val.classes = {"a": 0}  # type: ignore[assignment]
    with pytest.raises(ManifestError, match="its classes are a dict, not a list"):
        influence_cli.score(train, method="ip", target=val, task=task, store=None)


def test_fit_rows_are_numbered_by_name(here: Path) -> None:
    target = str(here / "val.parquet")
    right = score(here, target, method="exact", fit_rows=str(here / "test.parquet"))
    for rows in (str(here / "test-mixed.parquet"), pq.read_table(here / "test-mixed.parquet")):
        assert column(score(here, target, method="exact", fit_rows=rows)).tolist() == column(right).tolist()


def test_test_rows_and_arms_are_numbered_by_name(here: Path, tmp_path: Path) -> None:
    train, scores = str(here / "train.parquet"), score(here, str(here / "val.parquet"))
    curated = str(tmp_path / "c.parquet")
    assert influence_cli.curate(scores, manifest=train, action="relabel", budget=20, output=curated).num_rows > 0
    table = pq.read_table(tmp_path / "c.parquet")
    for name in ("label", "influence_proposal"):
        turned = pa.array([None if v is None else 4 - v for v in table[name].to_pylist()], pa.int64())
        table = table.set_column(table.column_names.index(name), name, turned)
    turned = str(write(called(table, NAMES[::-1]), tmp_path / "turned.parquet"))
    asked = {"against": train, **RECIPE}
    test, mixed = str(here / "test.parquet"), str(here / "test-mixed.parquet")
    right = influence_cli.retrain(curated, str(tmp_path / "r"), test=test, **asked)
    arms = {"again": turned}
    found = influence_cli.retrain(turned, str(tmp_path / "f"), test=pq.read_table(mixed), arms=arms, **asked)
    for name, arm in right["arms"].items():
        assert found["arms"][name]["mean"] == arm["mean"], name
    assert found["arms"]["again"]["mean"] == right["arms"]["curated"]["mean"]


def test_a_class_that_is_not_known_is_refused_by_name(here: Path, tmp_path: Path) -> None:
    odd = str(write(called(named_rows(30, 4, "o", of="abcd"), ("a", "b", "c", "zebra")), tmp_path / "odd.parquet"))
    train, val = str(here / "train.parquet"), str(here / "val.parquet")
    run = ("--checkpoint", here / "run", "--store", "s", "-o", "s.parquet")
    for asked in (
        ("score", "--method", "ip", train, "--target", odd, *run),
        ("score", train, "--target", val, "--fit-rows", odd, "--method", "exact", *run),
        ("retrain", train, "--test", odd, "--model", "linear", "-o", "new"),
        ("retrain", odd, "--against", train, "--test", val, "--model", "linear", "-o", "new"),
    ):
        ran = call_cli(*asked, cwd=tmp_path)
        assert ran.code == 2, asked
        assert f"its classes zebra are none of {train} (a, b, c, d, e)" in ran.err
        assert f"in: {odd}, classes" in ran.err


def test_labels_without_names_stand_for_themselves(here: Path) -> None:
    expected = column(score(here, str(here / "val.parquet"))).tolist()
    plain = called(pq.read_table(here / "val.parquet"), None)
    assert column(score(here, plain)).tolist() == expected
    train, mixed = called(pq.read_table(here / "train.parquet"), None), str(here / "val-mixed.parquet")
    assert column(score(here, mixed, rows_of=train)).tolist() == expected, "the checkpoint has names"


def test_names_that_are_numbers_name_plain_numbers(here: Path) -> None:
    numbers = open_manifest(named_rows(30, 2, "v", None))
    found = numbered_as(numbers, tuple("01234"), "t")
    assert found is numbers
    moved = ("4", "2", "0", "1", "3")
    found = numbered_as(numbers, moved, "t")
    assert [int(moved[k]) for k in found.labels] == numbers.labels.tolist()
    assert np.array_equal(numbered_as(found, tuple("01234"), "t").labels, numbers.labels)
    back = numbered_as(open_manifest(named_rows(30, 2, "v")), None, "t")
    assert np.array_equal(back.labels, numbers.labels), "names that are no numbers say nothing of plain numbers"
    assert numbered_as(open_manifest(called(named_rows(30, 2, "v"), moved)), None, "t").labels.tolist() == [
        int(moved[k]) for k in numbers.labels
    ]
    with pytest.raises(ManifestError, match="label 0 is none of the classes of t"):
        numbered_as(numbers, ("1", "2", "3", "4", "5"), "t")
    with pytest.raises(ManifestError, match="labels are plain numbers where its classes are called"):
        numbered_as(numbers, ("2", "other"), "t")


def test_what_a_checkpoint_was_trained_on_is_refused_in_other_numbers(here: Path, tmp_path: Path) -> None:
    mixed = named_rows(80, 1, "t", NAMES[::-1])
    with pytest.raises(ManifestError, match=r"other classes .* than those that the checkpoint was trained on"):
        score(here, str(here / "val.parquet"), rows_of=mixed)
    with pytest.raises(ManifestError, match=r"other classes .* than those that the checkpoint was trained on"):
        influence_cli.retrain(mixed, str(tmp_path / "r"), test=mixed, init=str(here / "run"), epochs=1)
    scores = score(here, str(here / "val.parquet"))
    renamed = called(pq.read_table(here / "train.parquet"), NAMES[::-1])
    with pytest.raises(ManifestError, match=r"its classes \(e, d, c, b, a\) are not those that were scored"):
        influence_cli.curate(scores, manifest=renamed, budget=3)


def test_files_of_one_manifest_number_their_classes_alike(tmp_path: Path) -> None:
    write(named_rows(20, 1, "a"), tmp_path / "m" / "a.parquet")
    write(named_rows(20, 2, "b", MIXED, "abce"), tmp_path / "m" / "b.parquet")
    with pytest.raises(ManifestError, match="other classes"):
        open_manifest(tmp_path / "m")
    with pytest.raises(ManifestError, match="are not those of"):
        influence_cli.manifest(str(tmp_path / "m"), str(tmp_path / "out.parquet"))
    write(named_rows(20, 2, "b"), tmp_path / "m" / "b.parquet")
    assert open_manifest(tmp_path / "m").classes == NAMES
    write(called(named_rows(20, 2, "b"), None), tmp_path / "m" / "b.parquet")
    assert open_manifest(tmp_path / "m").classes == NAMES
    write(named_rows(20, 1, "a").replace_schema_metadata({"classes": "a, b"}), tmp_path / "n.parquet")
    with pytest.raises(ManifestError, match="no list in JSON"):
        open_manifest(tmp_path / "n.parquet")


# ---- proposals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [None, NAMES])
def test_proposed_labels_are_classes_of_the_data_whatever_the_model_has(names: tuple[str, ...] | None) -> None:
    torch.manual_seed(0)
    train, val = named_rows(60, 1, "t", names, "abc"), named_rows(30, 2, "v", names, "abc")
    task = influence_cli.Task(nn.Linear(6, 40))
    if names is not None:
        train, val, task = (*(called(t, (*NAMES, "f")) for t in (train, val)), influence_cli.Task(nn.Linear(6, 6)))
    table = influence_cli.score(train, method="ip", target=val, task=task, store=None)
    most = 3 if names is None else 6
    for name in ("best_label", "model_label", "other_label"):
        assert max(table[name].to_pylist()) < most
    assert min(table["best_label_gain"].to_pylist()) >= 0.0
    for rule in ("influence", "model"):
        edits = relabelled(table, train, rule)
        assert all(label < most for label in edits["label"].to_pylist())
        foreign = pa.array([39] * 60, pa.int64())
        for name in ("best_label", "other_label"):
            table = table.set_column(table.column_names.index(name), name, foreign)
        assert relabelled(table, train, rule).num_rows == 0, "nor are they taken from another table"


def relabelled(table: pa.Table, train: pa.Table, rule: str) -> pa.Table:
    """The edits of a relabel by a rule."""
    options = {"relabel": {"rule": rule, "guard": False, "min_probability": 0.0}}
    return influence_cli.curate(table, manifest=train, action="relabel", budget=60, options=options)


def test_canaries_get_labels_that_the_data_have(tmp_path: Path) -> None:
    rows = named_rows(120, 1, "t", None, "abc")
    asked = {"num_classes": 40, "canaries": CanaryRequest(0.2), **RECIPE}
    influence_cli.retrain(rows, str(tmp_path / "r"), test=named_rows(40, 2, "v", None, "abc"), **asked)
    planted = json.loads((tmp_path / "r" / "run.json").read_text())["canaries"]
    assert set(planted["planted"]) <= {0, 1, 2}
    assert all(p != k for p, k in zip(planted["planted"], planted["labels"], strict=True))


def test_a_label_without_an_output_in_a_curated_manifest_names_its_row(here: Path, tmp_path: Path) -> None:
    plain = called(pq.read_table(here / "train.parquet"), None)
    odd = plain.set_column(2, "label", pa.array([9, *plain["label"].to_pylist()[1:]]))
    with pytest.raises(ManifestError, match="label 9 is outside the model's 5 classes") as caught:
        influence_cli.retrain(odd, str(tmp_path / "r"), against=plain, test=str(here / "test.parquet"), **RECIPE)
    assert "row id=t0" in str(caught.value)


def test_the_number_of_classes_is_that_of_the_names_or_of_the_labels() -> None:
    labels = np.array([0, 4, 2])
    assert class_count(None, labels) == 5
    assert class_count(NAMES[:3], labels) == 3
    assert class_count(None, labels[:0]) == 0


# ---- clean labels ---------------------------------------------------------------------------------------------------


def clean_of(values: Any, names: tuple[str, ...] | None = NAMES) -> NDArray[np.int64] | None:
    """Clean labels of a manifest whose column holds ``values``."""
    rows = named_rows(len(values), 1, "t", names, clean_label=values)
    return clean_labels(open_manifest(rows).all_rows())


def test_clean_labels_may_be_names_or_numbers() -> None:
    assert clean_of(["a", None, "e"]).tolist() == [0, -1, 4]
    assert clean_of(pa.array(["a", None, "e"]).dictionary_encode()).tolist() == [0, -1, 4]
    assert clean_of(pa.array([0, None, 4])).tolist() == [0, -1, 4]
    assert clean_of(pa.array([0.0, float("nan"), 4.0])).tolist() == [0, -1, 4]
    assert clean_of(["0", None, "4"], None).tolist() == [0, -1, 4]
    for values, names in ((["a", "zebra"], NAMES), ([1, 5], NAMES), ([1.0, 0.5], NAMES), (["1", "x"], None)):
        with pytest.raises(ManifestError, match="is no class") as caught:
            clean_of(values, names)
        assert "row id=t1, column clean_label" in str(caught.value)
    with pytest.raises(ManifestError, match="clean labels are bool, not integers"):
        clean_of([True, False])


def test_clean_labels_follow_the_labels_that_are_numbered_anew() -> None:
    true = named_rows(40, 1, "t")["label"].to_pylist()
    order = NAMES[::-1]
    for clean in ([4 - k for k in true], [NAMES[k] for k in true]):
        moved: Manifest = numbered_as(open_manifest(named_rows(40, 1, "t", order, clean_label=clean)), NAMES, "t")
        assert moved.labels.tolist() == true
        assert clean_labels(moved.all_rows()).tolist() == true


@pytest.mark.parametrize(
    "names", [("cat", "dog", "owl"), ("01", "02", "03"), ("1", "2", "x"), ("true", "false", "maybe"), ("7", "8", "9")]
)
@pytest.mark.parametrize("form", ["csv", "jsonl", "frame"])
def test_clean_labels_are_numbered_as_labels_are(names: tuple[str, ...], form: str, tmp_path: Path) -> None:
    true = [0, 1, 2, 0, 1, 2]
    labels, clean = [names[k] for k in (0, 1, 2, 0, 2, 1)], [None if k == 3 else names[v] for k, v in enumerate(true)]
    clean[2] = names[1] if names[2] in ("x", "maybe") else clean[2]  # all that is left may be read as another type
    clean[5] = clean[2]
    rows = [{"id": f"r{k}", "f": float(k), "label": labels[k], "clean_label": clean[k]} for k in range(6)]
    source: Any = tmp_path / f"m.{form}"
    if form == "csv":
        lines = [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
        source.write_text("\n".join(["id,f,label,clean_label", *lines]) + "\n")
    elif form == "jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        source = pa.Table.from_pylist(rows)
    made = influence_cli.manifest(source if form == "frame" else str(source), str(tmp_path / "out.parquet"))
    classes = made.manifest.classes or tuple(str(k) for k in range(10))
    named = lambda numbers: [None if k < 0 else classes[k] for k in numbers]  # noqa: E731
    assert named(made.manifest.labels) == labels
    assert named(clean_labels(made.manifest.all_rows())) == clean
    assert made.manifest.table.schema.field("clean_label").type == pa.int64()


def test_a_class_that_only_clean_labels_have_is_a_class_and_said(tmp_path: Path) -> None:
    table = pa.table(
        {"id": ["a", "b", "c"], "f": [0.0, 1.0, 2.0], "label": ["x", "z", "x"], "clean_label": ["x", "y", None]}
    )
    made = influence_cli.manifest(table, str(tmp_path / "m.parquet"))
    assert made.manifest.classes == ("x", "y", "z")
    assert clean_labels(made.manifest.all_rows()).tolist() == [0, 1, -1]
    assert any("classes that no label has, and they are classes too: y" in note for note in made.notes)
    numbers = table.set_column(2, "label", pa.array([0, 1, 0]))
    with pytest.raises(ManifestError, match="column clean_label: unknown class 'x'"):
        influence_cli.manifest(numbers, str(tmp_path / "n.parquet"))


def test_detection_knows_names(here: Path) -> None:
    rows = pq.read_table(here / "train.parquet")
    clean = [NAMES[k] for k in rows["label"].to_pylist()]
    labels = [(k + 1) % 5 if i < 9 else k for i, k in enumerate(rows["label"].to_pylist())]
    rows = rows.append_column("clean_label", pa.array(clean)).set_column(2, "label", pa.array(labels))
    table = score(here, str(here / "val.parquet"), rows_of=rows, method="loss")
    found = influence_cli.evaluate(table, manifest=rows, store=None)
    assert (found["wrong_rows"], found["known_rows"]) == (9, 80)


def test_exports_write_clean_labels_as_names(here: Path, tmp_path: Path) -> None:
    true = named_rows(30, 1, "t")["label"].to_pylist()
    write(named_rows(30, 1, "t", clean_label=true), tmp_path / "m.parquet")
    ran = call_cli(
        *("score", "--method", "ip", "m.parquet", "--target", here / "val.parquet", "--checkpoint", here / "run"),
        *("--store", "s", "-o", "s.parquet"), cwd=tmp_path,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    asked = ("curate", "s.parquet", "--budget", "2", "--export", "out.jsonl", "--export-as", "jsonl")
    ran = call_cli(*asked, cwd=tmp_path)
    assert ran.code == 0, ran.err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(row["clean_label"] == row["label"] for row in rows)

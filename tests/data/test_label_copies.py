"""A column that is the label under another name is no feature: it is refused, and what only looks like one is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.ingest import Ingested, make_manifest
from influence_cli.data.request import Columns, IngestRequest
from influence_cli.data.sources.label_copies import label_copies
from influence_cli.errors import ManifestError, UsageError

RNG = np.random.default_rng(0)
N = 200
AGE = RNG.normal(40, 10, N).round(1)
INCOME = np.where(RNG.random(N) < 0.3, ">50K", "<=50K")


def made(source: Any, tmp_path: Path, **columns: Any) -> Ingested:
    (tmp_path / "out.parquet").unlink(missing_ok=True)
    return make_manifest(IngestRequest(source, str(tmp_path / "out.parquet"), Columns(**columns)))


def frame(name: str, values: Any) -> pd.DataFrame:
    return pd.DataFrame({"age": AGE, name: values, "income": INCOME})


def features(found: Ingested) -> list[str]:
    metadata = pq.read_schema(found.manifest.files[0]).metadata
    return [f["column"] for f in json.loads(metadata[b"influence.columns"])["features"]]


def saved(rows: pd.DataFrame, form: str, tmp_path: Path) -> Any:
    place = str(tmp_path / f"t.{form}")
    if form == "csv":
        rows.to_csv(place, index=False)
    elif form == "parquet":
        rows.to_parquet(place)
    elif form == "jsonl":
        rows.to_json(place, orient="records", lines=True)
    elif form == "xlsx":
        rows.to_excel(place, index=False)
    return rows if form == "frame" else pa.Table.from_pandas(rows) if form == "arrow" else place


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl", "xlsx", "frame", "arrow"])
def test_codes_of_the_label_are_refused_from_every_kind_of_table(form: str, tmp_path: Path) -> None:
    source = saved(frame("salary code", np.where(INCOME == ">50K", 7, 3)), form, tmp_path)
    said = (
        r"column salary code is the label \(column income\) under another name: "
        r"each of its 2 values stands for one label in all 200 rows"
    )
    with pytest.raises(ManifestError, match=said) as caught:
        made(source, tmp_path, label="income")
    assert caught.value.where.endswith("column salary code")
    assert "--drop-column 'salary code'" in caught.value.fix
    found = made(source, tmp_path, label="income", drop=("salary code",))
    assert features(found) == ["age"]
    assert [(e.what, e.reason) for e in found.left_out] == [("column salary code", "--drop-column says so")]
    found = made(source, tmp_path, label="income", features=("age", "salary code"))
    assert features(found) == ["age", "salary code"]
    assert any("salary code is the label" in sentence for sentence in found.taken)


@pytest.mark.parametrize(
    "copy",
    [INCOME, INCOME == ">50K", np.where(INCOME == ">50K", 1.0, -1.0), np.where(INCOME == ">50K", "yes", "no")],
    ids=["names", "booleans", "signs", "other names"],
)
def test_whatever_the_values_of_a_copy_are(copy: Any, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="column y is the label"):
        made(frame("y", copy), tmp_path, label="income")


def test_classes_beyond_two_and_a_copy_that_lacks_values(tmp_path: Path) -> None:
    species = RNG.integers(0, 4, N)
    codes = np.where(np.arange(N) % 5 == 0, np.nan, 10.0 * species)
    rows = pd.DataFrame({"age": AGE, "code": codes, "label": np.array([*"abcd"])[species]})
    with pytest.raises(ManifestError, match=r"column code is the label .* each of its 4 values .* in all 160 rows"):
        made(rows, tmp_path)


def test_a_prediction_that_nearly_always_agrees_is_refused_and_a_worse_one_is_not(tmp_path: Path) -> None:
    truth = RNG.integers(0, 3, 2000)
    rows = pd.DataFrame({"x": RNG.normal(size=2000), "predicted": truth, "label": truth})
    rows.loc[[3, 500, 900], "predicted"] = (truth[[3, 500, 900]] + 1) % 3
    with pytest.raises(ManifestError, match=r"predicted is the label .* in 99\.8% of rows"):
        made(rows, tmp_path)
    rows.loc[:99, "predicted"] = (truth[:100] + 1) % 3
    assert features(made(rows, tmp_path)) == ["x", "predicted"]


@pytest.mark.parametrize(
    ("label", "column"),
    [
        ([0, 1] * 4, [5, 6] * 4),  # by chance, of so few rows
        ([0] * 999 + [1], [0] * 999 + [1]),  # a rare value in the one row of a rare class
        ([*range(300)], [*range(300, 600)]),  # every row differs
        ([0, 1] * 100, [4] * 200),  # a constant
        ([0] * 995 + [1] * 5, [0] * 994 + [1] + [0] * 5),  # agrees as the majority does
        ([0, 0, 1, 1] * 50, [0, 1, 2, 2] * 50),  # finer than the label
    ],
)
def test_what_is_no_copy(label: list[int], column: list[int]) -> None:
    table = pa.table({"label": label, "a": column})
    assert label_copies([table.slice(0, 3), table.slice(3)], "label", ["a"], len(label)) == []


def test_a_copy_is_found_over_all_chunks_and_reading_ends_where_there_is_none() -> None:
    table = pa.table({"label": sorted([0, 1] * 50), "a": sorted([2, 3] * 50), "b": [*range(100)]})
    chunks = [table.slice(k, 25) for k in range(0, 100, 25)]
    assert [c.column for c in label_copies(chunks, "label", ["a", "b"], 100)] == ["a"]
    read = iter(chunks)
    assert label_copies(read, "label", ["b"], 100) == []
    assert len(list(read)) == 3  # the first was enough


def test_a_feature_that_is_called_as_labels_are_is_said(tmp_path: Path) -> None:
    found = made(frame("class", RNG.integers(1, 4, N)), tmp_path, label="income")
    assert features(found) == ["age", "class"]
    (sentence,) = [s for s in found.taken if s.startswith("column class is a feature")]
    assert "its values are not those of income; --drop-column class leaves it out" in sentence
    assert not any("called as labels" in s for s in made(frame("size", AGE), tmp_path, label="income").taken)


def test_a_column_that_is_left_out_has_to_be_there_and_must_not_be_asked_for(tmp_path: Path) -> None:
    rows = frame("size", AGE)
    with pytest.raises(ManifestError, match="no column 'sise'") as caught:
        made(rows, tmp_path, label="income", drop=("sise",))
    assert "did you mean 'size'" in caught.value.fix
    with pytest.raises(UsageError, match="column income is asked for, and is to be left out"):
        made(rows, tmp_path, label="income", drop=("income",))


def test_a_column_split_that_says_no_splits_is_a_feature_and_that_is_said(tmp_path: Path) -> None:
    for values in (np.where(AGE > 40, "left", "right"), np.arange(N) % 5):
        found = made(frame("split", values), tmp_path, label="income")
        assert features(found) == ["age", "split"]
        assert "column split says no splits (train, val, test), and is a column like others" in found.taken
    unknown = frame("split", np.where(AGE > 40, "train", "holdout"))
    with pytest.raises(ManifestError, match="unknown split 'holdout'") as caught:
        made(unknown, tmp_path, label="income")
    assert "--drop-column split" in caught.value.fix
    assert features(made(unknown, tmp_path, label="income", drop=("split",))) == ["age"]


# -- columns of numbers that decide the label -----------------------------------------------------------------------


def _decided_by(values: Any, tmp_path: Path, labels: Any = INCOME) -> bool:
    found = made(pd.DataFrame({"age": AGE, "x": values, "income": labels}), tmp_path, label="income")
    assert features(found) == ["age", "x"]  # it stays
    sentences = [s for s in found.taken if "alone decides the label" in s]
    assert not any("column age" in s for s in sentences)
    return any(s.startswith("column x alone decides the label (column income)") for s in sentences)


def test_numbers_that_part_the_classes_are_named_and_stay(tmp_path: Path) -> None:
    rich = INCOME == ">50K"
    noise = RNG.normal(size=N)
    assert _decided_by(np.where(rich, 0.6, 0.4) + 0.05 * RNG.random(N), tmp_path)  # a probability
    assert _decided_by(-100.0 * rich + noise, tmp_path)
    species = RNG.integers(0, 4, N)
    assert _decided_by(100.0 * species + noise, tmp_path, np.array([*"abcd"])[species])
    assert not _decided_by(1.5 * rich + noise, tmp_path)
    assert not _decided_by(100.0 * (species == 2) + noise, tmp_path, np.array([*"abcd"])[species])  # one class alone
    swapped = np.where(rich, 1.0, -1.0) + 0.1 * noise
    swapped[:4] *= -1
    assert not _decided_by(swapped, tmp_path)


def test_few_rows_decide_nothing(tmp_path: Path) -> None:
    rows = pd.DataFrame({"x": np.arange(40.0), "label": np.arange(40) >= 20})
    assert not any("decides" in s for s in made(rows, tmp_path).taken)

"""Tables as people have them: what each column is taken for, what becomes of its values, and what is said of it."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.ingest import Ingested, make_manifest
from influence_cli.data.request import Columns, IngestRequest
from influence_cli.errors import InfluenceError, ManifestError
from tests.cases import Heard

RNG = np.random.default_rng(0)
N = 60
X = RNG.normal(size=(N, 3)).round(3)
Y = (X[:, 0] > 0).astype(int)


def made(source: Any, tmp_path: Path, **columns: Any) -> Ingested:
    output = tmp_path / "out.parquet"
    output.unlink(missing_ok=True)
    return make_manifest(IngestRequest(source, str(output), Columns(**columns), split="100/0/0"))


def text(tmp_path: Path, content: str, name: str = "t.csv", encoding: str = "utf-8") -> str:
    (tmp_path / name).write_bytes(content.encode(encoding))
    return str(tmp_path / name)


def csv_of(tmp_path: Path, names: list[str], *columns: Any, sep: str = ",", **more: Any) -> str:
    lines = [sep.join(names), *(sep.join(map(str, row)) for row in zip(*columns, strict=True))]
    return text(tmp_path, "\n".join(lines) + "\n", **more)


def values(found: Ingested) -> np.ndarray:
    return np.stack([v for _, v in found.manifest.payloads(found.manifest.all_rows().index)])  # pyright: ignore


def names_of(found: Ingested) -> list[str]:
    metadata = pq.read_schema(found.manifest.files[0]).metadata
    features = json.loads(metadata[b"influence.columns"])["features"]
    return [f["column"] for f in features]


def said(found: Ingested) -> str:
    return "\n".join([*found.taken, *(f"{e.what}: {e.reason}" for e in found.left_out), *found.notes])


def test_categories_are_one_number_each_and_missing_numbers_get_the_median(tmp_path: Path) -> None:
    job = [["admin", " tech", "NA", ""][k % 4] for k in range(N)]
    power = ["?" if k == 7 else "" if k == 9 else str(k) for k in range(N)]
    found = made(csv_of(tmp_path, ["job", "power", "label"], job, power, Y), tmp_path)
    kept = [k for k in range(N) if k not in (7, 9)]
    want = np.zeros((N, 5), np.float32)
    for k in range(N):
        want[k, ["NA", "admin", "tech", ""].index(job[k].strip())] = 1
        want[k, 4] = np.median(kept) if k in (7, 9) else k
    assert np.array_equal(values(found), want)
    assert names_of(found) == ["job", "power"]
    assert "a missing number gets the median of its column: power (median 30.5)" in said(found)
    assert "job (4 categories)" in said(found)


def test_the_median_is_of_rows_that_may_be_trained_on(tmp_path: Path) -> None:
    split = ["train", "val", "test"] * 20
    a = [1.0 if s == "train" else 100.0 for s in split]
    written = ["" if k == 0 else str(v) for k, v in enumerate(a)]
    found = made(csv_of(tmp_path, ["a", "label", "split"], written, Y, split), tmp_path)
    assert values(found)[0, 0] == 1.0


@pytest.mark.parametrize(
    ("written", "want", "sep"),
    [
        ('"1,%03d"', 1000, ","),
        ('"1,%03d.50"', 1000.5, ","),
        ("1.%03d", 1000, "no"),
        ("%d,5", 0.5, ";"),
        ("1.%03d,25", 1000.25, ";"),
        ("1 %03d", 1000, ","),
        ("$%d.5", 0.5, ","),
        ("%d%%", 0, ","),
        ('"$1,%03d"', 1000, ","),
        ("+%d", 0, ","),
        ("%de0", 0, ","),
        (" %d ", 0, ","),
    ],
)
def test_numbers_as_people_write_them(tmp_path: Path, written: str, want: float, sep: str) -> None:
    if sep == "no":
        want, sep = 1.0, ","
        numbers = [float(written % k) for k in range(N)]
    else:
        numbers = [want + k for k in range(N)]
    found = made(csv_of(tmp_path, ["a", "label"], [written % k for k in range(N)], Y, sep=sep), tmp_path)
    assert np.allclose(values(found)[:, 0], numbers, atol=0, rtol=1e-7)
    assert "column a" in said(found) or written.strip() in ("1.%03d", "+%d", "%de0", "%d")


def test_what_is_no_feature_is_left_out_by_name_with_the_reason(tmp_path: Path) -> None:
    day = [f"2024-01-{1 + k % 28:02d}" for k in range(N)]
    remark = [f"remark {k}" for k in range(N)]
    ids = [f"c-{k}" for k in range(N)]
    names = ["", "a", "when", "remark", "CustomerID", "index", "zip", "void", "label"]
    zips = [f"0{2100 + k % 3}" for k in range(N)]
    columns = [range(N), X[:, 0], day, remark, ids, range(N), zips, [""] * N, Y]
    found = made(csv_of(tmp_path, names, *columns), tmp_path)
    assert names_of(found) == ["a", "zip"]
    assert values(found).shape == (N, 4)  # codes that begin with a zero are names
    reasons = {e.what: e.reason for e in found.left_out}
    assert set(reasons) == {f"column {n or 'Unnamed: 0'}" for n in names} - {"column a", "column zip", "column label"}
    assert "dates" in reasons["column when"]
    assert "60 different values" in reasons["column remark"]
    assert "identifier" in reasons["column CustomerID"]
    assert "no row has a value" in reasons["column void"]
    metadata = json.loads(pq.read_schema(found.manifest.files[0]).metadata[b"influence.columns"])
    assert dict(metadata["left_out"]) == reasons
    assert values(made(str(tmp_path / "t.csv"), tmp_path, features=("index", "a"))).shape == (N, 2)


def test_weight_group_and_label_are_what_they_are_said_to_be(tmp_path: Path) -> None:
    sex = ["f", "m"] * (N // 2)
    source = csv_of(tmp_path, ["height", "weight", "sex", "label"], X[:, 0], abs(X[:, 1]), sex, Y)
    plain = made(source, tmp_path)
    assert names_of(plain) == ["height", "weight", "sex"]
    assert "--weight weight" in said(plain)
    assert (plain.manifest.weights() == 1).all()
    asked = made(source, tmp_path, weight="weight", group="sex")
    assert names_of(asked) == ["height"]
    assert np.allclose(asked.manifest.weights(), abs(X[:, 1]))
    assert asked.manifest.table.column("sex").to_pylist() == sex
    kept = made(source, tmp_path, keep=("sex",))
    assert names_of(kept) == ["height", "weight", "sex"]
    assert kept.manifest.table.column("sex").to_pylist() == sex


def test_two_columns_that_could_be_the_label_are_named(tmp_path: Path) -> None:
    animal = [["cat", "dog"][y] for y in Y]
    found = made(csv_of(tmp_path, ["x", "y", "category"], X[:, 0], X[:, 1], animal), tmp_path)
    assert found.manifest.classes == ("cat", "dog")
    assert "column y could be the label too: pass --label y" in said(found)
    assert names_of(found) == ["x"]  # it may be the label under another name, so that it is no feature unasked
    found = made(csv_of(tmp_path, ["x", "y", "label"], X[:, 0], X[:, 1], animal), tmp_path)
    assert names_of(found) == ["x", "y"]  # coordinates
    assert "could be" not in said(found)


def test_an_id_that_repeats_has_a_way_out(tmp_path: Path) -> None:
    source = csv_of(tmp_path, ["id", "visit", "a", "label"], [k // 3 for k in range(N)], range(5, N + 5), X[:, 0], Y)
    with pytest.raises(ManifestError, match="an id is there twice") as caught:
        made(source, tmp_path)
    assert "--id none" in caught.value.fix
    numbered = made(source, tmp_path, id="none")
    assert numbered.manifest.ids[:2] == ["row-0", "row-1"]
    assert names_of(numbered) == ["visit", "a"]
    assert made(source, tmp_path, id="visit").manifest.ids[0] == "5"


@pytest.mark.parametrize("name", ["uid", "row_id", "ID", "Id", "id"])
@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv", "frame"])
def test_the_id_is_no_feature(tmp_path: Path, name: str, form: str) -> None:
    frame = pd.DataFrame({name: np.arange(5000, 5000 + N), "a": X[:, 0], "b": X[:, 1], "label": Y})
    source: Any = str(tmp_path / f"t.{form}")
    if form == "parquet":
        frame.to_parquet(source)
    elif form == "jsonl":
        frame.to_json(source, orient="records", lines=True)
    elif form == "csv":
        frame.to_csv(source, index=False)
    else:
        source = frame
    found = made(source, tmp_path)
    assert np.array_equal(values(found), X[:, :2].astype(np.float32))
    assert found.manifest.ids[0] == "5000"


def test_index_columns_of_pandas_are_no_features(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": X[:, 0], "label": Y}, index=range(7, N + 7))
    frame.to_csv(tmp_path / "t.csv")
    frame.to_parquet(tmp_path / "t.parquet")
    frame.reset_index().to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    for name in ("t.csv", "t.parquet", "t.jsonl"):
        assert names_of(made(str(tmp_path / name), tmp_path)) == ["a"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_text_in_unicode_is_read_as_it_is_marked(tmp_path: Path, encoding: str) -> None:
    source = csv_of(tmp_path, ["größe", "label"], X[:, 0], [["süß", "sauer"][y] for y in Y], encoding=encoding)
    found = made(source, tmp_path)
    assert (names_of(found), found.manifest.classes) == (["größe"], ("sauer", "süß"))


def test_other_encodings_have_a_way_in(tmp_path: Path) -> None:
    source = csv_of(tmp_path, ["größe", "label"], X[:, 0], Y, encoding="latin-1")
    with pytest.raises(ManifestError, match="not UTF-8") as caught:
        made(source, tmp_path)
    assert "--encoding latin-1" in caught.value.fix
    assert names_of(made(source, tmp_path, encoding="latin-1")) == ["größe"]
    with pytest.raises(ManifestError, match="no encoding is called"):
        made(source, tmp_path, encoding="klingon")


@pytest.mark.parametrize("sep", [";", "\t", "|", ","])
def test_what_separates_columns_is_found_out_and_said(tmp_path: Path, sep: str) -> None:
    names = [f'"a{sep}a"', "b", "label"]
    found = made(csv_of(tmp_path, names, X[:, 0], X[:, 1], Y, sep=sep), tmp_path)
    assert names_of(found) == [f"a{sep}a", "b"]
    assert ("separated by" in said(found)) == (sep != ",")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a,a,label\n1,2,0\n", "two columns are called 'a'"),
        ("a,b,label\n1,2\n", "fewer fields"),
        ("a,label\n1,0\n1,2,0\n", "cannot be parsed"),
        ("a,label\n1,0,7\n1,2,0\n", "more fields than the first line"),
        ("5,1\n4,0\n", "no label column"),
        ("", "no rows|no label"),
    ],
)
def test_files_that_are_no_tables_are_refused_by_place(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(ManifestError, match=says) as caught:
        made(text(tmp_path, content), tmp_path)
    assert "t.csv" in caught.value.where


@pytest.mark.parametrize("line", ["null", "3", "[1]", '"a"', "{", '{"a": 1'])
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ManifestError) as caught:
        made(text(tmp_path, f'{{"a": 1, "label": 0}}\n{line}\n', "t.jsonl"), tmp_path)
    assert "t.jsonl" in caught.value.where


def test_lines_of_json_may_lack_values_and_mix_types(tmp_path: Path) -> None:
    rows = [{"a": float(x[0]), "b": "?" if k == 3 else int(x[1] * 100), "label": bool(y)}
            for k, (x, y) in enumerate(zip(X, Y, strict=True))]  # fmt: skip
    del rows[5]["a"]
    found = made(text(tmp_path, "".join(json.dumps(r) + "\n" for r in rows), "t.jsonl"), tmp_path)
    got = values(found)
    assert found.manifest.classes == ("False", "True")
    assert got[5, 0] == np.float32(np.median(np.delete(X[:, 0], 5)))
    assert got[3, 1] == np.float32(np.median([int(x[1] * 100) for k, x in enumerate(X) if k != 3]))
    assert np.array_equal(np.delete(got[:, 0], 5), np.delete(X[:, 0], 5).astype(np.float32))
    assert values(made(text(tmp_path, json.dumps(rows), "t.json"), tmp_path)).tolist() == got.tolist()


@pytest.mark.parametrize("start", [20_000_001, 1_700_000_000_000, -30_000_000])
def test_large_whole_numbers_keep_their_differences(tmp_path: Path, start: int) -> None:
    for source in (
        csv_of(tmp_path, ["a", "label"], [start + k for k in range(N)], Y),
        pa.table({"a": pa.array([start + k for k in range(N)]), "label": Y}),
    ):
        found = made(source, tmp_path)
        assert np.diff(values(found)[:, 0]).tolist() == [1.0] * (N - 1)
        assert "count from" in said(found)


ARROW: dict[str, Any] = {
    "decimal": pa.array([decimal.Decimal(str(v)) for v in X[:, 1]]),
    "float16": pa.array(X[:, 1].astype(np.float16)),
    "dictionary": pa.array([str(v) for v in X[:, 1]]).dictionary_encode(),
    "string_view": pa.array([str(v) for v in X[:, 1]], pa.string_view()),
    "large_string": pa.array([str(v) for v in X[:, 1]], pa.large_string()),
    "binary": pa.array([str(v).encode() for v in X[:, 1]]),
    "bool": pa.array(X[:, 1] > 0),
    "uint64": pa.array((X[:, 1] * 100 + 1000).astype(np.uint64)),
}


@pytest.mark.parametrize("kind", list(ARROW))
def test_arrow_has_many_types_of_number(tmp_path: Path, kind: str) -> None:
    column = ARROW[kind]
    want = {
        "bool": X[:, 1] > 0,
        "uint64": (X[:, 1] * 100 + 1000).astype(np.uint64),
        "float16": X[:, 1].astype(np.float16),
    }
    table = pa.table({"a": X[:, 0], "b": column, "label": Y})
    pq.write_table(table, tmp_path / "t.parquet")
    for source in (str(tmp_path / "t.parquet"), table):
        assert np.array_equal(values(made(source, tmp_path))[:, 1], want.get(kind, X[:, 1]).astype(np.float32))


LISTS: dict[str, Any] = {
    "list": pa.array(X.tolist()),
    "large_list": pa.array(X.tolist(), pa.large_list(pa.float64())),
    "fixed": pa.array(X.tolist(), pa.list_(pa.float32(), 3)),
    "view": pa.array(X.tolist(), pa.list_view(pa.float64())),
    "nested": pa.array([[[v] for v in x] for x in X.tolist()]),
    "nested_fixed": pa.array([[x[:1], x[1:2], x[2:]] for x in X.tolist()], pa.list_(pa.list_(pa.float64(), 1), 3)),
    "decimal": pa.array([[decimal.Decimal(str(v)) for v in x] for x in X]),
    "text": pa.array([[str(v) for v in x] for x in X]),
    "half": pa.array(X.astype(np.float16).tolist(), pa.list_(pa.float16())),
}


@pytest.mark.parametrize("name", ["features", "embedding"])
@pytest.mark.parametrize("kind", list(LISTS))
def test_arrow_has_many_types_of_list(tmp_path: Path, kind: str, name: str) -> None:
    pq.write_table(pa.table({name: LISTS[kind], "label": Y}), tmp_path / "t.parquet")
    want = X.astype(np.float16 if kind == "half" else np.float32).astype(np.float32)
    assert np.array_equal(values(made(str(tmp_path / "t.parquet"), tmp_path)), want)


def test_lists_and_numbers_stand_side_by_side(tmp_path: Path) -> None:
    table = pa.table({"embedding": pa.array(X.tolist()), "tokens": [k % 7 for k in range(N)], "label": Y})
    assert values(made(table, tmp_path)).shape == (N, 4)
    assert values(made(table, tmp_path, features=("embedding",))).shape == (N, 3)
    uneven = pa.table({"embedding": [[0.0] * (1 + k % 2) for k in range(N)], "a": X[:, 0], "label": Y})
    assert "different lengths" in said(made(uneven, tmp_path))


LABELS: dict[str, Any] = {
    "categorical": pd.Categorical(np.where(Y, "dog", "cat")),
    "ordered": pd.Categorical(np.where(Y, "dog", "cat"), categories=["dog", "cat"], ordered=True),
    "bool": Y.astype(bool),
    "text": np.where(Y, "dog", "cat"),
    "float": Y.astype(float),
}


@pytest.mark.parametrize("kind", list(LABELS))
def test_labels_of_every_type(tmp_path: Path, kind: str) -> None:
    frame = pd.DataFrame({"a": X[:, 0], "label": LABELS[kind]})
    frame.to_parquet(tmp_path / "t.parquet")
    classes = {"bool": ("False", "True"), "float": None}.get(kind, ("cat", "dog"))
    for source in (frame, str(tmp_path / "t.parquet")):
        found = made(source, tmp_path)
        assert found.manifest.classes == classes
        assert found.manifest.labels.tolist() == Y.tolist()


@pytest.mark.parametrize("kind", ["uuid", "text in UUIDs", "binary"])
def test_ids_of_bytes_are_written_as_people_do(tmp_path: Path, kind: str) -> None:
    made_of = [uuid.UUID(int=k + 1 if kind == "text in UUIDs" else k * 7919 * 2**100 + 255 * 2**60) for k in range(N)]
    raw = [u.bytes for u in made_of]
    column = pa.array(raw, pa.binary(16)) if kind == "binary" else pa.array(raw, pa.uuid())
    pq.write_table(pa.table({"id": column, "a": X[:, 0], "label": Y}), tmp_path / "t.parquet")
    found = made(str(tmp_path / "t.parquet"), tmp_path)
    assert found.manifest.ids[3] == (made_of[3].hex if kind == "binary" else str(made_of[3]))


def test_dates_of_frames_and_structures_are_left_out(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": X[:, 0], "when": pd.date_range("2024-01-01", periods=N), "label": Y})
    assert names_of(made(frame, tmp_path)) == ["a"]
    table = pa.table({"a": X[:, 0], "s": [{"b": k} for k in range(N)], "t": [datetime.time(1)] * N, "label": Y})
    found = made(table, tmp_path)
    assert names_of(found) == ["a"]
    assert "column s: it holds a structure" in said(found)


def test_frames_of_mixed_objects_and_numbered_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame(X)
    frame["label"] = np.where(Y, "yes", "no")
    assert names_of(made(frame, tmp_path)) == ["0", "1", "2"]
    frame = pd.DataFrame({"a": X[:, 0], "b": [1, "two", 3.5] * (N // 3), "label": Y})
    assert values(made(frame, tmp_path)).shape == (N, 4)
    frame = pd.DataFrame({"a": np.where(Y, np.nan, 2.0), "label": Y})
    assert values(made(frame, tmp_path))[:, 0].tolist() == [2.0] * N


def test_two_columns_of_one_name_are_refused_wherever_they_come_from(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(X[:, 0]), pa.array(X[:, 1]), pa.array(Y)], names=["a", "a", "label"])
    pq.write_table(table, tmp_path / "t.parquet")
    for source in (table, str(tmp_path / "t.parquet")):
        with pytest.raises(ManifestError, match="two columns are called 'a'"):
            made(source, tmp_path)


def test_later_files_are_read_as_the_first(tmp_path: Path) -> None:
    job = [["admin", "tech", "boss"][k % 3] for k in range(N)]
    power = ["" if k == 9 else str(k) for k in range(N)]
    label = [["no", "yes"][y] for y in Y]
    source = csv_of(tmp_path, ["job", "power", "income"], job, power, label)
    first = make_manifest(IngestRequest(source, str(tmp_path / "train.parquet"), Columns(label="income"), "100/0/0"))
    later = text(tmp_path, "extra,income,power,job\n1,yes,,tech\n2,yes,5,smith\n", "later.csv")
    found = made(later, tmp_path, like=str(tmp_path / "train.parquet"))
    median = np.median([k for k in range(N) if k != 9])
    assert values(found).tolist() == [[0, 0, 1, median], [0, 0, 0, 5]]
    assert found.manifest.classes == first.manifest.classes == ("no", "yes")
    assert found.manifest.labels.tolist() == [1, 1]
    assert "column job: 'smith' is no category that is known (1 row)" in said(found)
    assert "column extra" in said(found)
    with pytest.raises(ManifestError, match="no column 'power', which"):
        made(text(tmp_path, "job,income\ntech,yes\n", "less.csv"), tmp_path, like=str(tmp_path / "train.parquet"))
    with pytest.raises(ManifestError, match="unknown class 'maybe'"):
        made(
            text(tmp_path, "job,power,income\ntech,1,maybe\n", "m.csv"), tmp_path, like=str(tmp_path / "train.parquet")
        )


def test_large_files_are_read_in_chunks_to_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from influence_cli.data.sources import text_files

    power = ["?" if k % 13 == 5 else str(k) for k in range(N)]
    job = [["a", "b", "c"][k // 20] for k in range(N)]
    source = csv_of(tmp_path, ["power", "job", "label"], power, job, Y)
    at_once = values(made(source, tmp_path))
    monkeypatch.setattr(text_files, "CHUNK", 7)
    monkeypatch.setattr(text_files, "HELD", 10)
    assert np.array_equal(values(made(source, tmp_path)), at_once)
    rest = "".join(
        f'{{"power": {json.dumps(p)}, "job": "{j}", "label": {y}}}\n' for p, j, y in zip(power, job, Y, strict=True)
    )
    assert np.array_equal(values(made(text(tmp_path, rest, "t.jsonl"), tmp_path)), at_once)


def test_numbers_that_could_not_be_computed_are_refused_by_row_and_column(tmp_path: Path) -> None:
    for bad in ("nan", "inf", "-Infinity"):
        source = csv_of(tmp_path, ["a", "b", "label"], X[:, 0], [bad if k == 4 else k for k in range(N)], Y)
        with pytest.raises(ManifestError, match="column b: a value is missing or not finite") as caught:
            made(source, tmp_path)
        assert "row id=row-4" in caught.value.where


def test_excel(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    frame = pd.DataFrame(
        {
            "a": X[:, 0],
            "job": ["x", "y"] * (N // 2),
            "when": pd.date_range("2024", periods=N),
            "label": np.where(Y, "n", "NA"),
        }
    )
    with pd.ExcelWriter(tmp_path / "t.xlsx") as book:
        frame.to_excel(book, sheet_name="people", index=False)
        frame.head(3).to_excel(book, sheet_name="other", index=False)
    found = made(str(tmp_path / "t.xlsx"), tmp_path)
    assert np.allclose(values(found)[:, 0], X[:, 0].astype(np.float32))
    assert found.manifest.classes == ("NA", "n")
    assert "sheet people is read, and not other" in said(found)
    assert "column when: it holds dates" in said(found)
    assert len(made(str(tmp_path / "t.xlsx"), tmp_path, sheet="other").manifest) == 3
    with pytest.raises(ManifestError, match="no sheet 'no'"):
        made(str(tmp_path / "t.xlsx"), tmp_path, sheet="no")
    with pytest.raises(InfluenceError, match="cannot make a manifest"):
        made(text(tmp_path, "x", "u.xlsx"), tmp_path)


def as_first(tmp_path: Path, first: list[Any], then: list[Any], seps: str = ",,", **columns: Any) -> Ingested:
    """A later column ``a`` read as a first one; both are written twenty times over."""
    y = [k % 2 for k in range(20 * len(first))]
    source = csv_of(tmp_path, ["a", "label"], first * 20, y, sep=seps[0])
    make_manifest(IngestRequest(source, str(tmp_path / "first.parquet"), Columns(), "100/0/0"))
    later = csv_of(tmp_path, ["a", "label"], then * 20, y, sep=seps[1], name="later.csv")
    return made(later, tmp_path, like=str(tmp_path / "first.parquet"), **columns)


def test_a_later_file_writes_numbers_as_it_likes(tmp_path: Path) -> None:
    found = as_first(tmp_path, ["0,5", "1,5"], ["0.25", "2.5"], ";,")
    assert values(found)[:2, 0].tolist() == [0.25, 2.5]
    assert values(as_first(tmp_path, ["1", "2"], ["", "4"]))[0, 0] == 1.5  # the first file's median, which lacked none
    assert values(as_first(tmp_path, ["True", "False"], ["false", "true"]))[:2, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("first", "then", "says"),
    [
        (["1", "2"], ["1", "abc"], "holds text such as 'abc' where .* has a number"),
        (["1", "2"], ["1.5", '"1,5"'], "holds text such as"),
        (["5%", "6%"], ["0.05", "0.06"], "has no unit where .* has %"),
        (["$5", "$6"], ["5%", "6%"], "has % where .* has"),
        (["1", "2"], ["2024-01-01", "2024-01-02"], "holds dates or times"),
    ],
)
def test_a_later_column_that_holds_something_else_is_refused(
    tmp_path: Path, first: list[str], then: list[str], says: str
) -> None:
    with pytest.raises(ManifestError, match=says) as caught:
        as_first(tmp_path, first, then)
    assert "column a" in caught.value.where


@pytest.mark.parametrize("named", [{"id": "no"}, {"weight": "no"}, {"group": "no"}, {"keep": ("no",)}])
def test_names_that_are_not_there_are_refused_beside_like_too(tmp_path: Path, named: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="no column 'no'"):
        as_first(tmp_path, ["1", "2"], ["1", "2"], **named)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([1, 2, 3], ("1", "2", "3")), ([-1, 1], ("-1", "1")), ([0, 2], None), ([90210, 90211], ("90210", "90211")),
        ([10**9, 10**9 + 1], ("1000000000", "1000000001")), (["1.0", "2.0"], ("1", "2")), (["?", 0, 1], None),
        (["NA", "EU"], ("EU", "NA")),
    ],
)  # fmt: skip
def test_labels_that_do_not_count_from_0_are_named(tmp_path: Path, labels: list[Any], classes: Any) -> None:
    written = labels * 10
    source = csv_of(tmp_path, ["a", "label"], range(len(written)), written)
    output = str(tmp_path / "m.parquet")
    found = make_manifest(IngestRequest(source, output, Columns(), "100/0/0", skip_bad=True)).manifest
    assert found.classes == classes
    kept = [v for v in written if v != "?"]
    if classes is not None:
        assert [classes[k] for k in found.labels] == [str(v).removesuffix(".0") for v in kept]
    else:
        assert found.labels.tolist() == kept


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        (["0,123", "0,456"], ["1,5", "2,5"], [0.123, 0.456]),
        (["1.299", "899"], ["1,5", "2,5"], [1299, 899]),
        (["1.299", "899"], ["1.5", "2.5"], [1.299, 899]),
        (["1.299.000", "2.499"], ["1,5", "2,5"], [1299000, 2499]),
        (["1,234", "2,345"], ["1.5", "2.5"], [1234, 2345]),
        (["1,234", "2,345"], ["1,5", "2,5"], [1.234, 2.345]),
        (["−3", "4"], ["1", "2"], [-3, 4]),
    ],
)
def test_the_decimal_mark_is_that_of_the_whole_table(
    tmp_path: Path, a: list[str], b: list[str], want: list[float]
) -> None:
    source = csv_of(tmp_path, ["a", "b", "label"], a * 20, b * 20, [k % 2 for k in range(40)], sep="\t", name="t.tsv")
    assert values(made(source, tmp_path))[:2, 0].tolist() == np.float32(want).tolist()


def test_currencies_do_not_mix(tmp_path: Path) -> None:
    found = made(csv_of(tmp_path, ["a", "label"], ["$5", "€5", "5%", "£7"] * 15, Y), tmp_path)
    assert values(found).shape == (N, 4)


@pytest.mark.parametrize("start", [2460000.0, 1234567.01])
def test_numbers_that_float32_would_blur_count_from_the_least(tmp_path: Path, start: float) -> None:
    column = np.array([start + k / 100 for k in range(N)])
    found = made(pa.table({"a": column, "label": Y}), tmp_path)
    assert np.allclose(values(found)[:, 0], column - column[0], atol=1e-6)
    exact = made(pa.table({"a": pa.array([1700000000000000000 + k for k in range(N)]), "label": Y}), tmp_path)
    assert values(exact)[:, 0].tolist() == list(range(N))
    lists = made(pa.table({"e": [[20000000.0 + k] for k in range(N)], "label": Y}), tmp_path)
    assert "rounded to float32" in said(lists)
    np.savez(tmp_path / "x.npz", x=np.arange(2 * N).reshape(N, 2) + 2**40, y=Y)
    assert "rounded to float32" in said(made(str(tmp_path / "x.npz"), tmp_path))
    np.savez(tmp_path / "c.npz", x=np.ones((N, 2), complex), y=Y)
    with pytest.raises(ManifestError, match="neither images nor features"):
        made(str(tmp_path / "c.npz"), tmp_path)


def test_names_that_mean_something_else_are_values_where_they_are_no_payload(tmp_path: Path) -> None:
    for name in ("features", "path", "image", "file"):
        found = made(csv_of(tmp_path, [name, "a", "label"], [k % 5 for k in range(N)], X[:, 0], Y), tmp_path)
        assert names_of(found) == [name, "a"]
        found = made(csv_of(tmp_path, [name, "a", "label"], ["/home", "/tmp"] * 30, X[:, 0], Y), tmp_path)
        assert names_of(found) == [name, "a"]
    found = made(csv_of(tmp_path, ["a", "Split", "label"], X[:, 0], ["Train", "Test"] * 30, Y), tmp_path)
    assert found.manifest.splits[:2].tolist() == ["train", "test"]
    for flag in ({"group": "label"}, {"weight": "label"}, {"features": ("label",)}, {"keep": ("label",)}):
        with pytest.raises(ManifestError, match="is the label column"):
            made(csv_of(tmp_path, ["a", "label"], X[:, 0], Y), tmp_path, **flag)
    with pytest.raises(ManifestError, match="a manifest's column weight holds something else"):
        made(csv_of(tmp_path, ["a", "weight", "label"], X[:, 0], Y, Y), tmp_path, keep=("weight",))


def test_an_index_that_is_an_id_is_one(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": X[:, 0], "label": Y}, index=pd.Index([f"p{k}" for k in range(N)], name="id"))
    assert made(frame, tmp_path).manifest.ids[:2] == ["p0", "p1"]
    other = made(frame.rename_axis("customer"), tmp_path)
    assert names_of(other) == ["a"]
    assert "pandas' index" in said(other)
    mixed = pd.DataFrame({"a": X[:, 0], "b": pd.Series([1, "x", pd.NA, 2.5] * 15, dtype=object), "label": Y})
    assert values(made(mixed, tmp_path)).shape == (N, 5)


def test_rows_of_json_that_mix_lists_with_values_are_refused_by_row(tmp_path: Path) -> None:
    rows = [{"a": 1, "c": "x", "label": 0}, {"a": 2, "c": ["z"], "label": 1}]
    with pytest.raises(ManifestError, match="column c holds lists or objects in some rows"):
        made(text(tmp_path, "".join(json.dumps(r) + "\n" for r in rows), "t.jsonl"), tmp_path)
    with pytest.raises(ManifestError, match="no Unicode"):
        made(text(tmp_path, '{"a": 1, "c": "\\ud800", "label": 0}\n', "t.jsonl"), tmp_path)
    latin = text(tmp_path, '{"a": 1, "label": "ö"}\n{"a": 2, "label": "ä"}\n', "t.jsonl", encoding="latin-1")
    assert made(latin, tmp_path, encoding="latin-1").manifest.classes == ("ä", "ö")


def test_values_that_an_earlier_manifest_does_not_know_are_a_warning_where_they_are_many(tmp_path: Path) -> None:
    job = [["admin", "tech", "boss"][k % 3] for k in range(N)]
    source = csv_of(tmp_path, ["job", "income"], job, [["no", "yes"][y] for y in Y])
    make_manifest(IngestRequest(source, str(tmp_path / "train.parquet"), Columns(label="income"), "100/0/0"))
    for count, warned in ((1, False), (4, True)):
        rows = "".join(f"{'smith' if k < count else 'tech'},yes\n" for k in range(20))
        heard = Heard()
        later = text(tmp_path, f"job,income\n{rows}", f"later{count}.csv")
        columns = Columns(label="income", like=str(tmp_path / "train.parquet"))
        make_manifest(IngestRequest(later, str(tmp_path / f"m{count}.parquet"), columns, "100/0/0"), heard)
        said = [line for line in heard.warnings if line.startswith("column job: 4 of 20 rows have a value that the")]
        assert [("'smith'" in line) for line in said] == ([True] if warned else [])

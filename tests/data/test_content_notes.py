"""What is said of a table's classes and weights, and of comments before the names of its columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from influence_cli.data.ingest import Ingested, make_manifest
from influence_cli.data.request import Columns, IngestRequest
from influence_cli.data.sources.comments import comment_lines
from influence_cli.errors import ManifestError

N = 30
X = np.random.default_rng(0).normal(size=N)
Y = np.random.default_rng(1).integers(0, 2, N)


def made(source: Any, tmp_path: Path, split: str = "100/0/0", skip_bad: bool = False, **columns: Any) -> Ingested:
    output = str(tmp_path / "out.parquet")
    return make_manifest(IngestRequest(source, output, Columns(**columns), split=split, skip_bad=skip_bad))


def labelled(names: list[Any]) -> pd.DataFrame:
    return pd.DataFrame({"x": X, "label": [names[k % len(names)] for k in range(N)]})


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["Yes", "yes", "no"], "'Yes' and 'yes'"),
        (["in come", "in-come", "in_come"], "'in come' and 'in-come' and 'in_come'"),
        ([">50K", ">50K.", "<=50K"], "'>50K' and '>50K.'"),
    ],
)
def test_names_that_look_alike(names: list[str], says: str, tmp_path: Path) -> None:
    (note,) = [n for n in made(labelled(names), tmp_path).notes if n.startswith("classes of nearly one name")]
    assert note.endswith(says)


@pytest.mark.parametrize("names", [["-1", "1"], ["1-2", "12"], ["a", "b"], ["1.0", "10"], ["<=50K", ">50K"]])
def test_names_that_do_not(names: list[str], tmp_path: Path) -> None:
    assert not any("nearly one name" in note for note in made(labelled(names), tmp_path).notes)


def test_a_name_that_reads_as_a_missing_label(tmp_path: Path) -> None:
    (note,) = [n for n in made(labelled(["yes", "no", "?"]), tmp_path).notes if "missing label" in n]
    assert note.startswith("class '?' is a class like others, though it reads as a missing label (10 rows)")


def test_one_class_of_train_rows_and_a_class_without_any(tmp_path: Path) -> None:
    rows = pd.DataFrame({"x": X, "label": Y, "split": np.where(Y == 1, "train", "val")})
    notes = made(rows, tmp_path).notes
    assert "every train row is of class 1: a model of them tells nothing apart" in notes
    assert "no train row is of these classes, which val or test rows have: 0" in notes


def test_rows_without_a_label_are_counted(tmp_path: Path) -> None:
    rows = labelled(["yes", "no", None])
    with pytest.raises(ManifestError, match="column label is null in 10 rows, and this is the first"):
        made(rows, tmp_path)
    assert made(rows, tmp_path, skip_bad=True).skipped[:1] == [("row-2", "column label is null")]


def test_rows_without_a_weight_and_without_any(tmp_path: Path) -> None:
    rows = pd.DataFrame({"x": X, "label": Y, "w": np.where(np.arange(N) < 2, np.nan, 0.5)})
    assert "2 rows without a weight count as weight 1" in made(rows, tmp_path, weight="w").notes
    assert "every train row has weight 0" in made(rows.assign(w=0), tmp_path, weight="w").notes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("# by me\n# 2024\na,label\n1,0\n", 2),
        ("# by me, 2024\na,label\n1,0\n", 1),  # as many fields as the names
        ('# a "quote\n\na,label\n1,0\n', 2),
        ("#a,label\n1,0\n2,1\n", 0),  # the names begin with #
        ("# by me\n#a,label\n1,0\n2,1\n", 1),
        ("#a,label\nx,no\ny,yes\n", 0),
        ("a,label\n#1,0\n", 0),
    ],
)
def test_comments_before_the_names_of_columns(text: str, count: int, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert comment_lines(tmp_path / "t.csv", "utf-8", ",") == count


def test_a_file_with_comments_is_read_as_one_without(tmp_path: Path) -> None:
    body = "a,label\n" + "".join(f"{x:.3f},{y}\n" for x, y in zip(X, Y, strict=True))
    found = []
    for head in ("", "# it's \"mine\n#, really\n"):
        (tmp_path / "t.csv").write_text(head + body)
        ingested = made(str(tmp_path / "t.csv"), tmp_path)
        found.append([v.tolist() for _, v in ingested.manifest.payloads(np.arange(N))])
        said = "lines before the names of columns, which begin with #, are comments (2)"
        assert (said in ingested.taken) == bool(head)
    assert found[0] == found[1]
    (tmp_path / "t.csv").write_text('# "mine\n' + body + "1,2,3\n")
    with pytest.raises(ManifestError, match="more fields") as caught:
        made(str(tmp_path / "t.csv"), tmp_path)
    assert caught.value.where.endswith(f"line {N + 3}")


def test_rows_without_a_group_are_in_none_and_that_is_said(tmp_path: Path) -> None:
    rows = pd.DataFrame({"x": X, "label": Y, "sex": [None if k == 3 else "mf"[k % 2] for k in range(N)]})
    assert "1 row without a value in column sex is in no group" in made(rows, tmp_path, group="sex").notes


@pytest.mark.parametrize(
    ("label", "says", "fix"),
    [
        ([k % 3 - 1 for k in range(N)], "-1 is no class number", "where it is a class, write names"),
        ([k % 3 / 2 for k in range(N)], "0.5 is no class number", "regression"),
        (pd.to_datetime(["2024-01-01", "2024-02-01"] * (N // 2)), "labels are timestamp", "numbers or names"),
    ],
)
def test_labels_that_are_no_classes(label: Any, says: str, fix: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=says) as caught:
        made(pd.DataFrame({"x": X, "label": label}), tmp_path)
    assert fix in caught.value.fix


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_an_object_with_two_values_of_one_name_is_refused(form: str, tmp_path: Path) -> None:
    rows = ['{"x": 1, "label": 0}', '{"x": 2, "label": 1, "x": 3}']
    text = "\n".join(rows) if form == "jsonl" else f"[{', '.join(rows)}]"
    (tmp_path / f"t.{form}").write_text(text)
    with pytest.raises(ManifestError, match="two values are called 'x'"):
        made(str(tmp_path / f"t.{form}"), tmp_path)

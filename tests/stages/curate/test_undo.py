"""Edits taken back, and what is reported of them (methods.md 5, 5.4).

A manifest curated and undone is the manifest; only train rows are ever edited; counts and chi-square are recomputed.

    python -m pytest tests/stages/curate/test_undo.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chi2_contingency

from influence_cli.data.open import open_manifest
from influence_cli.stages.curate.curate import chi_square, summarise
from influence_cli.stages.curate.curate import curate as curate_stage
from influence_cli.stages.curate.request import CurateRequest
from tests.cases import Ran, call_cli, digits_table, with_column, write


def ok(*asked: Any, cwd: Path) -> Ran:
    ran = call_cli(*asked, cwd=cwd)
    assert ran.code == 0, ran.err
    return ran


@pytest.fixture
def folder(tmp_path: Path, digits_run: Path) -> Path:
    """A manifest in two files, with groups and weights, and its score table."""
    table = digits_table(train=120, val=10, test=10)
    table = with_column(table, "group", pa.array(["a" if k % 3 else "b" for k in range(140)]))
    table = with_column(table, "weight", pa.array([1.0 + k % 2 for k in range(140)], pa.float32()))
    order = np.random.default_rng(0).permutation(140)  # splits mixed
    table = table.take(pa.array(order))
    write(table.slice(0, 50), tmp_path / "m" / "0.parquet")
    write(table.slice(50), tmp_path / "m" / "1.parquet")
    ok("score", "--method", "ip", "m", "--checkpoint", digits_run, "-o", "s.parquet", "-q", cwd=tmp_path)
    return tmp_path


def whole(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(f) for f in sorted((folder / "m").glob("*.parquet"))])


ACTIONS = (["--budget", "12"], ["--action", "relabel", "--budget", "30"], ["--action", "reweight"])


@pytest.mark.parametrize("action", ACTIONS, ids=["trim", "relabel", "reweight"])
def test_undoing_gives_the_manifest_back(action: list[str], folder: Path) -> None:
    ok("curate", "s.parquet", *action, "-o", "c.parquet", "--edits", "e.parquet", cwd=folder)
    edited = pq.read_table(folder / "e.parquet").num_rows
    assert edited > 0
    assert not pq.read_table(folder / "c.parquet").equals(whole(folder))
    ran = ok("curate", "e.parquet", "--undo", "--manifest", "c.parquet", "-o", "r.parquet", cwd=folder)
    restored = pq.read_table(folder / "r.parquet")
    assert restored.equals(whole(folder))
    assert restored.schema.metadata == whole(folder).schema.metadata
    assert f"{edited} edits taken back" in ran.err


@pytest.mark.parametrize("action", ACTIONS[1:], ids=["relabel", "reweight"])
def test_labels_and_weights_come_back_without_the_old_manifest(action: list[str], folder: Path) -> None:
    before = whole(folder)
    ok("curate", "s.parquet", *action, "-o", "c.parquet", "--edits", "e.parquet", cwd=folder)
    (folder / "m").rename(folder / "elsewhere")
    ok("curate", "e.parquet", "--undo", "--manifest", "c.parquet", "-o", "r.parquet", cwd=folder)
    assert pq.read_table(folder / "r.parquet").equals(before)


def test_trimmed_rows_need_the_old_manifest(folder: Path) -> None:
    ok("curate", "s.parquet", "--budget", "12", "-o", "c.parquet", "--edits", "e.parquet", cwd=folder)
    (folder / "m").rename(folder / "elsewhere")
    ran = call_cli("curate", "e.parquet", "--undo", "--manifest", "c.parquet", "-o", "r.parquet", cwd=folder)
    assert ran.code == 2
    assert "rows were trimmed" in ran.err
    assert not (folder / "r.parquet").exists()


def test_rows_appended_and_edited_since_stay(folder: Path) -> None:
    ok("curate", "s.parquet", "--budget", "12", "-o", "c.parquet", "--edits", "e.parquet", cwd=folder)
    curated = pq.read_table(folder / "c.parquet")
    new = curated.slice(5, 1)
    new = with_column(new, "id", pa.array(["new"]))
    write(pa.concat_tables([curated, new.cast(curated.schema)]), folder / "c.parquet")
    ok("curate", "e.parquet", "--undo", "--manifest", "c.parquet", "-o", "r.parquet", cwd=folder)
    restored = pq.read_table(folder / "r.parquet")
    assert restored.filter(pa.array([i != "new" for i in restored["id"].to_pylist()])).equals(whole(folder))
    assert restored.num_rows == 141


@pytest.mark.parametrize(
    ("change", "said"), [("label", "has changed since it was edited"), ("gone", "is not in it"), ("other", "no column")]
)
def test_what_cannot_be_undone_exits_2_and_names_the_row(change: str, said: str, folder: Path) -> None:
    ok("curate", "s.parquet", *ACTIONS[1], "-o", "c.parquet", "--edits", "e.parquet", cwd=folder)
    first = pq.read_table(folder / "e.parquet").to_pylist()[0]
    curated = pq.read_table(folder / "c.parquet")
    ids = curated["id"].to_pylist()
    if change == "label":
        labels = [9 - v if i == first["id"] else v for i, v in zip(ids, curated["label"].to_pylist(), strict=True)]
        write(with_column(curated, "label", labels), folder / "c.parquet")
    elif change == "gone":
        write(curated.filter(pa.array([i != first["id"] for i in ids])), folder / "c.parquet")
    source = "s.parquet" if change == "other" else "e.parquet"
    ran = call_cli("curate", source, "--undo", "--manifest", "c.parquet", "-o", "r.parquet", cwd=folder)
    assert ran.code == 2
    assert said in ran.err
    assert change == "other" or f"id={first['id']}" in ran.err
    assert not (folder / "r.parquet").exists()


@pytest.mark.parametrize("wrong", [["-o", "r.parquet"], ["--manifest", "c.parquet"], ["--check"]])
def test_undo_needs_a_manifest_and_a_place_and_nothing_else(wrong: list[str], folder: Path) -> None:
    ok("curate", "s.parquet", "--budget", "3", "-o", "c.parquet", "--edits", "e.parquet", cwd=folder)
    assert call_cli("curate", "e.parquet", "--undo", *wrong, cwd=folder).code == 2


@pytest.mark.parametrize("action", ACTIONS, ids=["trim", "relabel", "reweight"])
def test_val_and_test_rows_are_untouched(action: list[str], folder: Path) -> None:
    ok("curate", "s.parquet", *action, "-o", "c.parquet", cwd=folder)
    before, after = whole(folder), pq.read_table(folder / "c.parquet").select(whole(folder).column_names)
    for split in ("val", "test"):
        mine = [t.filter(pa.array([s == split for s in t["split"].to_pylist()])) for t in (before, after)]
        assert mine[0].equals(mine[1])


# -- what is reported (5.4) -----------------------------------------------------------------------------------------


def test_report_counts_rows_before_and_after(folder: Path) -> None:
    curated = curate_stage(CurateRequest(str(folder / "s.parquet"), budget="20", manifest=str(folder / "m")))
    s = summarise(curated)
    manifest = open_manifest(str(folder / "m"))
    train = manifest.rows("train")
    gone = np.zeros(len(train), dtype=bool)
    gone[curated.edits.edited] = True
    for c, part in s["classes"].items():
        mine = train.labels == c
        assert part == {"rows": mine.sum(), "edited": (mine & gone).sum(), "after": (mine & ~gone).sum()}
    groups = np.array(manifest.table["group"].to_pylist())[train.index]
    assert set(s["groups"]) == {"a", "b"}
    for g, part in s["groups"].items():
        mine = groups == g
        assert part == {"rows": mine.sum(), "edited": (mine & gone).sum(), "after": (mine & ~gone).sum()}
    score = curated.scores.scored.score
    assert s["score"] == {"edited": pytest.approx(score[gone].mean()), "kept": pytest.approx(score[~gone].mean())}
    table = np.array([[(gone & (train.labels == c)).sum(), (~gone & (train.labels == c)).sum()] for c in s["classes"]])
    expected = chi2_contingency(table, correction=False)
    assert s["chi_square"]["statistic"] == pytest.approx(expected.statistic)
    assert s["chi_square"]["p_value"] == pytest.approx(expected.pvalue)
    assert s["chi_square"]["degrees"] == expected.dof


def test_relabelled_rows_count_with_their_new_class(folder: Path) -> None:
    request = CurateRequest(str(folder / "s.parquet"), "relabel", "30", str(folder / "m"))
    curated = curate_stage(request)
    s = summarise(curated)
    for c, part in s["classes"].items():
        assert part["after"] == (curated.edits.labels == c).sum()
    assert sum(p["after"] for p in s["classes"].values()) == 120


def test_most_edits_in_a_small_class_are_a_warning(tmp_path: Path) -> None:
    rows = digits_table(train=100, val=5, test=5)
    labels = [0 if k < 20 else 1 for k in range(110)]
    table = with_column(rows.drop_columns(["clean_label"]), "label", labels)
    write(table, tmp_path / "m.parquet")
    ok("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=tmp_path)
    scores = pq.read_table(tmp_path / "s.parquet")
    low = [float(k) - (1000.0 if k < 20 else 0.0) for k in range(100)]
    write(with_column(scores, "score", low), tmp_path / "s.parquet")
    ran = ok("curate", "s.parquet", "--budget", "10", "--set", "guard=false", cwd=tmp_path)
    assert "100% of the edits are of class 0, a minority (20.0% of the rows)" in ran.err
    assert "chi-square by class 44.44 (1 df" in ran.err
    even = ok("curate", "s.parquet", "--budget", "80", "--set", "guard=false", cwd=tmp_path)
    assert "a minority" not in even.err


def test_nothing_to_tell_gives_no_chi_square() -> None:
    labels = np.array([0, 0, 1, 1])
    assert chi_square(labels, np.ones(4, dtype=bool)) is None
    assert chi_square(labels, np.zeros(4, dtype=bool)) is None
    assert chi_square(np.zeros(4, dtype=np.int64), np.array([True, False, False, False])) is None

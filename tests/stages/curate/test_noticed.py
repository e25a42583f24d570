"""Slips in what curates, and damage, that nothing had noticed (``python -m tests.hardening.mutants``)."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.actions.protocol import Edits
from influence_cli.data.kinds.image import Image
from influence_cli.data.row_checks import BadRow
from influence_cli.errors import ManifestError, UsageError
from influence_cli.stages.curate import gate, known_rows, neighbours, review, undo, usual_values, written_manifest
from influence_cli.stages.curate.combining import column_named, score_column_names
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.curate.score_table import _read, read_scores
from tests.cases import call_cli, digits_table, with_column, write


def test_rows_of_val_and_test_that_cannot_be_used_are_not_the_gates() -> None:
    bad = tuple(BadRow(k, f"r{k}", "features", "not finite") for k in range(3))
    table = pa.table({"id": ["r0", "r1", "r2"], "split": ["train", "val", "test"]})
    manifest = SimpleNamespace(table=table, bad=bad, row_keys=np.arange(48, dtype=np.uint8).reshape(3, 16))
    scores: Any = SimpleNamespace(manifest=manifest, train=SimpleNamespace(index=np.array([], np.int64)))
    none = np.zeros(0, dtype=bool)
    assert gate._unjudged(scores, none, set()) == [(0, "column features: not finite")]
    assert gate._unjudged(scores, none, {manifest.row_keys[0].tobytes().hex()}) == []
    manifest.table = table.drop_columns(["split"])
    assert [row for row, _ in gate._unjudged(scores, none, set())] == [0, 1, 2]


def test_an_edit_without_a_number_is_named_by_its_row() -> None:
    columns = {"id": ["a", "b"], "action": ["relabel"] * 2, "label_was": [0, 1], "label": [1, None]}
    table = pa.table({**columns, "weight_was": [1.0, 1.0], "weight": [1.0, 1.0]})
    with pytest.raises(ManifestError, match="row id=b, column label"):
        undo._edit_rows(table, pa.int64(), "e.parquet")
    trimmed = table.set_column(1, "action", pa.array(["relabel", "trim"]))
    assert [row["label"] for row in undo._edit_rows(trimmed, pa.int64(), "e.parquet")] == [1, None]


def test_every_number_of_a_row_is_held_against_its_own_range() -> None:
    low, high = np.array([0.0, 10.0, 20.0]), np.array([1.0, 11.0, 21.0])
    usual = usual_values.UsualValues((), ("x", "y", "z"), {0: (low, high, (low + high) / 2)})
    found = {v.name: v for v in usual.of_row(np.array([0.5, 10.5, 25.0], np.float32), 0)}
    assert [(name, found[name].value, found[name].odd) for name in ("x", "y", "z")] == [
        ("x", "0.5", False), ("y", "10.5", False), ("z", "25", True),
    ]  # fmt: skip
    assert found["z"].usual == "20 to 21"


@pytest.mark.parametrize("column", ["label", "loss", "margin"])
def test_damage_in_a_column_that_no_edit_needs_is_noticed(column: str, scored: Path, tmp_path: Path) -> None:
    raw, path = bytearray(scored.read_bytes()), tmp_path / "s.parquet"
    group = pq.read_metadata(scored).row_group(0)
    (place,) = (
        group.column(k).data_page_offset + group.column(k).total_compressed_size // 2
        for k in range(group.num_columns)
        if group.column(k).path_in_schema == column
    )
    raw[place] ^= 1
    path.write_bytes(raw)
    assert column not in (_read(path) or ())
    ran = call_cli("curate", path, "-o", "c.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "damaged Parquet" in ran.err
    assert "s.parquet" in ran.err
    assert not (tmp_path / "c.parquet").exists()


def test_a_score_column_is_known_by_its_whole_name_or_its_end() -> None:
    names = ("id", "score", "score_std", "score_ip_utility", "score_ip_fairness", "score_cg_utility")
    table = pa.table({name: [1] for name in names})
    assert score_column_names(table) == ["score", "score_ip_utility", "score_ip_fairness", "score_cg_utility"]
    named = {"score": "score", "ip_utility": "score_ip_utility", "fairness": "score_ip_fairness"}
    assert {name: column_named(name, table, "t") for name in named} == named
    for name, said in (
        ("utility", "may be any of score_ip_utility, score_cg_utility"),
        ("std", "no score column 'std'"),
    ):
        with pytest.raises(UsageError, match=said):
            column_named(name, table, "t")


def test_neighbours_stand_in_the_reasons_of_edited_rows_alone() -> None:
    edits: Any = SimpleNamespace(edited=np.array([1, 2]), reason=["", "low", "low"])
    columns = {"knn_nearest": ["a, b", "c", None], "score_knn": [1.0, 2.0, 3.0]}
    scores: Any = SimpleNamespace(
        table=pa.table(columns), column="score_knn", provenance={}, manifest=SimpleNamespace(classes=("cat", "dog"))
    )
    edits = Edits("trim", np.zeros(3, np.int64), np.array([1.0, 0.0, 0.0]), ["", "low", "low"], [])
    with_ids = [str(r) for r in neighbours.with_neighbours(edits, scores).reason]
    assert with_ids == ["", "low; nearest rows: c", "low"]
    scores.table = pa.table({**columns, "knn_label": [0, 1, None]})
    assert neighbours.with_neighbours(edits, scores).reason[1].startswith("low; nearest rows: c; its neighbours say ")
    assert "dog" in neighbours.with_neighbours(edits, scores).reason[1]
    scores.column = "score_ip"
    assert neighbours.with_neighbours(edits, scores) is edits


def test_where_the_rows_were_is_said_as_far_as_the_edits_know(tmp_path: Path) -> None:
    assert undo._original({}, "label", False, "e.csv") is None
    gone = {"manifest": {"locator": str(tmp_path / "gone.parquet")}}
    for origin, said in (({}, "the edits do not say where"), (gone, "gone.parquet")):
        with pytest.raises(UsageError, match=said):
            undo._original(origin, "label", True, "e.csv")


def test_tables_become_one_file_and_none_becomes_nothing() -> None:
    tables = [(pa.table({"a": [1, 2]}), 1), (pa.table({"a": [3]}), 2)]
    out = io.BytesIO()
    assert written_manifest._write(iter(tables), pa.PythonFile(out, mode="w")) == 3
    assert pq.read_table(io.BytesIO(out.getvalue())).to_pydict() == {"a": [1, 2, 3]}
    assert written_manifest._write(iter(()), pa.PythonFile(io.BytesIO(), mode="w")) == 0


@pytest.mark.parametrize(("count", "told"), [(4, False), (5, True)])
def test_a_rate_that_no_single_row_decides_is_said_where_it_is_below_all(
    count: int, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_rows, "calibration_keys", lambda *_, **__: None)
    monkeypatch.setattr(known_rows, "calibration_rows", lambda *_: np.ones(count, dtype=bool))
    known, said = known_rows.said_of_rates(SimpleNamespace())  # type: ignore[arg-type]
    assert known
    assert ("no single row decides" in said) is told


def test_only_a_manifest_with_unusable_rows_is_said_to_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad, said in ((0, ()), (2, ("2 rows of m cannot be used, and accept nothing",))):
        monkeypatch.setattr(known_rows, "_keys_of", lambda *_, bad=bad: ({"k"}, bad))
        assert known_rows.accepted_keys(SimpleNamespace(), None, "m") == ({"k"}, said)  # type: ignore[arg-type]


def test_weights_that_are_null_become_numbers_in_the_rows_that_are_reweighted(tmp_path: Path) -> None:
    table = digits_table(train=30, val=5, test=5)
    write(with_column(table, "weight", pa.array([None, 2.0] * 20, pa.float64())), tmp_path / "m.parquet")
    assert call_cli("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=tmp_path).code == 0
    ran = call_cli("curate", "s.parquet", "--action", "reweight", "-o", "c.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    weights = pq.read_table(tmp_path / "c.parquet").column("weight").to_pylist()
    assert None not in weights[:30]
    assert weights[30:] == [None, 2.0] * 5


def test_a_page_holds_so_much_of_pictures_and_proposes_what_is_known(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "MOST_BYTES", 3 << 20)
    monkeypatch.setattr(Image, "card", lambda *_: {"picture": "x" * (1 << 20)})
    monkeypatch.setattr(review, "LOWEST", 5)
    scores = read_scores(CurateRequest(str(scored)))
    best = np.full(len(scores.train), -1)
    first = int(scores.scored.ascending()[0])
    best[first] = (scores.scored.labels[first] + 1) % 10
    monkeypatch.setattr(review, "proposed_labels", lambda table, name, train: best if name == "best_label" else None)
    made = review.review_of_scores(scores, review.Commands("made", "apply"))
    assert "The first 3 rows have pictures: the page holds 3 MiB of them." in made.not_shown
    assert ["picture" in row.card for row in made.rows] == [True] * 3 + [False] * 2
    assert [row.proposed_number for row in made.rows] == [best[first], None, None, None, None]

"""Slips in what curates, and damage, that nothing had noticed (``python -m tests.hardening.mutants``)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.row_checks import BadRow
from influence_cli.errors import ManifestError
from influence_cli.stages.curate import gate, undo, usual_values
from influence_cli.stages.curate.score_table import _read
from tests.cases import call_cli


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

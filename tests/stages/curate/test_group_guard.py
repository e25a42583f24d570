"""The groups that scores were made by are guarded, whatever their column is called.

python -m pytest tests/stages/curate/test_group_guard.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from influence_cli.data.open import open_manifest
from influence_cli.data.tables import with_provenance
from influence_cli.stages.curate.curate import curate, summarise
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.store.shards import as_arrow
from tests.cases import examples, feature_table, write


def scored(folder: Path, origin: dict[str, Any], **columns: Any) -> CurateRequest:
    """40 rows whose first ten have the lowest scores, in column ``score``."""
    path = write(feature_table(examples(), **columns), folder / "m.parquet")
    train = open_manifest(str(path)).rows("train")
    score = np.arange(len(train), dtype=float)
    table = pa.table({"id": train.ids, "row_key": as_arrow(train.row_keys), "label": train.labels, "score": score})
    origin = {"manifest": {}, "target": {}, **origin}
    return CurateRequest(with_provenance(table, origin), manifest=str(path), budget="20%")


SEX = np.where(np.arange(64) < 10, "f", "m")  # the ten lowest train rows are one group
ORIGINS = {
    "by the objective's option": {"spec": {"objectives": ["fairness"], "options": {"fairness": {"column": "sex"}}}},
    "by --group": {"spec": {"objectives": ["fairness"]}, "manifest": {"group": "sex"}},
    "by two columns": {
        "spec": {"objectives": ["fairness", "equalised-odds"], "options": {"equalised-odds": {"column": "sex"}}},
        "manifest": {"group": "race"},
    },
}


@pytest.mark.parametrize("by", ORIGINS)
def test_no_group_that_was_scored_by_is_emptied(by: str, tmp_path: Path) -> None:
    two = {"race": ["a"] * 64} if by == "by two columns" else {}
    curated = curate(scored(tmp_path, ORIGINS[by], sex=SEX, **two))
    gone = curated.edits.edited
    assert (gone < 10).sum() == 4  # 40 % of the ten, twice the budget's share
    assert len(gone) == 8
    said = summarise(curated)["groups"]
    assert said["sex=f" if two else "f"] == {"rows": 10, "edited": 4, "after": 6}


def test_a_column_of_groups_that_is_not_there_is_said(tmp_path: Path) -> None:
    curated = curate(scored(tmp_path, ORIGINS["by --group"]))
    assert (
        "the train rows have no column sex, by which they were scored: its groups are unguarded" in curated.edits.notes
    )


def test_scores_about_no_groups_guard_none_but_column_group(tmp_path: Path) -> None:
    origin = {"spec": {"objectives": ["utility"], "options": {}}}
    assert sorted(curate(scored(tmp_path, origin, sex=SEX)).edits.edited) == list(range(8))

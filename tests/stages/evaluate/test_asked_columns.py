"""A table none of whose score columns can be measured is refused before anything is trained.

python -m pytest tests/stages/evaluate/test_asked_columns.py
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from influence_cli.data.tables import provenance, with_provenance
from tests.cases import call_cli, write


@pytest.mark.parametrize("question", [["--lds", 3], ["--loo", 4], ["--removal", "20%"]])
def test_scores_for_fairness_alone_are_refused(question: list[object], tmp_path: Path, scored: Path) -> None:
    table = pq.read_table(scored)
    origin = provenance(table.schema)
    origin["spec"]["objectives"] = ["fairness"]
    origin["kinds"] = {"score_fairness": "signed"}
    origin["manifest"]["locator"] = str(scored.parent / "digits.parquet")
    origin["checkpoint"]["locator"] = str(scored.parent / "digits-run")
    origin["target"]["locator"] = None
    origin.pop("paths_count_from", None)
    names = [name.replace("utility", "fairness") for name in table.column_names]
    write(with_provenance(table.rename_columns(names), origin), tmp_path / "fair.parquet")
    ran = call_cli("evaluate", "fair.parquet", *question, "--store", tmp_path / "store", cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert "no score column to measure (fairness: its objective is fairness" in ran.err
    assert "fix: score with --objective utility" in ran.err
    assert not list((tmp_path / "store").glob("trainings/*"))

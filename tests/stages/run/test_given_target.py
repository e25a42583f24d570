"""A target that is given is the one that is looked at, whatever the method needs of it.

python -m pytest tests/stages/run/test_given_target.py
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cases import call_cli, write


@pytest.mark.parametrize("method", ["loss", "margin"])
def test_accuracy_before_scoring_is_of_the_given_target(
    method: str, tmp_path: Path, tabular: Path, tabular_run: Path
) -> None:
    rows = pq.read_table(tabular)
    write(rows.slice(0, 5), tmp_path / "five.parquet")  # train rows, which a method without a direction may look at
    asked = ["--checkpoint", tabular_run, "--target", "five.parquet", "--method", method, "-o", "s.parquet"]
    ran = call_cli("score", tabular, *asked, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "(5 rows)" in ran.err
    assert "(12 rows)" not in ran.err

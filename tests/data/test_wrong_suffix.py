"""Files that are called after another form than they have, and standard input and output in place of files.

python -m pytest tests/data/test_wrong_suffix.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.cases import call_cli, examples, feature_table, write


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows in every form, called rows.SUFFIX."""
    folder = tmp_path_factory.mktemp("files")
    rows = pd.DataFrame({"x": np.arange(60) % 7, "label": np.arange(60) % 2})
    rows.to_csv(folder / "rows.csv", index=False)
    rows.to_json(folder / "rows.jsonl", orient="records", lines=True)
    rows.to_excel(folder / "rows.xlsx", index=False)
    np.savez(folder / "rows.npz", features=rows[["x"]].to_numpy(float), label=rows["label"].to_numpy())
    write(feature_table(examples()), folder / "rows.parquet")
    return folder


@pytest.mark.parametrize(
    ("holds", "called", "said"),
    [
        ("csv", "parquet", "it is called .parquet, and holds text"),
        ("parquet", "csv", "it is called .csv, and holds Parquet"),
        ("parquet", "jsonl", "it is called .jsonl, and holds Parquet"),
        ("xlsx", "csv", "it is called .csv, and holds an Excel workbook"),
        ("csv", "xlsx", "it is called .xlsx, and holds text"),
        ("jsonl", "parquet", "it is called .parquet, and holds lines of JSON"),
        ("npz", "parquet", "it is called .parquet, and holds arrays of NumPy"),
        ("csv", "npz", "it is called .npz, and holds text"),
    ],
)
def test_a_wrong_suffix_is_called_that_with_the_right_name(
    holds: str, called: str, said: str, files: Path, tmp_path: Path
) -> None:
    shutil.copy(files / f"rows.{holds}", tmp_path / f"data.{called}")
    ran = call_cli("manifest", f"data.{called}", "-o", "m.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert said in ran.err
    assert f"rename it to data.{holds}" in ran.err
    (tmp_path / f"data.{called}").rename(tmp_path / f"data.{holds}")
    assert call_cli("manifest", f"data.{holds}", "--label", "label", "-o", "m.parquet", cwd=tmp_path).code == 0


def test_a_manifest_by_a_wrong_name_is_told_from_a_damaged_one(files: Path, tmp_path: Path) -> None:
    shutil.copy(files / "rows.csv", tmp_path / "m.parquet")
    ran = call_cli("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "it is called .parquet, and holds text" in ran.err
    whole = (files / "rows.parquet").read_bytes()
    (tmp_path / "m.parquet").write_bytes(whole[:-100])
    ran = call_cli("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "truncated, or damaged" in ran.err


def test_standard_input_and_output_hold_no_manifest(files: Path, tmp_path: Path) -> None:
    ran = call_cli("manifest", "-", "-o", "m.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "standard input is no source" in ran.err
    assert "influence manifest rows.csv" in ran.err
    ran = call_cli("manifest", files / "rows.csv", "-o", "-", cwd=tmp_path)
    assert ran.code == 2
    assert "a manifest does not go to standard output" in ran.err
    assert "pass -o manifest.parquet" in ran.err

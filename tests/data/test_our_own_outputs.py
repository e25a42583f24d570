"""What we have written into a folder of data is no row of it, and is said to be left out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.open import open_manifest
from influence_cli.store import Store
from tests.cases import call_cli, png


@pytest.fixture
def photos(tmp_path: Path, scored: Path, digits: Path) -> Path:
    """A folder of pictures with a curated manifest, a table of edits, scores and a store in it."""
    root = tmp_path / "photos"
    for k in range(6):
        (root / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        (root / "ab"[k % 2] / f"{k}.png").write_bytes(png(np.full((8, 8, 3), 40 * k)))
    ran = call_cli(
        "curate", scored, "--manifest", digits, "--budget", "3", "-o", root / "c.parquet",
        "--edits", root / "e.parquet",
        cwd=tmp_path,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    shutil.copy(scored, root / "s.parquet")
    Store(root / "st").factors.write("a" * 32, {"w": np.ones(2, np.float32)}, {"fit": "f"})
    return root


def test_an_image_folder_is_still_one(photos: Path, tmp_path: Path) -> None:
    ran = call_cli("manifest", photos, "-o", tmp_path / "m.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "6 rows from image folder" in ran.err
    assert list(open_manifest(tmp_path / "m.parquet").ids) == [f"{'ab'[k % 2]}/{k}.png" for k in (0, 2, 4, 1, 3, 5)]
    for what in (
        "a curated manifest that influence has written", "a table of edits that influence has written",
        "a score table that influence has written", "left out: folder st: a store of influence",
    ):  # fmt: skip
        assert what in ran.err


def test_parquet_of_others_is_read_and_ours_beside_it_is_not(scored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = pa.table({"id": ["a", "b"], "features": [[1.0], [2.0]], "label": [0, 1]})
    pq.write_table(rows, folder / "train.parquet")
    asked = ("manifest", folder, "-o", tmp_path / "m.parquet")
    assert call_cli(*asked, cwd=tmp_path).code == 0
    shutil.copy(scored, folder / "s.parquet")
    ran = call_cli(*asked, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "a score table that influence has written" in ran.err
    assert len(open_manifest(tmp_path / "m.parquet")) == 2


def test_a_folder_of_nothing_but_our_manifests_is_read(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    shutil.copy(photos / "c.parquet", folder / "c.parquet")
    shutil.copy(photos / "e.parquet", folder / "e.parquet")
    ran = call_cli("manifest", folder, "-o", tmp_path / "m.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert len(open_manifest(tmp_path / "m.parquet")) == len(open_manifest(folder / "c.parquet"))
    assert "a table of edits that influence has written" in ran.err
    (folder / "c.parquet").unlink()
    ran = call_cli("manifest", folder, "-o", tmp_path / "m.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "a table of edits that influence has written" in ran.err

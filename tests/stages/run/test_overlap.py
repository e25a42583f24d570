"""Target rows that are train or test rows: refused above a hundredth, kept, or dropped, which says what it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import influence_cli
from influence_cli.data.tables import provenance
from influence_cli.errors import ManifestError, UsageError
from influence_cli.settings import Inputs
from tests.cases import Example, Heard, call_cli, column, draw_features, feature_table, job_of, write

NAMES = ("cat", "dog", "owl")


def rows_with_overlap(split: str = "train", shared: int = 30) -> list[Example]:
    """60 train, 40 val and 20 test rows; the first ``shared`` val rows, all of them cats, are rows of ``split``."""
    other = [Example(f"t{k}", draw_features(k), k % 3) for k in range(60)]
    test = [Example(f"x{k}", draw_features(100 + k), k % 3, "test") for k in range(20)]
    source = other if split == "train" else test
    both = [Example(f"both{k}", source[k % len(source)].features, 0, "val") for k in range(shared)]
    own = [Example(f"v{k}", draw_features(200 + k), 1 + k % 2, "val") for k in range(40 - shared)]
    return [*other, *test, *both, *own]


def manifest(rows: list[Example], path: Path, **more: Any) -> Path:
    names = {"classes": json.dumps(NAMES)}
    return write(feature_table(rows, **more).replace_schema_metadata(names), path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose classes are called as those of the manifests here."""
    folder = tmp_path_factory.mktemp("overlap")
    manifest(rows_with_overlap(shared=0), folder / "m.parquet")
    trained = call_cli("retrain", "m.parquet", "--model", "linear", "--epochs", 3, "-o", "run", cwd=folder)
    assert trained.code == 0, trained.err
    return folder / "run"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_refusal_names_both_ways_out(split: str, tmp_path: Path, run: Path) -> None:
    path = manifest(rows_with_overlap(split), tmp_path / "m.parquet")
    with pytest.raises(ManifestError) as refused:
        job_of(path, run, None)
    assert f"30 of 40 target rows are {'training' if split == 'train' else 'test'} rows" in refused.value.what
    assert "both0" in refused.value.what
    assert "--overlap keep" in refused.value.fix
    assert "--overlap drop" in refused.value.fix


@pytest.mark.parametrize("split", ["train", "test"])
def test_kept_rows_are_target_rows_like_any(split: str, tmp_path: Path, run: Path) -> None:
    path, heard = manifest(rows_with_overlap(split), tmp_path / "m.parquet"), Heard()
    job = job_of(path, run, None, overlap="keep", listener=heard)
    assert (len(job.target), job.overlap) == (40, 0)
    assert job.target.fingerprint() == job.manifest.rows("val").fingerprint()
    assert any("30 of 40 target rows" in note and "stay in the target" in note for note in heard.notes)
    assert heard.warnings == []


def test_one_row_in_a_hundred_is_kept_too_where_all_are(tmp_path: Path, run: Path) -> None:
    rows = rows_with_overlap(shared=0) + [Example(f"w{k}", draw_features(400 + k), k % 3, "val") for k in range(70)]
    path = manifest([*rows, Example("both", rows[0].features, 0, "val")], tmp_path / "m.parquet")
    assert len(job_of(path, run, None, overlap="keep").target) == 111
    assert len(job_of(path, run, None).target) == 110


def test_a_drop_says_by_name_how_classes_and_groups_change(tmp_path: Path, run: Path) -> None:
    rows = rows_with_overlap()
    groups = ["north" if r.id.startswith(("both", "t")) or r.id in ("v0", "v1") else "south" for r in rows]
    path, heard = manifest(rows, tmp_path / "m.parquet", region=pa.array(groups)), Heard()
    job = job_of(path, run, None, overlap="drop", group="region", listener=heard)
    assert (len(job.target), job.overlap) == (10, 30)
    said = "\n".join(heard.notes)
    assert "target by class, before and after: cat 75.0% -> 0.0%; dog 12.5% -> 50.0%; owl 12.5% -> 50.0%" in said
    assert "target by region, before and after: north 80.0% -> 20.0%; south 20.0% -> 80.0%" in said
    (warning,) = [w for w in heard.warnings if "other rows than were given" in w]
    assert "class cat went from 75.0% to 0.0% of it" in warning
    assert "region north went from 80.0% to 20.0%" in warning
    assert "--overlap keep" in warning


def test_a_drop_that_moves_no_share_gives_no_second_warning(tmp_path: Path, run: Path) -> None:
    rows = rows_with_overlap(shared=0) + [Example(f"w{k}", draw_features(k), 1 + k % 2, "val") for k in range(10)]
    heard = Heard()
    job_of(manifest(rows, tmp_path / "m.parquet"), run, None, overlap="drop", listener=heard)
    assert [w for w in heard.warnings if "left out of the target" not in w] == []


def test_the_older_name_drops_as_before_and_says_its_new_one(tmp_path: Path, run: Path) -> None:
    manifest(rows_with_overlap(), tmp_path / "m.parquet")
    asked = ["score", "--method", "ip", "m.parquet", "--checkpoint", run, "--no-store"]
    older = call_cli(*asked, "--allow-overlap", "-o", "a.parquet", cwd=tmp_path)
    newer = call_cli(*asked, "--overlap", "drop", "-o", "b.parquet", cwd=tmp_path)
    assert (older.code, newer.code) == (0, 0), older.err + newer.err
    assert "--overlap drop" in older.err
    assert "--allow-overlap" not in newer.err
    a, b = (pq.read_table(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    assert a.equals(b)
    assert "--allow-overlap" not in call_cli("score", "--method", "ip", "--help", cwd=tmp_path).text
    with pytest.raises(UsageError, match="--overlap keep keeps them"):
        Inputs("m.parquet", overlap="keep", allow_overlap=True)


def test_what_was_decided_goes_with_the_table(tmp_path: Path, run: Path) -> None:
    """A later stage asks again for nothing: by flag, key, variable and argument alike."""
    manifest(rows_with_overlap(), tmp_path / "m.parquet")
    for k, (flags, env) in enumerate([(["--overlap", "keep"], {}), ([], {"INFLUENCE_OVERLAP": "keep"}), ([], {})]):
        if k == 2:
            (tmp_path / "influence.toml").write_text('overlap = "keep"\n')
        asked = ["score", "--method", "ip", "m.parquet", "--checkpoint", run, *flags, "-o", f"s{k}.parquet"]
        ran = call_cli(*asked, cwd=tmp_path, env=env)
        assert ran.code == 0, ran.err
        origin = provenance(pq.read_schema(tmp_path / f"s{k}.parquet"))
        assert (origin["model_flags"]["overlap"], origin["target"]["rows"]) == ("keep", 40)
        assert "allow_overlap" not in str(origin)
        (tmp_path / "influence.toml").unlink(missing_ok=True)
    again = call_cli("score", "s0.parquet", "--method", "ip-ensemble", "-o", "t.parquet", cwd=tmp_path)
    assert again.code == 0, again.err
    lds = ["evaluate", "s0.parquet", "--lds", 3, "--optimizer", "lbfgs"]
    told = call_cli(*lds, "--format", "json", cwd=tmp_path)
    assert told.json["target_rows"] == 40, told.err
    table = influence_cli.score(tmp_path / "m.parquet", method="ip", checkpoint=run, overlap="keep", store=None)
    assert np.array_equal(column(table), column(pq.read_table(tmp_path / "s0.parquet")))


def test_rounds_of_trims_take_it_too(tmp_path: Path) -> None:
    manifest(rows_with_overlap(), tmp_path / "m.parquet")
    asked = ["retrain", "m.parquet", "--model", "linear", "--epochs", 2, "--rounds", 2, "--budget", "10%"]
    refused = call_cli(*asked, "-o", "a", cwd=tmp_path)
    assert (refused.code, "--overlap keep" in refused.err) == (2, True)
    assert call_cli(*asked, "--overlap", "keep", "-o", "b", cwd=tmp_path).code == 0


def test_another_word_is_refused(tmp_path: Path, run: Path) -> None:
    manifest(rows_with_overlap(), tmp_path / "m.parquet")
    ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", run, "--overlap", "kep", cwd=tmp_path)
    assert (ran.code, "did you mean 'keep'" in ran.err) == (2, True)

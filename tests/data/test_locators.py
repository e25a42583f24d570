"""A table finds its manifest, target and checkpoint wherever it is read: its paths count from its own folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import influence_cli
from influence_cli.data.locators import NOTE, origin_of
from influence_cli.data.tables import provenance, with_provenance
from tests.cases import call_cli, examples, feature_table, train_run, write


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """``project`` with data, target, run and a score table in folders of their own, scored from its top."""
    root = tmp_path / "project"
    rows = examples()
    write(feature_table([r for r in rows if r.split != "val"]), root / "data" / "m.parquet")
    write(feature_table([r for r in rows if r.split == "val"]), root / "data" / "val.parquet")
    train_run(root / "data" / "m.parquet", root / "run", "mlp:4")
    (root / "out").mkdir()
    asked = ["score", "data/m.parquet", "--target", "data/val.parquet", "--checkpoint", "run", "--method", "exact"]
    ran = call_cli(*asked, "--fit-rows", "data/m.parquet", "-o", "out/s.parquet", cwd=root)
    assert ran.code == 0, ran.err
    return root


def places(path: Path) -> dict[str, str]:
    """The paths in a table's provenance, as they are written."""
    origin = provenance(pq.read_schema(path))
    return {name: origin[name]["locator"] for name in ("manifest", "target", "fit_rows", "checkpoint")}


def test_paths_are_written_as_seen_from_the_table_and_none_becomes_absolute(project: Path) -> None:
    data = "../data/m.parquet"
    there = {"manifest": data, "target": "../data/val.parquet", "fit_rows": data, "checkpoint": "../run"}
    assert places(project / "out" / "s.parquet") == there
    curate = ["curate", "out/s.parquet", "--budget", "4", "-o", "clean.parquet", "--edits", "deep/er/e.parquet"]
    assert call_cli(*curate, cwd=project).code == 0
    assert places(project / "clean.parquet")["manifest"] == "data/m.parquet"
    assert places(project / "deep" / "er" / "e.parquet")["checkpoint"] == "../../run"
    assert str(project) not in str(provenance(pq.read_schema(project / "clean.parquet")))


def test_an_absolute_path_stays_as_it_was_given(project: Path) -> None:
    asked = ["score", project / "data" / "m.parquet", "--method", "random", "-o", "out/r.parquet"]
    assert call_cli(*asked, cwd=project).code == 0
    origin = provenance(pq.read_schema(project / "out" / "r.parquet"))
    assert origin["manifest"]["locator"] == str(project / "data" / "m.parquet")


@pytest.mark.parametrize(
    ("here", "absolute"), [(".", False), ("out", False), ("../elsewhere", False), ("../elsewhere", True)]
)
def test_every_stage_runs_from_any_folder(here: str, absolute: bool, project: Path) -> None:
    cwd = (project / here).resolve()
    cwd.mkdir(exist_ok=True)
    table = project / "out" / "s.parquet"
    named = table if absolute else Path(os.path.relpath(table, cwd))
    for asked in (
        ["curate", named, "--budget", "4", "--edits", "e.parquet", "-o", "c.parquet"],
        ["curate", "e.parquet", "--undo", "--manifest", "c.parquet", "-o", "back.parquet"],
        ["score", named, "--method", "exact", "-o", "again.parquet"],
        ["curate", named, "--write-baseline", "b.jsonl"],
        ["evaluate", named, "--budget", "4", "--format", "json"],
        ["evaluate", named, "--sentinel", "50%", "--checkpoint", project / "run"],
        ["evaluate", named, "--lds", "3", "-n"],
    ):
        ran = call_cli(*asked, "--isolated", *(["--store", "st"] if asked[0] != "curate" else []), cwd=cwd)
        assert ran.code == 0, ran.err
    assert pq.read_table(cwd / "again.parquet").equals(pq.read_table(table))


def test_a_project_may_be_moved_or_reached_through_links(project: Path, tmp_path: Path) -> None:
    moved = tmp_path / "somewhere" / "else"
    shutil.copytree(project, moved)
    shutil.rmtree(project)
    (tmp_path / "linked").symlink_to(moved / "out")
    for table in (moved / "out" / "s.parquet", tmp_path / "linked" / "s.parquet"):
        ran = call_cli("curate", table, "--budget", "4", cwd=tmp_path)
        assert ran.code == 0, ran.err


def test_python_finds_them_too(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = "project/out/s.parquet"
    assert influence_cli.curate(table, budget=4).num_rows == 4
    influence_cli.curate(table, budget=4, output="project/clean.parquet")
    assert places(Path("project/clean.parquet"))["manifest"] == "data/m.parquet"
    assert "order" in influence_cli.evaluate(table, store=None)


def older(project: Path) -> None:
    """The table as it was written before: its paths count from the folder of the command."""
    path = project / "out" / "s.parquet"
    table = pq.read_table(path)
    origin = {**origin_of(table.schema, None)}
    data = "data/m.parquet"
    there = {"manifest": data, "target": "data/val.parquet", "fit_rows": data, "checkpoint": "run"}
    for name, place in there.items():
        origin[name] = {**origin[name], "locator": place}
    assert NOTE not in origin
    pq.write_table(with_provenance(table, origin), path)


def test_an_older_table_is_read_from_where_it_was_made_and_beside_its_data(project: Path) -> None:
    older(project)
    assert call_cli("curate", "out/s.parquet", "--budget", "4", cwd=project).code == 0
    (project / "out" / "s.parquet").rename(project / "s.parquet")
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir()
    ran = call_cli("score", "--method", "ip", "../project/s.parquet", "-o", "t.parquet", cwd=elsewhere)
    assert ran.code == 0, ran.err


def test_where_both_folders_have_one_the_fingerprint_decides(project: Path) -> None:
    older(project)
    (project / "out" / "s.parquet").rename(project / "s.parquet")
    elsewhere = project.parent / "elsewhere"
    write(feature_table(examples(train=30)), elsewhere / "data" / "m.parquet")  # another project's
    ran = call_cli("curate", "../project/s.parquet", "--budget", "4", cwd=elsewhere)
    assert ran.code == 0, ran.err
    shutil.copytree(elsewhere / "data", project / "out" / "data")
    shutil.copy(project / "s.parquet", project / "out" / "s.parquet")
    ran = call_cli("curate", "out/s.parquet", "--budget", "4", cwd=project)
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("gone", "flag", "command"),
    [
        ("data/m.parquet", "--manifest", ["curate"]),
        ("data/m.parquet", "--manifest", ["score"]),
        ("data/m.parquet", "--manifest", ["evaluate"]),
        ("data/val.parquet", "--target", ["score"]),
        ("run", "--checkpoint", ["score"]),
        ("data/val.parquet", "--target", ["evaluate", "--lds", "3"]),
    ],
)
def test_what_is_gone_is_named_with_the_flag_that_says_where_it_is(
    gone: str, flag: str, command: list[str], project: Path
) -> None:
    (project / gone).rename(project / "moved")
    name, *flags = command
    ran = call_cli(name, "out/s.parquet", *flags, cwd=project)
    assert ran.code == 2, ran.err
    assert gone in ran.err
    assert f"pass {flag} PATH" in ran.err
    assert "out/s.parquet" in ran.err
    if command == ["curate"]:
        assert call_cli(name, "out/s.parquet", flag, "moved", cwd=project).code == 0


def test_a_table_in_a_pipe_keeps_its_paths_as_they_were_given(project: Path) -> None:
    ran = call_cli("score", "data/m.parquet", "--method", "random", "-o", "-", cwd=project)
    origin = provenance(ran.table.schema)
    assert origin["manifest"]["locator"] == "data/m.parquet"
    assert NOTE not in origin

"""Every column that a table has is described, in the guide and in the help of the command that writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.columns import (
    ADDED,
    BASELINE,
    EDITS,
    FLAGGED,
    GRADS,
    OF_COMMAND,
    PER_TARGET,
    SCORE,
    TABLES,
    pattern_of,
)
from influence_cli.data.earlier import _EDITS
from influence_cli.data.formulas import MARK
from tests.cases import call_cli, train_run
from tests.generate_docs import GUIDE


def of_no_classes(folder: Path) -> None:
    """Score tables of a number to be predicted, and of two labels a row."""
    lines = [f"{k % 7},{k % 5},{k % 7 + 0.5 * (k % 3)},{k % 2},{int(k % 5 > 2)}" for k in range(60)]
    (folder / "rows.csv").write_text("\n".join(["a,b,y,u,v", *lines]) + "\n")
    number = ["--label", "y", "--task", "regression", "--drop-column", "u", "--drop-column", "v"]
    several = ["--label", "u", "--label", "v", "--task", "multi-label", "--drop-column", "y"]
    for name, labels in (("number", number), ("labels", several)):
        for asked in (
            ["manifest", "rows.csv", *labels, "-o", f"{name}-rows.parquet"],
            ["retrain", f"{name}-rows.parquet", "--model", "linear", "--optimizer", "lbfgs", "-o", f"{name}-run"],
            ["score", "--method", "ip", f"{name}-rows.parquet", "--checkpoint", f"{name}-run", "-o", f"{name}.parquet"],
        ):
            ran = call_cli(*asked, cwd=folder)
            assert ran.code == 0, ran.err


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, tabular: Path) -> dict[str, pa.Table]:
    """A table of every kind, with every column that an option adds."""
    folder = tmp_path_factory.mktemp("columns")
    train_run(tabular, folder / "run", "mlp:4", calibration=0.2)
    score = ["score", tabular, "--checkpoint", "run"]
    for asked in (
        ["grads", "--method", "ip", tabular, "--checkpoint", "run", "-o", "grads.parquet"],
        [*score, "--method", "loss", "-o", "loss.parquet"],
        [*score, "--method", "ip-ensemble", "--method", "exact", "--method", "random", "--objective", "utility",
         "--objective", "robustness", "--combine", "ranksum", "--per-member", "-o", "several.parquet"],
        [*score, "--method", "exact", "-o", "exact.parquet"],
        [*score, "--method", "ip-ensemble", "-o", "members.parquet"],
        [*score, "--method", "knn", "--set", "knn.k=5", "--method", "outlier", "-o", "neighbours.parquet"],
        [*score, "--per-target", "--rows", "sketch", "--sketch-dim", "8", "-o", "pairs.parquet"],
        ["curate", "loss.parquet", "--action", "relabel", "--budget", "9", "--edits", "edits.parquet",
         "-o", "relabelled.parquet"],
        ["curate", "exact.parquet", "--action", "reweight", "-o", "weighted.parquet"],
        ["curate", "loss.parquet", "--write-baseline", "baseline.jsonl"],
    ):  # fmt: skip
        ran = call_cli(*asked, cwd=folder)
        assert ran.code == 0, ran.err
    of_no_classes(folder)
    found = {path.stem: pq.read_table(path) for path in folder.glob("*.parquet")}
    gate = ["curate", "loss.parquet", "--check", "--false-flag", "30%", "--format", "json"]
    found["flagged"] = pa.Table.from_pylist(call_cli(*gate, cwd=folder).json["rows"])
    lines = [json.loads(line) for line in (folder / "baseline.jsonl").read_text().splitlines()]
    found["baseline"] = pa.Table.from_pylist([{**lines[-1], **line} for line in lines])  # the last has others
    return found


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("grads", GRADS),
        ("loss", SCORE),
        ("several", SCORE),
        ("exact", SCORE),
        ("members", SCORE),
        ("neighbours", SCORE),
        ("number", SCORE),
        ("labels", SCORE),
        ("pairs", PER_TARGET),
        ("edits", EDITS),
        ("flagged", FLAGGED),
        ("baseline", BASELINE),
    ],
)
def test_every_column_is_described(name: str, columns: dict[str, str], tables: dict[str, pa.Table]) -> None:
    pattern = pattern_of(columns)
    assert [n for n in tables[name].column_names if not pattern.fullmatch(n)] == []


def test_no_column_is_described_that_no_table_has(tables: dict[str, pa.Table]) -> None:
    shown = ("loss", "several", "exact", "members", "neighbours", "number", "labels")
    there = {n for name in shown for n in tables[name].column_names}
    assert [n for n in SCORE if n != "canary" and not any(pattern_of({n: ""}).fullmatch(t) for t in there)] == []
    assert set(GRADS) == set(tables["grads"].column_names)
    assert set(PER_TARGET) == set(tables["pairs"].column_names)
    assert tuple(EDITS) == _EDITS
    added = {*tables["relabelled"].column_names, *tables["weighted"].column_names} | {MARK}
    assert set(ADDED) <= added


def test_model_label_is_what_the_model_says_and_other_label_is_not_the_rows_own(tables: dict[str, pa.Table]) -> None:
    rows = tables["loss"].to_pylist()
    assert 0 < sum(r["model_label"] == r["label"] for r in rows) < len(rows)
    assert all(r["other_label"] != r["label"] for r in rows)
    for r in rows:
        assert (r["margin"] < 0) == (r["model_label"] != r["label"])
        own = r["model_label"] == r["label"]
        assert own or (r["model_label"], r["model_probability"]) == (r["other_label"], r["other_probability"])
        assert r["model_probability"] >= r["other_probability"]


def test_a_table_of_before_is_still_curated_as_it_was(tmp_path: Path, tabular: Path, tabular_run: Path) -> None:
    """It called the most probable other label ``model_label``."""
    asked = ["score", tabular, "--checkpoint", tabular_run, "--method", "loss", "-o", "new.parquet"]
    assert call_cli(*asked, cwd=tmp_path).code == 0
    table = pq.read_table(tmp_path / "new.parquet")
    older = table.drop_columns(["model_label", "model_probability"])
    names = {"other_label": "model_label", "other_probability": "model_probability"}
    older = older.rename_columns([names.get(n, n) for n in older.column_names])
    pq.write_table(older.replace_schema_metadata(table.schema.metadata), tmp_path / "old.parquet")
    relabel = ["--action", "relabel", "--budget", "9", "--set", "relabel.min_probability=0.1"]
    new, old = (call_cli("curate", name, *relabel, cwd=tmp_path).rows for name in ("new.parquet", "old.parquet"))
    assert new == old
    assert len(new) > 0


def test_help_and_guide_describe_every_column(tmp_path: Path) -> None:
    guide = (GUIDE / "tables.md").read_text()
    for columns in TABLES.values():
        assert all(f"| `{name}` | {text} |" in guide for name, text in columns.items())
    for command, sections in OF_COMMAND.items():
        said = "".join(call_cli(command, "--help", cwd=tmp_path).text.split())
        for heading, columns in sections.items():
            assert f"{heading}:".replace(" ", "") in said
            assert all(f"{name}{text}".replace(" ", "") in said for name, text in columns.items())

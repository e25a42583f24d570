"""Texts that a spreadsheet would run: quoted in every CSV, counted, and read back as they were."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.formulas import MARK, as_meant, quoted, runs, unquoted
from influence_cli.data.tables import read_table
from influence_cli.data.write_tables import as_csv
from influence_cli.stages.evaluate.truth import read_ids
from tests.cases import Ran, call_cli, examples, feature_table, with_column, write

ODD = ['=HYPERLINK("http://x")', "'=twice", "''=thrice", "+1+1", "-2+3", "@sum", "\ttab", "\rreturn", "＝wide", "-0.5"]
RUN = 7 + 1  # of them: all but those with quotes before, and the number


def done(*asked: object, cwd: Path) -> Ran:
    ran = call_cli(*asked, cwd=cwd)
    assert ran.code == 0, ran.err
    return ran


def test_quoting_is_undone_whatever_the_text_and_numbers_stay() -> None:
    texts = [q + t for q in ("", "'", "''") for t in (*ODD, "plain", "", "'", "-", "1e5", "+inf", "-.5e-3", "-1_000")]
    assert [unquoted(quoted(t)) for t in texts] == texts
    assert not any(runs(quoted(t)) for t in texts)
    assert len({quoted(t) for t in texts}) == len(set(texts))
    assert [t for t in ODD if quoted(t) == t] == ["-0.5"]
    assert sum(map(runs, ODD)) == RUN - 1


def test_a_table_in_csv_runs_nothing_and_is_read_as_it_was(tmp_path: Path) -> None:
    table = pa.table({"id": ODD, "=head": ["x"] * len(ODD), "score": [-0.5] * len(ODD)})
    (tmp_path / "s.csv").write_bytes(as_csv(table))
    with open(tmp_path / "s.csv", newline="") as handle:
        header, *rows = csv.reader(handle)
    assert header == ["id", "'=head", "score", MARK]
    assert [r[0] for r in rows] == [quoted(t) for t in ODD]
    assert {r[2] for r in rows} == {"-0.5"}
    assert [r[3] for r in rows] == ["1"] * (len(ODD) - 1) + ["0"]
    assert read_table(tmp_path / "s.csv").equals(table)
    assert read_ids(str(tmp_path / "s.csv")) == set(ODD)


def test_a_table_without_formulas_has_no_mark_and_is_not_changed(tmp_path: Path) -> None:
    table = pa.table({"id": ["'=twice", "a", "-1"], "score": [1.0, -2.0, 3.0]})
    assert as_csv(table) == b'"id","score"\n"\'=twice",1\n"a",-2\n"-1",3\n'
    (tmp_path / "s.csv").write_bytes(as_csv(table))
    assert as_meant(tmp_path / "s.csv") == tmp_path / "s.csv"
    assert read_table(tmp_path / "s.csv").column("id").to_pylist() == ["'=twice", "a", "-1"]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with a manifest whose first train ids are odd, and its scores as CSV."""
    table = feature_table(examples())
    ids = ODD + table.column("id").to_pylist()[len(ODD) :]
    write(with_column(table, "id", ids), tmp_path / "m.parquet")
    return tmp_path


def test_scores_and_edits_in_csv_find_their_rows_again(odd: Path) -> None:
    ran = done("score", "m.parquet", "--method", "random", "-o", "s.csv", cwd=odd)
    assert f"{RUN - 1} texts that a spreadsheet would run" in ran.err
    assert '"=HYP' not in (odd / "s.csv").read_text()
    done("score", "m.parquet", "--method", "random", "-o", "s.csv", cwd=odd)  # it is known as an earlier output
    flags = ["--action", "reweight", "--manifest", "m.parquet"]
    ran = done("curate", "s.csv", *flags, "-o", "c.parquet", "--edits", "e.csv", cwd=odd)
    assert ran.err.count("texts that a spreadsheet would run") == 1
    assert pq.read_table(odd / "c.parquet").column("id").to_pylist()[: len(ODD)] == ODD
    done("curate", "e.csv", "--undo", "--manifest", "c.parquet", "-o", "r.parquet", cwd=odd)
    assert (
        pq.read_table(odd / "r.parquet")
        .select(["id", "features", "label"])
        .equals(pq.read_table(odd / "m.parquet").select(["id", "features", "label"]))
    )
    shown = done("score", "m.parquet", "--method", "random", "--format", "csv", cwd=odd)
    assert shown.out == (odd / "s.csv").read_bytes()
    assert "texts that a spreadsheet would run" in shown.err
    quiet = done("score", "m.parquet", "--method", "random", "-o", "s.jsonl", cwd=odd)
    assert "spreadsheet" not in quiet.err


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_an_export_from_the_manifest_is_read_as_it_was(suffix: str, odd: Path) -> None:
    table = pq.read_table(odd / "m.parquet").replace_schema_metadata({"classes": '["=a", "-1", "\'=c"]'})
    write(with_column(table, "@note", ["=x"] * table.num_rows), odd / "m.parquet")
    done("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=odd)
    export = ["--export", f"out.{suffix}", "--export-as", "csv"]
    ran = done("curate", "s.parquet", "--budget", "0", *export, cwd=odd)
    labels = [("=a", "-1", "'=c")[k] for k in table.column("label").to_pylist()]
    count = 7 + labels.count("=a") + table.num_rows + 1  # ids, class names, notes and their header
    assert f"{count} texts that a spreadsheet would run" in ran.err
    with open(odd / f"out.{suffix}", newline="") as handle:
        rows = list(csv.reader(handle, delimiter="\t" if suffix == "tsv" else ","))
    assert not any(runs(v) for row in rows for v in row)
    assert MARK in rows[0]
    done("manifest", f"out.{suffix}", "-o", "again.parquet", cwd=odd)
    again = pq.read_table(odd / "again.parquet")
    assert again.column("id").to_pylist() == table.column("id").to_pylist()
    assert again.column("features").to_pylist() == table.column("features").to_pylist()  # the mark is no feature
    names = ["'=c", "-1", "=a"]
    assert [names[k] for k in again.column("label").to_pylist()] == labels


def test_an_export_of_a_source_is_read_as_it_was_and_stays_when_it_is_exported_again(tmp_path: Path) -> None:
    lines = ['id,a,label,"@note, of ours"']
    ids = ["=1+1", "'=real", '"=HYPERLINK(""x"")"', "-2+3", "k4", "k5"]
    lines += [f"{i},-{k},{('=no', 'yes')[k % 2]},-{k}.5" for k, i in enumerate(ids)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    done("manifest", "rows.csv", "-o", "m.parquet", "--split", "100/0/0", cwd=tmp_path)
    first = pq.read_table(tmp_path / "m.parquet")
    assert first.column("id").to_pylist()[:3] == ["=1+1", "'=real", '=HYPERLINK("x")']  # a foreign file: as it is
    trim = ["--budget", "0", "--export"]
    for name, before in (("one.csv", "m.parquet"), ("two.csv", "one.parquet")):
        done("score", before, "--method", "random", "-o", f"s-{before}", cwd=tmp_path)
        ran = done("curate", f"s-{before}", *trim, name, cwd=tmp_path)
        assert "7 texts that a spreadsheet would run" in ran.err  # three ids, three labels, a header
        split = ["--split", "100/0/0", "-o", f"{name.partition('.')[0]}.parquet"]
        done("manifest", name, *split, cwd=tmp_path)
        again = pq.read_table(tmp_path / split[-1])
        assert again.select(["id", "features", "label"]).equals(first.select(["id", "features", "label"]))
    text = (tmp_path / "one.csv").read_text().splitlines()
    assert text[0] == f"""id,a,label,"'@note, of ours",{MARK}"""
    assert text[1:3] == ["'=1+1,-0,'=no,-0.5,2", "''=real,-1,yes,-1.5,1"]
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()

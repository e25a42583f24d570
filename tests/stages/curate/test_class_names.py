"""Classes and groups are called by their names wherever people read; class numbers stay in tables for scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.report.gate.github import command
from tests.cases import call_cli, examples, feature_table, with_column, write

NAMES = ("cat", "dog", "snow owl")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest whose classes have names, two groups, a run and two score tables."""
    folder = tmp_path_factory.mktemp("names")
    rows = examples(train=90, val=90)
    table = feature_table(rows, region=pa.array([("north", "south")[k % 2] for k in range(len(rows))]))
    write(table.replace_schema_metadata({"classes": json.dumps(NAMES)}), folder / "m.parquet")
    train = ["retrain", "m.parquet", "--model", "mlp:4", "--epochs", 6, "--calibration", "30%", "-o", "run"]
    assert call_cli(*train, cwd=folder).code == 0
    score = ["score", "m.parquet", "--checkpoint", "run"]
    for flags in (["--method", "loss", "-o", "loss.parquet"], ["--method", "ip", "-o", "ip.parquet"]):
        ran = call_cli(*score, *flags, cwd=folder)
        assert ran.code == 0, ran.err
    return folder


@pytest.mark.parametrize(("table", "said"), [("loss.parquet", "model gives"), ("ip.parquet", "with label")])
def test_reasons_and_notes_name_the_class(table: str, said: str, place: Path) -> None:
    asked = ["curate", table, "--action", "relabel", "--budget", 12, "--set", "relabel.min_probability=0.2"]
    ran = call_cli(*asked, cwd=place)
    assert ran.rows
    for row in ran.rows:
        assert f"{said} {NAMES[row['label']]}" in row["reason"]
        assert isinstance(row["label_was"], int)
    edited = next(line for line in ran.err.splitlines() if "edited by class" in line)
    assert edited.split(": ", 1)[1].startswith("cat: ")
    assert "; snow owl: " in edited
    drift = next(line for line in ran.err.splitlines() if "largest change" in line)
    assert any(f"class {name} from" in drift for name in NAMES)


@pytest.mark.parametrize(
    "asked",
    [
        ["score", "m.parquet", "--checkpoint", "run", "--method", "ip"],
        ["score", "m.parquet", "--checkpoint", "run", "--method", "ip", "--per-target"],
        ["grads", "m.parquet", "--checkpoint", "run", "--method", "ip"],
        ["curate", "ip.parquet", "--budget", "5"],
        ["curate", "loss.parquet", "--action", "relabel", "--budget", "5"],
        ["curate", "loss.parquet", "--check", "--false-flag", "30%"],
    ],
    ids=lambda asked: " ".join(asked[:2] + asked[-2:]),
)
def test_tables_for_people_have_names_and_those_for_scripts_numbers(asked: list[str], place: Path) -> None:
    shown = call_cli(*asked, "--format", "table", cwd=place).text
    assert any(name in shown for name in NAMES)
    title, header, first = shown.splitlines()[:3]
    start = header.index("label") if "target_label" not in header else header.index("target_label")
    assert not first[start - 3 : start + 12].strip().isdigit(), (title, header, first)
    rows = call_cli(*asked, "--format", "json", cwd=place).json["rows"]
    assert {type(row["label"]) for row in rows} == {int}


def test_messages_of_the_gate_name_the_class_and_read_as_they_are(place: Path) -> None:
    odd = place / "a,b:c%.parquet"
    odd.write_bytes((place / "m.parquet").read_bytes())
    gate = ["curate", "loss.parquet", "--check", "--false-flag", "30%", "--manifest", odd.name]
    ran = call_cli(*gate, "--format", "github", cwd=place)
    lines = ran.text.splitlines()
    rows = call_cli(*gate, "--format", "json", cwd=place).json["rows"]
    assert len(lines) == len(rows) + 1
    for line, row in zip(lines, rows, strict=False):
        label = f"row {row['id']} (label {NAMES[row['label']]}): score "
        assert line.startswith(f"::warning file=a%2Cb%3Ac%25.parquet,title=influence::{label}")
        assert ", p-value " in line
        assert "%2C" not in line.split("::", 2)[2]
    assert lines[-1].startswith("::error title=influence::gate tripped: ")


@pytest.mark.parametrize(
    ("message", "written"),
    [
        ("a: b, c; d", "a: b, c; d"),
        ("90% of it", "90%25 of it"),
        ("two\r\nlines", "two%0D%0Alines"),
        ("%3A stays what it is", "%253A stays what it is"),
        ("::error::no command", "::error::no command"),
    ],
)
def test_a_message_is_escaped_as_github_reads_it(message: str, written: str) -> None:
    assert command("warning", message, title="a:b,c") == f"::warning title=a%3Ab%2Cc::{written}\n"


def test_terms_and_cells_of_groups_name_the_class(place: Path) -> None:
    asked = ["score", "m.parquet", "--checkpoint", "run", "--group", "region", "--no-store"]
    for objective, terms in (
        ("fairness", ["class cat: D", "class dog: D", "class snow owl: D"]),
        ("equalised-odds", ["class cat, label cat: D", "class cat, label not cat: D"]),
    ):
        ran = call_cli(*asked, "--objective", objective, "-o", f"{objective}.parquet", cwd=place)
        assert ran.code == 0, ran.err
        origin = json.loads(pq.read_schema(place / f"{objective}.parquet").metadata[b"influence"])
        named = [term["term"] for term in origin["noise"][objective]["parts"]["terms"]]
        assert set(t.removesuffix(": D") for t in terms) <= set(named)
        assert sum(f"  {t}" in ran.err for t in terms) >= 1
        assert not any(f"class {k}" in ran.err or f"label {k}" in ran.err for k in range(3))
    assert "label snow owl) " in ran.err, "a small cell is named so"


def test_a_minority_is_named(place: Path) -> None:
    table = pq.read_table(place / "loss.parquet")
    labels = table.column("label").to_pylist()
    least = min(range(3), key=labels.count)
    write(with_column(table, "score", [float(y != least) for y in labels]), place / "low.parquet")
    ran = call_cli("curate", "low.parquet", "--budget", 5, "--set", "guard=false", cwd=place)
    share = labels.count(least) / len(labels)
    assert (f"of the edits are of class {NAMES[least]}, a minority" in ran.err) is (share < 0.25)


def test_classes_without_names_keep_their_numbers(tmp_path: Path, place: Path) -> None:
    write(pq.read_table(place / "m.parquet").replace_schema_metadata(None), tmp_path / "m.parquet")
    ran = call_cli("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    told = call_cli("curate", "s.parquet", "--budget", 5, "--format", "table", cwd=tmp_path)
    assert "edited by class: 0: " in told.err

"""The gate's other rules and limits: false discovery rates, slices, a manifest to compare with; and what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from influence_cli.cli.commands.guide import SCHEMAS
from tests.cases import Ran, call_cli, digits_table, train_run, with_column, write


def gate(*asked: Any, cwd: Path, env: dict[str, str] | None = None) -> Ran:
    """``influence curate --check``."""
    return call_cli("curate", "scores.parquet", "--false-flag", "30%", *asked, "--check", cwd=cwd, env=env)


@pytest.fixture(scope="module")
def branch(tmp_path_factory: pytest.TempPathFactory, digits: Path, calibrated_run: Path) -> Path:
    """A folder with ``main.parquet`` and scores of a branch with 20 rows more, 10 of them wrong, from two sources."""
    folder = tmp_path_factory.mktemp("branch")
    table = with_column(pq.read_table(digits), "source", pa.array(["old"] * 320))
    write(table, folder / "main.parquet")
    more = digits_table(train=340, val=0, test=0, flipped=0.0).slice(320)
    labels = [(v + 3) % 10 if k < 10 else v for k, v in enumerate(more.column("label").to_pylist())]
    sources = ["web"] * 6 + [None] * 4 + ["lab"] * 10
    new = with_column(with_column(more, "label", pa.array(labels, pa.int64())), "source", pa.array(sources))
    write(pa.concat_tables([table, new]), folder / "branch.parquet")
    asked = ["--checkpoint", calibrated_run, "--method", "loss", "--store", "memo"]
    ran = call_cli("score", "branch.parquet", *asked, "-o", "scores.parquet", cwd=folder)
    assert ran.code == 0, ran.err
    return folder


AGAINST = ["--against", "main.parquet"]


def test_only_rows_that_are_not_in_the_manifest_are_judged(branch: Path) -> None:
    ran = gate(*AGAINST, "--max-flagged", "100%", cwd=branch)
    assert "of 20 new rows flagged" in ran.err
    assert {int(r["id"][1:]) for r in ran.rows} <= set(range(320, 340))
    assert "not looked at" not in ran.err, "val and test rows are those of main"
    assert gate("--against", "branch.parquet", cwd=branch).err.startswith("gate clean: 0 of 0 new rows")


def test_a_manifest_whose_classes_have_another_order_holds_the_same_rows(branch: Path, tmp_path: Path) -> None:
    table = pq.read_table(branch / "main.parquet")
    names = json.loads(table.schema.metadata[b"classes"])
    turned = with_column(table, "label", pa.array([9 - v for v in table.column("label").to_pylist()], pa.int64()))
    write(turned.replace_schema_metadata({"classes": json.dumps(names[::-1])}), tmp_path / "turned.parquet")
    ran = gate("--against", tmp_path / "turned.parquet", "--max-flagged", "100%", cwd=branch)
    assert "of 20 new rows flagged" in ran.err


def test_a_baseline_and_a_manifest_accept_rows_together(branch: Path) -> None:
    first = gate(*AGAINST, "--max-flagged", "100%", cwd=branch).rows[0]
    line = json.dumps({"id": first["id"], "row_key": first["row_key"]})
    (branch / "one.jsonl").write_text(line + "\n")
    assert "of 19 new rows flagged" in gate(*AGAINST, "--baseline", "one.jsonl", cwd=branch).err


def test_without_calibration_rows_those_of_the_manifest_stand_in(
    branch: Path, digits_run: Path, tmp_path: Path
) -> None:
    asked = ["score", branch / "branch.parquet", "--checkpoint", digits_run, "--method", "loss", "--allow-overlap"]
    assert call_cli(*asked, "-o", "scores.parquet", cwd=tmp_path).code == 0
    found = gate("--against", branch / "main.parquet", "--max-flagged", "100%", "--json", cwd=tmp_path).json
    assert (found["rule"]["rate_known"], found["rule"]["compared_with"], found["clean_trips"]) == (False, 200, None)
    assert "the rate of false flags is unknown" in found["sentence"]


# ---- a false discovery rate ---------------------------------------------------------------------------------------


def test_a_false_discovery_rate_flags_by_benjamini_hochberg(branch: Path, calibrated_run: Path) -> None:
    rows = pq.read_table(branch / "scores.parquet").to_pylist()
    out = set(json.loads((calibrated_run / "run.json").read_text())["calibration_ids"])
    reference = np.array([r["score"] for r in rows if r["id"] in out])
    new = [r for r in rows if int(r["id"][1:]) >= 320]
    p = np.array([(1 + np.sum(reference <= r["score"])) / (1 + len(reference)) for r in new])
    for rate in (0.3, 0.6):
        expected = {r["id"] for r, q in zip(new, stats.false_discovery_control(p), strict=True) if q <= rate + 1e-12}
        asked = ["curate", "scores.parquet", "--check", "--fdr", f"{100 * rate:g}%", *AGAINST, "--format", "json"]
        found = call_cli(*asked, cwd=branch).json
        assert {r["id"] for r in found["rows"]} == expected
        assert (found["rule"]["by"], found["rule"]["value"]) == ("fdr", pytest.approx(rate))
    assert expected
    assert "on average at most 60% of the flagged rows are clean" in found["sentence"]


def test_a_false_discovery_rate_says_how_many_rows_it_takes_to_flag_one(branch: Path) -> None:
    ran = call_cli("curate", "scores.parquet", "--check", "--fdr", "5%", *AGAINST, cwd=branch)
    assert "none of 20 new rows is flagged unless at least" in ran.err
    assert "takes 399" in ran.err  # 20 / 5 % - 1
    few = call_cli("curate", "scores.parquet", "--check", "--fdr", "0.5%", *AGAINST, cwd=branch)
    assert (few.code, "--fdr" in few.err) == (2, True)
    both = gate(*AGAINST, "--fdr", "5%", cwd=branch)
    assert (both.code, "two rates" in both.err) == (2, True)


def test_the_gate_says_how_often_clean_rows_would_trip_it(branch: Path) -> None:
    found = gate(*AGAINST, "--format", "json", cwd=branch).json
    count = found["rule"]["compared_with"]
    k = int(0.3 * (count + 1))
    assert found["clean_trips"] == pytest.approx(stats.betabinom(20, k, count + 1 - k).sf(0))
    least = next(a for a in range(21) if stats.betabinom(20, k, count + 1 - k).sf(a) <= 0.05)
    assert any(f"--max-flagged {least} makes that at most 5%" in note for note in found["notes"])
    assert not any(
        "would trip" in note for note in gate(*AGAINST, "--max-flagged", least, "--json", cwd=branch).json["notes"]
    )


# ---- limits by slice ----------------------------------------------------------------------------------------------


def test_slices_have_limits_of_their_own(branch: Path) -> None:
    rows = {r["id"] for r in gate(*AGAINST, cwd=branch).rows}
    source = dict(
        zip(*pq.read_table(branch / "branch.parquet", columns=["id", "source"]).to_pydict().values(), strict=True)
    )
    flagged = {s: sum(source[i] == s for i in rows) for s in ("web", "lab", None)}
    assert flagged["web"] >= 3
    ran = gate(*AGAINST, "--max-flagged-per", "source=50%", "--format", "json", cwd=branch)
    found = {part["value"]: part for part in ran.json["slices"]}
    assert {v: (p["rows"], p["flagged"], p["allowed"]) for v, p in found.items()} == {
        "web": (6, flagged["web"], 3),
        "lab": (10, flagged["lab"], 5),
        "(none)": (4, flagged[None], 2),
    }
    over = [v for v, p in found.items() if p["flagged"] > p["allowed"]]
    assert (ran.code, ran.json["allowed"]) == (1 if over else 0, None)
    assert f"source=web: {flagged['web']} of 6 new rows flagged, 3 allowed" in ran.err
    none = gate(*AGAINST, "--max-flagged-per", "source=0", cwd=branch)
    assert none.code == 1
    assert "; source=web: " in none.err.splitlines()[0]
    most = max(flagged.values())
    assert gate(*AGAINST, "--max-flagged-per", f"source={most}", cwd=branch).code == 0, "more than a slice has is all"
    whole = gate(*AGAINST, "--max-flagged-per", f"source={most}", "--max-flagged", "1", cwd=branch)
    assert whole.code == 1, "the limit on all rows holds beside"


def test_slices_of_the_label_are_called_by_their_class(branch: Path) -> None:
    parts = gate(
        *AGAINST, "--max-flagged-per", "label=100%", "--max-flagged-per", "source=100%", "--json", cwd=branch
    ).json
    labels = [part for part in parts["slices"] if part["column"] == "label"]
    assert all(part["value"].startswith("class ") for part in labels)
    assert sum(part["rows"] for part in labels) == 20
    assert sum(part["flagged"] for part in labels) == len(parts["rows"])


@pytest.mark.parametrize(
    ("limit", "what"),
    [
        ("source", "no column with a limit"),
        ("source1=2%", "did you mean 'source'?"),
        ("source=two", "neither a share nor a count"),
        ("source=200%", "outside 0 to"),
    ],
)
def test_a_limit_that_cannot_be_read_exits_2(limit: str, what: str, branch: Path) -> None:
    ran = gate(*AGAINST, "--max-flagged-per", limit, cwd=branch)
    assert (ran.code, what in ran.err) == (2, True), ran.err
    twice = gate(*AGAINST, "--max-flagged-per", "source=1", "--max-flagged-per", "source=2", cwd=branch)
    assert (twice.code, "twice" in twice.err) == (2, True)


# ---- what a trip says ---------------------------------------------------------------------------------------------


def test_writing_a_baseline_says_which_rates_can_be_told(
    branch: Path, digits: Path, digits_run: Path, tmp_path: Path
) -> None:
    ran = call_cli("curate", "scores.parquet", "--write-baseline", "b.jsonl", cwd=branch)
    count = gate(*AGAINST, "--json", cwd=branch).json["rule"]["compared_with"]
    least = next(
        float(line.split("--false-flag of ")[1].split("%")[0]) for line in ran.err.splitlines() if "tell" in line
    )
    assert f"{count} calibration rows" in ran.err
    assert 1 / (count + 1) <= least / 100 <= 1.1 / (count + 1)
    asked = ["curate", "scores.parquet", "--check", *AGAINST, "--false-flag"]
    assert call_cli(*asked, f"{least}%", cwd=branch).code in (0, 1)
    assert call_cli(*asked, f"{0.8 * least}%", cwd=branch).code == 2
    (branch / "b.jsonl").unlink()
    score = ["score", digits, "--checkpoint", digits_run, "--method", "loss", "-o", "s.parquet"]
    assert call_cli(*score, cwd=tmp_path).code == 0
    ran = call_cli("curate", "s.parquet", "--write-baseline", "b.jsonl", cwd=tmp_path)
    assert ran.code == 0
    assert "warning: no calibration row of the run has a score" in ran.err


@pytest.fixture(scope="module")
def csv_branch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scores of a manifest that was made from a CSV, and a baseline of all but its last four rows."""
    here = tmp_path_factory.mktemp("csv")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 2)).round(3)
    labels = np.where(x[:, 0] > 0, "yes", "no")
    labels[86:] = np.where(x[86:, 0] > 0, "no", "yes")
    split = ["train"] * 60 + ["val"] * 10 + ["test"] * 10 + ["train"] * 10
    lines = [f"r{k},{a},{b},{label},{s}\n" for k, ((a, b), label, s) in enumerate(zip(x, labels, split, strict=True))]
    (here / "rows.csv").write_text("id,a,b,label,split\n" + "".join(lines))
    assert call_cli("manifest", "rows.csv", "-o", "rows.parquet", cwd=here).code == 0
    table = pq.read_table(here / "rows.parquet")
    write(table.slice(0, 86), here / "main.parquet")
    train_run(here / "main.parquet", here / "RUN", model="linear", calibration=0.4)
    ran = call_cli("score", "rows.parquet", "--checkpoint", "RUN", "--method", "loss", "-o", "scores.parquet", cwd=here)
    assert ran.code == 0, ran.err
    return here


def test_a_trip_names_rows_their_lines_labels_and_what_to_do(csv_branch: Path) -> None:
    ran = gate(*AGAINST, "--format", "json", cwd=csv_branch)
    assert ran.code == 1, ran.err
    found = ran.json
    schema = json.loads(call_cli("guide", SCHEMAS[0], cwd=csv_branch).text)
    jsonschema.validate(found, schema)
    lines = (csv_branch / "rows.csv").read_text().splitlines()
    assert found["rows"]
    for row in found["rows"]:
        assert (row["file"], lines[row["line"] - 1].split(",")[0]) == ("rows.csv", row["id"])
        assert found["classes"][row["proposed_label"]] != lines[row["line"] - 1].split(",")[3]
        assert row["proposed_probability"] > 0.5
    first = found["rows"][0]
    assert f"rows.csv:{first['line']}: row {first['id']} (label " in ran.err
    assert "0 allowed" in ran.err
    fix, accept = found["next"][-2:]
    assert "in rows.csv, make the manifest again" in fix["what"]
    for step in found["next"]:
        assert f"{step['what']}: {step['command']}" in ran.err
    assert call_cli(*accept["command"].split()[1:], cwd=csv_branch).code == 0
    again = gate(*AGAINST, "--baseline", ".influence-baseline.jsonl", cwd=csv_branch)
    assert (again.code, again.out) == (0, b"")
    wrong = {row["line"]: row["id"] for row in found["rows"]}
    fixed = [text for number, text in enumerate(lines, 1) if number not in wrong]
    (csv_branch / "rows.csv").write_text("\n".join(fixed) + "\n")
    assert call_cli("manifest", "rows.csv", "-o", "rows.parquet", cwd=csv_branch).code == 0
    ran = call_cli(*fix["command"].split()[1:], cwd=csv_branch)
    assert ran.code == 0, ran.err
    asked = ["scores-fixed.parquet", "--check", "--false-flag", "30%", *AGAINST]
    assert call_cli("curate", *asked, cwd=csv_branch).code == 0
    (csv_branch / "rows.csv").write_text("\n".join(lines) + "\n")
    assert call_cli("manifest", "rows.csv", "-o", "rows.parquet", cwd=csv_branch).code == 0


def test_a_gate_away_from_the_run_says_that_its_calibration_rows_are_not_known(
    csv_branch: Path, tmp_path: Path
) -> None:
    for name in ("rows.parquet", "main.parquet", "scores.parquet"):
        shutil.copy(csv_branch / name, tmp_path / name)
    lost = "RUN, which was scored, is not there, and so its calibration rows are not known"
    assert f"the rate of false flags is unknown: {lost}" in gate(*AGAINST, cwd=tmp_path).err
    alone = gate(cwd=tmp_path)
    assert alone.code == 2
    assert lost in alone.err
    assert "fix: run the gate where RUN is" in alone.err


def test_an_id_that_cannot_be_pasted_is_in_no_command(csv_branch: Path, tmp_path: Path) -> None:
    shutil.copytree(csv_branch, tmp_path, dirs_exist_ok=True)
    for name in ("rows.parquet", "scores.parquet"):
        table = pq.read_table(tmp_path / name)
        ids = [{"r88": "r\n88", "r89": "--help"}.get(i, i) for i in table.column("id").to_pylist()]
        write(with_column(table, "id", pa.array(ids)), tmp_path / name)
    ran = gate(*AGAINST, "--manifest", "rows.parquet", "--format", "json", cwd=tmp_path)
    assert ran.code == 1, ran.err
    assert "r\n88" in {row["id"] for row in ran.json["rows"]}
    assert all("88" not in step["command"] and "--help" not in step["command"] for step in ran.json["next"])


@pytest.mark.parametrize("form", ["github", "junit", "sarif", "gitlab", "table"])
def test_the_forms_name_the_line_and_the_verdict_decides_the_exit(form: str, csv_branch: Path) -> None:
    row = gate(*AGAINST, "--json", cwd=csv_branch).json["rows"][0]
    ran = gate(*AGAINST, "--format", form, cwd=csv_branch)
    assert ran.code == 1
    assert row["id"] in ran.text
    assert "rows.csv" in ran.text
    assert str(row["line"]) in ran.text
    clean = gate(*AGAINST, "--format", form, "--max-flagged", "100%", cwd=csv_branch)
    assert clean.code == 0


def test_github_gets_a_summary_where_it_names_a_file_for_it(csv_branch: Path, tmp_path: Path) -> None:
    place = tmp_path / "summary.md"
    place.write_text("before\n")
    ran = gate(*AGAINST, "--format", "github", cwd=csv_branch, env={"GITHUB_STEP_SUMMARY": str(place)})
    text = place.read_text()
    assert text.startswith("before\n## influence gate: tripped\n")
    assert "rows.csv:" in text
    gate(*AGAINST, "--format", "sarif", cwd=csv_branch, env={"GITHUB_STEP_SUMMARY": str(place)})
    assert place.read_text() == text
    lost = gate(*AGAINST, "--format", "github", cwd=csv_branch, env={"GITHUB_STEP_SUMMARY": str(tmp_path)})
    assert (lost.code, lost.out, "summary cannot be written" in lost.err) == (1, ran.out, True)


def test_forms_of_the_verdict_are_for_the_gate_alone(scored: Path, tmp_path: Path) -> None:
    for form in ("junit", "sarif", "gitlab"):
        ran = call_cli("curate", scored, "--format", form, cwd=tmp_path)
        assert (ran.code, "add --check" in ran.err) == (2, True)

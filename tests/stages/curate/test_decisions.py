"""What people decided, applied: from the page in a browser to the edits, Label Studio's export, refusals, and undo.

python -m pytest tests/stages/curate/test_decisions.py
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.open import open_manifest
from influence_cli.report.review.rows import Why
from influence_cli.stages.curate.curate import curate
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.curate.review import Commands, review_of_edits, review_of_scores
from tests.browser import chromium
from tests.cases import Ran, call_cli, digits_table, examples, feature_table, with_column, write

CURATE = ("curate", "s.parquet", "--manifest", "m.parquet")
KEYS = "kdrkdrrdkd"


def scored(folder: Path, table: pa.Table) -> Path:
    """A manifest, and scores of its train rows by place: the first is the lowest, and has the next class proposed."""
    write(table, folder / "m.parquet")
    train = open_manifest(str(folder / "m.parquet")).rows("train")
    n = len(train)
    keys = pa.array([k.tobytes() for k in train.row_keys], pa.binary(16))
    best = (train.labels + 1) % (int(train.labels.max()) + 1)
    columns = {"id": train.ids, "row_key": keys, "label": train.labels, "score": np.linspace(-1.0, 1.0, n)}
    more = {"agreement": np.full(n, 0.75), "best_label": best, "best_label_gain": np.full(n, 2.5)}
    origin = {"manifest": {"locator": "m.parquet"}, "target": {}, "spec": {}, "kind": "signed", "stage": "score"}
    table = pa.table({**columns, **more}).replace_schema_metadata({"influence": json.dumps(origin)})
    write(table, folder / "s.parquet")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return scored(tmp_path, feature_table(examples()))


def ok(*asked: Any, cwd: Path) -> Ran:
    ran = call_cli(*asked, cwd=cwd)
    assert ran.code == 0, ran.err
    return ran


def refused(folder: Path, value: Any, says: str) -> None:
    (folder / "d.json").write_text(value if isinstance(value, str) else json.dumps(value))
    ran = call_cli(*CURATE, "--decisions", "d.json", "-o", "c.parquet", cwd=folder)
    assert ran.code == 2
    assert says in ran.err
    assert "in: d.json" in ran.err
    assert not (folder / "c.parquet").exists()


def decision(folder: Path, k: int, what: str, **more: Any) -> dict[str, Any]:
    row = pq.read_table(folder / "s.parquet").slice(k, 1).to_pylist()[0]
    return {"id": row["id"], "row_key": row["row_key"].hex(), "decision": what, **more}


def applied(folder: Path, value: Any) -> tuple[Ran, list[dict[str, Any]]]:
    (folder / "d.json").write_text(json.dumps(value))
    wanted = ("--decisions", "d.json", "-o", "c.parquet", "--edits", "e.parquet")
    return ok(*CURATE, *wanted, cwd=folder), pq.read_table(folder / "e.parquet").to_pylist()


def test_what_is_decided_on_the_page_is_applied_and_taken_back(tmp_path: Path) -> None:
    folder = scored(tmp_path, digits_table(train=60, val=10, test=10))
    ok(*CURATE, "--action", "trim", "--budget", "12", "--set", "guard=false", "--report", "p.html", "-q", cwd=folder)
    with chromium() as browser:
        page = browser.new_page()
        page.goto((folder / "p.html").as_uri())
        assert page.locator(".card img").count() == 12
        assert "0.75" not in page.inner_text("#row-0")
        assert "75% of members agree" in page.inner_text("#row-0")
        for key in KEYS:
            page.keyboard.press(key)
        with page.expect_download() as found:
            page.click("#save")
        ran, edits = applied(folder, json.loads(Path(found.value.path()).read_text()))
    before = {r["id"]: r for r in pq.read_table(folder / "m.parquet").to_pylist()}
    ids = pq.read_table(folder / "s.parquet").column("id").to_pylist()
    actions = {"d": "trim", "r": "relabel"}
    expected = [(i, actions[key]) for i, key in zip(ids, KEYS, strict=False) if key != "k"]
    assert [(e["id"], e["action"]) for e in edits] == expected
    assert all(e["label"] == (e["label_was"] + 1) % 10 for e in edits if e["action"] == "relabel")
    assert "3 keep, 4 drop, 3 relabel; the other 50 train rows are left alone" in ran.err
    after = {r["id"]: r for r in pq.read_table(folder / "c.parquet").to_pylist()}
    assert set(before) - set(after) == {i for i, action in expected if action == "trim"}
    changed = {i: r["label"] for i, r in after.items() if r != before[i]}
    assert changed == {e["id"]: e["label"] for e in edits if e["action"] == "relabel"}
    undo = ("--undo", "--manifest", "c.parquet", "-o", "r.parquet")
    ok("curate", "e.parquet", *undo, cwd=folder)
    assert pq.read_table(folder / "r.parquet").equals(pq.read_table(folder / "m.parquet"))


def test_keeping_all_changes_nothing(folder: Path) -> None:
    ran, edits = applied(folder, {"decisions": [decision(folder, k, "keep") for k in range(5)]})
    assert edits == []
    assert pq.read_table(folder / "c.parquet").to_pylist() == pq.read_table(folder / "m.parquet").to_pylist()
    assert "5 keep; the other 35 train rows are left alone" in ran.err


def test_decisions_that_cannot_be_applied_are_refused_by_row(folder: Path) -> None:
    good = decision(folder, 0, "drop")
    refused(folder, "{", "are no JSON")
    refused(folder, {"rows": []}, "no list of decisions")
    refused(folder, {"decisions": [{"id": "r000"}]}, "without the row key")
    refused(folder, {"decisions": [good, decision(folder, 1, "toss")]}, "unknown decision 'toss'")
    refused(folder, {"decisions": [good, {**good, "id": "gone"}]}, "row id=gone is no train row of m.parquet")
    refused(folder, {"decisions": [{**good, "row_key": "0" * 32}]}, "row id=r000 has changed since it was decided on")
    refused(folder, {"decisions": [good, {**good, "decision": "keep"}]}, "two decisions of one row: drop and keep")
    refused(folder, {"decisions": [decision(folder, 0, "relabel", label=3)]}, "label 3 is no class")
    named = decision(folder, 0, "relabel", label=1, label_name="class 2")
    refused(folder, {"decisions": [named]}, "label 1 is called 'class 2' there, and 'class 1' in m.parquet")
    ran = call_cli(*CURATE, "--decisions", "absent.json", cwd=folder)
    assert (ran.code, "cannot read the decisions" in ran.err) == (2, True)
    ran = call_cli(*CURATE, "--decisions", "d.json", "--budget", "5%", cwd=folder)
    assert (ran.code, "--decisions names them" in ran.err) == (2, True)


def test_a_row_that_was_changed_since_is_named(folder: Path) -> None:
    (folder / "d.json").write_text(json.dumps({"decisions": [decision(folder, 3, "drop")]}))
    rows = examples()
    rows[3] = rows[3].relabelled()
    ran = call_cli(*CURATE, "--decisions", "d.json", cwd=scored(folder, feature_table(rows)))
    assert ran.code == 2
    assert "row id=r003 has changed" in ran.err


# ---- Label Studio ---------------------------------------------------------------------------------------------------


def annotated(task: dict[str, Any], *choices: Any, **more: Any) -> dict[str, Any]:
    """A task with annotations of people after the one that it came with."""
    made = [
        {"id": 7, "lead_time": 2.5, "was_cancelled": False, **more, "result": [
            {"id": "x", "from_name": "label", "to_name": "features", "type": "choices", "value": {"choices": c}}
        ] if c else []}
        for c in choices
    ]  # fmt: skip
    return {**task, "id": 12, "annotations": [*task["annotations"], *made]}


@pytest.fixture
def tasks(folder: Path) -> list[dict[str, Any]]:
    """Tasks of the seven lowest rows, as they are exported."""
    flags = ("--action", "relabel", "--budget", "7", "--set", "rule=influence", "--set", "guard=false")
    ok(*CURATE, *flags, "--export", "t.json", "--export-as", "label-studio", cwd=folder)
    return json.loads((folder / "t.json").read_text())


def test_choices_made_in_label_studio_are_applied(folder: Path, tasks: list[dict[str, Any]]) -> None:
    was = [task["meta"]["label_was"] for task in tasks]
    other = [f"class {(int(name[-1]) + 2) % 3}" for name in was]
    done = [
        annotated(tasks[0], [other[0]]),
        annotated(tasks[1], [was[1]]),  # confirmed
        annotated(tasks[2], ["drop"]),
        annotated(tasks[3], None),  # submitted empty
        annotated(tasks[4], [other[4]], was_cancelled=True),
        tasks[5],  # nobody looked at it
        annotated(tasks[6], [other[6]], [other[6]]),  # two people agree
    ]
    ran, edits = applied(folder, done)
    ids = [task["meta"]["id"] for task in tasks]
    names = {e["id"]: (e["action"], f"class {e['label']}") for e in edits}
    assert names == {ids[0]: ("relabel", other[0]), ids[2]: ("trim", was[2]), ids[6]: ("relabel", other[6])}
    assert "1 keep, 1 drop, 2 relabel; the other 36 train rows are left alone" in ran.err
    assert "1 empty annotations are no decisions" in ran.err
    assert "1 cancelled annotations are no decisions" in ran.err


def test_exports_that_contradict_themselves_are_refused(folder: Path, tasks: list[dict[str, Any]]) -> None:
    first = tasks[0]
    refused(folder, [annotated(first, ["class 0"], ["class 1"])], "people chose differently: class 0, class 1")
    refused(folder, [annotated(first, ["class 0", "class 1"])], "one annotation chose several labels")
    refused(folder, [annotated(first, ["horse"])], "'horse' is no class")
    refused(folder, [{**first, "meta": {}}], "its meta names no row")
    refused(folder, [{"id": 1, "label": "class 0"}], "no task with its annotations")
    refused(
        folder, [{**annotated(first, ["drop"]), "meta": {**first["meta"], "row_key": "0" * 32}}], "has changed since"
    )


# ---- what the page holds --------------------------------------------------------------------------------------------


def test_rows_stand_beside_what_is_usual_for_their_label(folder: Path) -> None:
    table = with_column(pq.read_table(folder / "m.parquet"), "group", ["a", "b"] * 32)
    odd = list(examples()[0].features)
    odd[2] = 99.0
    values = [odd, *(list(e.features) for e in examples()[1:])]
    scored(folder, with_column(table, "features", pa.array(values, pa.list_(pa.float32()))))
    alone = {"trim": {"guard": False, "group_guard": False}}
    request = CurateRequest(str(folder / "s.parquet"), "trim", "3", str(folder / "m.parquet"), options=alone)
    curated = curate(request)
    page = review_of_edits(curated, Commands("made", "apply"), ({"r000": Why(hurts=[("t", "x", -1.0)])}, ["Said."]))
    first = page.rows[0]
    own = np.array(
        [v for v, e in zip(values, examples(), strict=True) if (e.split, e.label) == ("train", first.number)]
    )
    low, high = np.quantile(np.float32(own)[:, 2].astype(float), [0.05, 0.95])
    assert (first.values[0].name, first.values[0].odd) == ("feature_2", True)
    assert (first.values[0].value, first.values[0].usual) == ("99", f"{low:.4g} to {high:.4g}")
    assert [v.odd for v in first.values] == sorted((v.odd for v in first.values), reverse=True)
    assert first.why.hurts == [("t", "x", -1.0)]
    assert page.not_shown[-2:] == ["The first 1 rows have reasons (--reasons).", "Said."]
    assert (first.rank, first.score, first.slices) == (1, -1.0, {"group": "a"})
    assert first.proposed == f"class {(first.number + 1) % 3}"  # type: ignore[operator]
    assert first.gain == f"2.5 higher with {first.proposed}"
    assert page.by_slice["group"] == [("a", 20, 2), ("b", 20, 1)]
    assert sum(rows for _, rows, _ in page.by_class) == 40
    assert sum(flagged for _, _, flagged in page.by_class) == 3 == page.flagged.sum()
    assert page.cut == page.rows[-1].score
    lowest = review_of_scores(curated.scores, Commands("made", "apply"))
    assert len(lowest.rows) == 40
    assert lowest.fingerprint != page.fingerprint


def test_the_same_page_has_the_same_bytes_and_says_how_it_was_made(folder: Path) -> None:
    day = {"SOURCE_DATE_EPOCH": "86400"}
    for name in ("a", "b"):
        call_cli(*CURATE, "--report", f"{name}.html", "-q", cwd=folder, env=day)
    first, second = ((folder / f"{name}.html").read_text() for name in "ab")
    assert first.replace("a.html", "b.html") == second
    assert "influence curate s.parquet --manifest m.parquet --report b.html" in second
    assert "1970-01-02" in second
    assert re.search(r"script-src &#39;sha256|script-src 'sha256", second)
    ok(*CURATE, "--report", "a.html", "-q", cwd=folder)  # an earlier page is replaced
    ran = call_cli(*CURATE, "--report", "m.parquet", cwd=folder)
    assert (ran.code, "is read by this run" in ran.err) == (2, True)


def test_decisions_of_another_manifest_are_taken_with_a_word(folder: Path) -> None:
    own = open_manifest(str(folder / "m.parquet")).fingerprint
    about = {"decisions": [decision(folder, 1, "drop")]}
    for named, said in ((own, False), ("f" * 32, True)):
        ran, edits = applied(folder, {**about, "manifest": named})
        assert len(edits) == 1
        assert (f"another manifest (ffffffffffff, and this one is {own[:12]})" in " ".join(ran.err.split())) == said
        for name in ("c.parquet", "e.parquet"):
            (folder / name).unlink()


def test_a_file_of_decisions_that_lacks_one_or_has_another_is_refused(folder: Path) -> None:
    made = [decision(folder, 0, "drop"), decision(folder, 1, "relabel", label=1), decision(folder, 2, "keep")]
    lines = "\n".join("\0".join([d["id"], d["row_key"], d["decision"], str(d.get("label", ""))]) for d in made)
    about = {"rows": 10, "undecided": 7, "decisions": made, "checksum": f"{zlib.crc32(lines.encode()):08x}"}
    ran, _ = applied(folder, about)
    assert "decisions: 1 keep, 1 drop, 1 relabel" in ran.err
    (folder / "c.parquet").unlink()
    refused(folder, {**about, "decisions": made[1:]}, "3 decisions were saved, and 2 are in the file")
    changed = [made[0], {**made[1], "label": 0}, made[2]]
    refused(folder, {**about, "decisions": changed}, "not those that were saved: the checksum differs")
    del about["checksum"]  # of an earlier version
    applied(folder, about)
    (folder / "c.parquet").unlink()
    refused(folder, {**about, "decisions": made[:2]}, "3 decisions were saved, and 2 are in the file")

"""Every form of the verdict is read by its consumer, whatever ids, labels and paths hold.

``sarif-2.1.0.json`` is the JSON Schema of SARIF 2.1.0 (OASIS) as the npm package @microsoft/jest-sarif 1.0.0-beta.0
(MIT) ships it, without its descriptions.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import pytest
from junitparser import Failure, JUnitXml

from influence_cli.report.gate import FORMATS, render
from influence_cli.report.gate.github import SUMMARY_ROWS, summary
from influence_cli.report.gate.sarif import MOST
from influence_cli.report.gate.texts import fingerprints

HERE = Path(__file__).parent
HOSTILE = [
    "a\n::error::forged",
    "b\r\n::set-output name=x::y",
    "]]><testcase name='forged'/>",
    "<script>alert(1)</script> & \"quotes\" 'and' ]]>",
    "nul \x00 bell \x07 escape \x1b[31m",
    "lone \ud800 surrogate",
    "line\u2028separator\u2029and\x85more",
    "| table | `code` [link](https://example.org) **bold**",
    "\ufffe\uffff",
]


def row(name: str, **more: Any) -> dict[str, Any]:
    """A flagged row as JSON."""
    said = {"id": name, "row_key": f"{abs(hash(name)):032x}"[:32], "label": 0, "score": -3.5, "p_value": 0.002}
    said |= {"proposed_label": 1, "proposed_probability": 0.97, "file": "data/train.csv", "line": 7, "image": None}
    return {**said, "reason": None, **more}


def document(rows: list[dict[str, Any]], verdict: str = "tripped", **more: Any) -> dict[str, Any]:
    """A verdict as JSON."""
    rule = {"by": "false-flag", "value": 0.01, "basis": "at most 1%", "rate_known": True, "compared_with": 99}
    said = {"schema_version": 1, "verdict": verdict, "sentence": f"gate {verdict}: {len(rows)} flagged", "allowed": 0}
    said |= {"candidates": 20, "flagged": len(rows), "unjudged": 0, "rule": rule, "clean_trips": 0.2, "notes": ["few"]}
    said |= {"slices": [], "manifest": "data/train.parquet", "classes": ["cat", "dog"], "rows": rows}
    said["next"] = [{"what": "look", "command": "influence curate 'a b.parquet'"}] if verdict == "tripped" else []
    return {**said, **more}


def hostile() -> dict[str, Any]:
    """A verdict in which ids, class names, slices and reasons are hostile."""
    rows = [
        row(text, label=0, proposed_label=k % 2, reason=text if k % 3 == 0 else None) for k, text in enumerate(HOSTILE)
    ]
    part = {
        "column": HOSTILE[2],
        "value": HOSTILE[5],
        "rows": 9,
        "flagged": 9,
        "limit": "1",
        "allowed": 1,
        "over": True,
    }
    return document(rows, classes=[HOSTILE[3], HOSTILE[5]], slices=[part], notes=HOSTILE, sentence=HOSTILE[1])


def written(name: str, verdict: dict[str, Any]) -> str:
    """A form as its bytes are read again."""
    return render(name, verdict, None).encode("utf-8", "backslashreplace").decode("utf-8")


def schema(name: str) -> Any:
    """A JSON Schema beside this file."""
    return json.loads((HERE / name).read_text())


@pytest.mark.parametrize("verdict", [document([row("r1"), row("r2", line=None)]), document([], "clean"), hostile()])
def test_every_form_is_read_by_its_consumer(verdict: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(written("sarif", verdict)), schema("sarif-2.1.0.json"))
    jsonschema.validate(json.loads(written("gitlab", verdict)), schema("code-quality.json"))
    jsonschema.validate(verdict, json.loads(files("influence_cli").joinpath("guide/gate.schema.json").read_text()))
    suites = JUnitXml.fromstring(written("junit", verdict).encode())
    assert suites.tests == 1 + len(verdict["rows"]) + len(verdict["slices"])


def test_the_schema_refuses_another_verdict() -> None:
    ours = json.loads(files("influence_cli").joinpath("guide/gate.schema.json").read_text())
    for wrong in (document([row("r", line=0)]), document([], "maybe"), {**document([]), "rule": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, ours)


def test_hostile_ids_make_no_command_case_or_alert_of_their_own() -> None:
    verdict = hostile()
    lines = written("github", verdict).split("\n")
    assert [line.split(" ")[0] for line in lines[:-1]] == ["::warning"] * len(HOSTILE) + ["::error"]
    assert not any(ord(c) < 32 for line in lines for c in line)
    cases = [case for suite in JUnitXml.fromstring(written("junit", verdict).encode()) for case in suite]
    assert [case.name for case in cases if case.name == "forged"] == []
    run = json.loads(written("sarif", verdict))["runs"][0]
    assert [r["properties"]["id"] for r in run["results"]] == HOSTILE
    assert "](http" not in "".join(r["message"]["text"] for r in run["results"])
    page = summary(verdict)
    assert "<script>" not in page
    assert "[link]" not in page
    assert sum(line.startswith("|") for line in page.splitlines()) == len(HOSTILE) + 1 + 4  # with both heads of tables


def test_rows_fail_in_junit_only_where_the_gate_tripped() -> None:
    for verdict, failures in (("tripped", 2), ("clean", 0)):
        suites = JUnitXml.fromstring(written("junit", document([row("r1")], verdict)).encode())
        cases = [case for suite in suites for case in suite]
        assert sum(isinstance(r, Failure) for case in cases for r in case.result) == suites.failures == failures
        assert [case.name for case in cases] == ["gate", "r1"]
    assert "data/train.csv" in written("junit", document([row("r1")]))


def test_github_points_at_the_line_and_says_what_it_does_not_show() -> None:
    lines = written("github", document([row(f"r{k}") for k in range(12)])).splitlines()
    first = "::warning file=data/train.csv,line=7,title=influence::row r0 (label cat): score -3.5, p-value 0.002"
    assert lines[0] == f"{first}; proposed label: dog (the model gives it 0.97)"
    assert "2 more are in the log" in lines[-1]
    assert "%0Alook: influence curate 'a b.parquet'" in lines[-1]
    assert "more are" not in written("github", document([row("r")]))
    assert written("github", document([], "clean")) == ""


def test_a_summary_of_many_rows_has_room() -> None:
    text = summary(document([row("x" * 5000) for _ in range(3000)]))
    assert f"and {3000 - SUMMARY_ROWS:,} more rows" in text
    assert len(text.encode()) < 1_000_000


def test_sarif_gives_what_code_scanning_shows_and_says_what_is_left_out() -> None:
    rows = [row(f"r{k}") for k in range(MOST + 3)]
    run = json.loads(written("sarif", document(rows)))["runs"][0]
    assert len(run["results"]) == MOST
    assert any(
        "3 more flagged rows" in n["message"]["text"] for n in run["invocations"][0]["toolExecutionNotifications"]
    )
    levels = {v: json.loads(written("sarif", document([row("r")], v)))["runs"][0]["results"][0]["level"]
              for v in ("tripped", "clean")}  # fmt: skip
    assert levels == {"tripped": "warning", "clean": "note"}


def test_a_row_is_the_same_alert_wherever_it_stands_and_copies_are_alerts_of_their_own() -> None:
    key = "ab" * 16
    once = [row("a", row_key=key), row("b")]
    later = [row("c"), row("renamed", row_key=key, line=99), row("copy", row_key=key)]
    assert fingerprints(once)[0] == fingerprints(later)[1] == f"{key}:1"
    assert fingerprints(later)[2] == f"{key}:2"
    found = {i: r["partialFingerprints"]["primaryLocationLineHash"]
             for i, r in enumerate(json.loads(written("sarif", document(later)))["runs"][0]["results"])}  # fmt: skip
    assert found == dict(enumerate(f["fingerprint"] for f in json.loads(written("gitlab", document(later)))))
    nameless = [row("a", row_key="0" * 32), row("b", row_key="0" * 32)]
    assert len(set(fingerprints(nameless))) == 2
    assert not fingerprints(nameless)[0].startswith("0" * 32)


def test_paths_count_from_the_root_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    odd = "a b%,é.csv"
    (tmp_path / "work" / odd).write_text("")
    verdict = document([row("r", file=odd), row("s", file="/elsewhere/x.csv")])
    quality = json.loads(render("gitlab", verdict, str(tmp_path)))
    assert [f["location"]["path"] for f in quality] == [f"work/{odd}", "/elsewhere/x.csv"]
    assert json.loads(render("gitlab", verdict, None))[0]["location"]["path"] == odd
    run = json.loads(render("sarif", verdict, str(tmp_path)))["runs"][0]
    uri = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert (unquote(uri), " " in uri, "%2C" in uri) == (f"work/{odd}", False, True)


def test_every_format_of_the_table_renders() -> None:
    assert {name: bool(render(name, document([row("r")]), None)) for name in FORMATS} == dict.fromkeys(FORMATS, True)

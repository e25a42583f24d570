"""JUnit XML: a test case for the gate, one for each slice with a limit, and one for each flagged row.

Rows fail where the gate tripped; those of a clean gate pass, and say what they were flagged for.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from influence_cli.errors import printable
from influence_cli.report.gate.texts import Document, path_of, row_said, steps_said


def render(document: Document, root: str | None = None) -> str:
    """The verdict as one test suite."""
    tripped = document["verdict"] == "tripped"
    suite = ET.Element("testsuite", name="influence gate", errors="0", skipped="0", time="0")
    gate = _case(suite, "influence.gate", "gate")
    if tripped:
        _failure(
            gate, document["sentence"], "\n".join([document["sentence"], *document["notes"], *steps_said(document)])
        )
    for part in document["slices"]:
        name = f"{part['column']}={part['value']}"
        case = _case(suite, "influence.gate.slice", name)
        if part["over"]:
            said = f"{name}: {part['flagged']} of {part['rows']} new rows flagged, {part['allowed']} allowed"
            _failure(case, said, said)
    for row in document["rows"]:
        at = {"file": path_of(row, document, root), **({} if row["line"] is None else {"line": str(row["line"])})}
        case, said = _case(suite, "influence.gate.row", row["id"], **at), row_said(row, document)
        if tripped:
            _failure(case, said, said)
        else:
            ET.SubElement(case, "system-out").text = _legal(said)
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    whole = ET.Element("testsuites", dict(suite.items()))
    whole.append(suite)
    ET.indent(whole)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(whole, encoding="unicode") + "\n"


def _case(suite: ET.Element, kind: str, name: str, **more: str) -> ET.Element:
    given = {key: _legal(value) for key, value in more.items()}
    return ET.SubElement(suite, "testcase", {"classname": kind, "name": _legal(name), "time": "0", **given})


def _failure(case: ET.Element, message: str, text: str) -> None:
    ET.SubElement(case, "failure", message=_legal(message), type="influence").text = _legal(text)


def _legal(text: str) -> str:
    """A text with the characters that XML may hold; line ends stay."""
    return "\n".join(map(printable, text.split("\n")))

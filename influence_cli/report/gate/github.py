"""GitHub: an annotation for each flagged row at its file and line, an error for a gate that tripped; and a summary.

GitHub shows ten warnings of a step beside the code; all of them stand in the log, and in the summary of the job as many
as have room.
"""

from __future__ import annotations

from typing import Any

from influence_cli.errors import printable
from influence_cli.report.gate.texts import (
    Document,
    class_said,
    path_of,
    place_said,
    proposal_said,
    row_said,
    steps_said,
    suspicion,
)

SHOWN = 10  # warnings of a step
SUMMARY_ROWS, CELL = 200, 200  # rows of the summary, and characters of a cell: a summary may have a megabyte
_LINE_ENDS = (("%", "%25"), ("\r", "%0D"), ("\n", "%0A"))
_PROPERTY = (*_LINE_ENDS, (":", "%3A"), (",", "%2C"))
_MARKS = {ord(c): f"&#{ord(c)};" for c in r"\`*_[]|~<>&@#"}  # of Markdown and HTML


def render(document: Document, root: str | None = None) -> str:
    """The annotations as workflow commands, a line each."""
    lines: list[str] = []
    for row in document["rows"]:
        at = {"file": path_of(row, document, root), **({} if row["line"] is None else {"line": str(row["line"])})}
        lines.append(command("warning", row_said(row, document), **at, title="influence"))
    more = len(lines) - SHOWN
    if document["verdict"] == "tripped":
        said = [document["sentence"]]
        said += [f"GitHub shows {SHOWN} warnings of a step: {more:,} more are in the log and in the summary"] * (
            more > 0
        )
        lines.append(command("error", "\n".join([*said, *steps_said(document)]), title="influence"))
    elif more > 0:
        said = f"{document['sentence']}; GitHub shows {SHOWN} warnings of a step: {more:,} more are in the log"
        lines.append(command("notice", said, title="influence"))
    return "".join(lines)


def command(name: str, message: str, **properties: str) -> str:
    r"""A workflow command as GitHub's runner reads it: data can end neither the line nor a property.

    The runner decodes %25, %0D and %0A in a message, and %3A and %2C in a property as well, nothing else.

    >>> command("warning", "100% sure: a, b", file="a,b.parquet")
    '::warning file=a%2Cb.parquet::100%25 sure: a, b\n'
    """
    given = (f"{key}={_escaped(value, _PROPERTY)}" for key, value in properties.items())
    return f"::{name} {','.join(given)}::{_escaped(message, _LINE_ENDS)}\n"


def _escaped(text: str, codes: tuple[tuple[str, str], ...]) -> str:
    for plain, code in codes:
        text = text.replace(plain, code)
    return text


def summary(document: Document) -> str:
    """The verdict as Markdown, for the summary of a job."""
    rows, shown = document["rows"], document["rows"][:SUMMARY_ROWS]
    lines = [f"## influence gate: {document['verdict']}", "", _cell(document["sentence"], 2000), ""]
    lines += [f"- {_cell(note, 2000)}" for note in document["notes"]] + [""] * bool(document["notes"])
    if document["slices"]:
        parts = document["slices"][:SUMMARY_ROWS]
        figures = ([f"{s['column']}={s['value']}", s["rows"], s["flagged"], s["allowed"]] for s in parts)
        lines += _table(["slice", "new rows", "flagged", "allowed"], figures)
        lines += _left_out(len(document["slices"]) - len(parts), "slices")
    if rows:
        cells = (
            [row["id"], place_said(row), "-" if row["label"] is None else class_said(row["label"], document),
             proposal_said(row, document) or "-", row["reason"] or suspicion(row)]
            for row in shown
        )  # fmt: skip
        lines += _table(["row", "where", "label", "proposed label", "why"], cells)
        lines += _left_out(len(rows) - len(shown), "rows")
    for step in document.get("next", ()):
        lines += [f"{_cell(step['what'])}:", "", f"    {printable(step['command'])}", ""]
    return "\n".join(lines) + "\n"


def _table(header: list[str], rows: Any) -> list[str]:
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return [*lines, *(f"| {' | '.join(_cell(str(value)) for value in row)} |" for row in rows), ""]


def _left_out(count: int, what: str) -> list[str]:
    return [f"and {count:,} more {what}", ""] if count > 0 else []


def _cell(text: str, most: int = CELL) -> str:
    """A text in which nothing is Markdown or HTML, cut where it is very long."""
    text = printable(text)
    return (text if len(text) <= most else text[: most - 1] + "…").translate(_MARKS)

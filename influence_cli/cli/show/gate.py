"""What the gate found: the verdict, the rows and what to do next; on standard output in the format asked for."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import cell, print_table
from influence_cli.cli.settings.requests import ResultOptions, options_of
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.table import STRONGEST, print_rows
from influence_cli.errors import shell_line
from influence_cli.options import SCORE
from influence_cli.report.gate import FORMATS, ROOTS, render

if TYPE_CHECKING:
    from influence_cli.stages.curate.verdict import Verdict

SAID_ROWS, SAID_SLICES, EXPLAINED = 5, 10, 3
SUMMARY = "GITHUB_STEP_SUMMARY"  # the variable in which GitHub names the file of a job's summary
BASELINE = ".influence-baseline.jsonl"


def show_verdict(result: ResultOptions, verdict: Verdict, settings: Settings) -> None:
    """The verdict, the first rows and the next steps on standard error; the rows on standard output."""
    from influence_cli.data.write_tables import write_all
    from influence_cli.report.gate.texts import place_said, row_said, steps_said

    document = {**verdict.document(), "next": next_steps(verdict, settings)}
    out = terminal()
    out.note(document["sentence"])
    for part in verdict.slices[:SAID_SLICES]:
        out.note(f"  {part.sentence()}")
    if len(verdict.slices) > SAID_SLICES:
        out.note(f"  and {len(verdict.slices) - SAID_SLICES:,} more slices: all with --format json")
    for note in verdict.notes:
        out.note(f"  {note}")
    if verdict.tripped:
        rows = document["rows"] if not result.for_people else []
        for row in rows[:SAID_ROWS]:
            place = place_said(row)
            out.note(f"  {place + ': ' if place else ''}{row_said(row, document)}")
        if len(rows) > SAID_ROWS:
            out.note(f"  and {len(rows) - SAID_ROWS:,} more rows, which standard output has")
        for line in steps_said(document):
            out.note(line)
    if result.for_people:
        _print_flagged(document)
    elif result.format == "json":
        indent = 2 if sys.stdout.isatty() else None
        write_all(_encoded(json.dumps(document, indent=indent, ensure_ascii=False) + "\n"))
    elif result.format in FORMATS:
        root = next((os.environ[name] for name in ROOTS if os.environ.get(name)), None)
        write_all(_encoded(render(result.format, document, root)))
        if result.format == "github":
            _append_summary(document)
    else:
        print_rows(result, verdict.flagged, classes=verdict.classes)


def _encoded(text: str) -> bytes:
    """UTF-8; a lone surrogate is written out, which in JSON stands for itself."""
    return text.encode("utf-8", "backslashreplace")


def _append_summary(document: dict[str, Any]) -> None:
    """The verdict at the end of the job's summary, where GitHub names a file for it; the verdict stands without it."""
    from influence_cli.report.gate.github import summary

    place = os.environ.get(SUMMARY)
    if not place:
        return
    try:
        with open(place, "ab") as handle:
            handle.write(_encoded(summary(document)))
    except OSError as error:
        terminal().warn(f"the job's summary cannot be written ({error.strerror}): {SUMMARY}={place}")


def _print_flagged(document: dict[str, Any]) -> None:
    """The first rows for people: where they stand, their label and the one that is proposed, and the figures."""
    from influence_cli.report.gate.texts import class_said, place_said

    rows, by = document["rows"][:STRONGEST], "effect" if document["rule"]["by"] == "threshold" else "p_value"
    cells = [
        [
            row["id"],
            place_said(row) or "-",
            *("-" if row[n] is None else class_said(row[n], document) for n in ("label", "proposed_label")),
            *(cell(row[name]) for name in ("score", by)),
            row["reason"] or "",
        ]
        for row in rows
    ]
    header = ["id", "where", "label", "proposed", "score", by, "reason"]
    if not any(row["reason"] for row in rows):
        header, cells = header[:-1], [line[:-1] for line in cells]
    print_table(f"{len(rows)} of {len(document['rows']):,} flagged rows", header, cells, sys.stdout, left=4)


def next_steps(verdict: Verdict, settings: Settings) -> list[dict[str, str]]:
    """What to do about the rows of a gate that tripped, with the commands: look at them, and fix or accept them."""
    if not verdict.tripped:
        return []
    source, ids = str(settings.source), verdict.flagged.column("id").to_pylist()
    asked = settings.repeated_of("manifest", "label", "skip_bad", "allow_outside")
    steps: list[dict[str, str]] = []
    judged = [i for i in ids[verdict.unjudged :] if not i.startswith("-") and i.isprintable()]  # to be pasted
    if judged and any(option.name == "explain" for option in options_of(SCORE)):
        named = [word for i in judged[:EXPLAINED] for word in ("--explain", i)]
        steps.append(_step("look at them", "score", source, *asked, *named))
    files = list(dict.fromkeys(verdict.flagged.column("file").drop_null().to_pylist()))
    where = f" in {files[0]}" if len(files) == 1 else ""
    again = "make the manifest again, " if where and files[0] != verdict.source else ""
    fix = f"fix them: correct the labels or take the rows out{where}, {again}score again and run this gate again"
    scored = [
        *settings.repeated_of("label", "skip_bad", "allow_outside"),
        "--manifest",
        verdict.source,
        "-o",
        _beside(source),
    ]
    steps.append(_step(fix, "score", source, *scored))
    if not verdict.unjudged:
        accept = [*asked, "--write-baseline", settings.values["baseline"] or BASELINE]
        added = "" if settings.values["baseline"] else f", then add --baseline {BASELINE} to the gate"
        steps.append(_step(f"accept every row as it is{added}", "curate", source, *accept))
    return steps


def _beside(source: str) -> str:
    """A place for new scores beside the old ones, which are read to make them."""
    path = Path("scores.parquet" if source == "-" else source)
    return str(path.with_name(f"{path.stem}-fixed.parquet"))


def _step(what: str, *words: Any) -> dict[str, str]:
    return {"what": what, "command": shell_line(["influence", *words])}

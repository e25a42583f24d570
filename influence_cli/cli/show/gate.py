"""What the gate found: flagged rows on standard output, also as annotations of a pull request."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.settings.requests import ResultOptions
from influence_cli.cli.show.table import print_rows

if TYPE_CHECKING:
    from influence_cli.stages.curate.gate import Verdict


def show_verdict(result: ResultOptions, verdict: Verdict, manifest: str) -> None:
    """The flagged rows on standard output, the verdict on standard error."""
    terminal().note(verdict.sentence())
    if result.format == "github":
        for row in verdict.flagged.to_pylist():
            text = f"row {row['id']} (label {row['label']}): {row['reason'] or _suspicion(row)}"
            sys.stdout.write(f"::warning file={_escaped(manifest)},title=influence::{_escaped(text)}\n")
        if verdict.tripped:
            sys.stdout.write(f"::error title=influence::{_escaped(verdict.sentence())}\n")
        sys.stdout.flush()
        return
    print_rows(result, verdict.flagged)


def _suspicion(row: dict[str, Any]) -> str:
    """What a row is flagged for."""
    why = f"effect {row['effect']:.3g}" if "effect" in row else f"p-value {row['p_value']:.3g}"
    return f"score {row['score']:.3g}, {why}"


def _escaped(text: str) -> str:
    """Text inside a workflow command: data must not be able to start one of its own."""
    for plain, safe in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A"), (":", "%3A"), (",", "%2C")):
        text = text.replace(plain, safe)
    return text

"""The title of a page: the question that was asked."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from influence_cli.report.panel import RANDOM, short

Figures = dict[str, Any]
NAMED = 3  # more names than these are a number
LONGEST = 60  # characters of a place


def title_of(result: Figures, manifest: str | None = None) -> str:
    """The question that a result of ``evaluate`` or ``retrain`` answers; ``manifest`` is the place of the rows."""
    rows = place(manifest) if manifest else "the train rows"
    if "arms" in result:
        return _of_arms(result, rows)
    if "recompute" in result:
        return f"Do the scores in {place(result['a'])} still hold at the checkpoint {place(result['b'] or '-')}?"
    if "duplicates" in result:
        return f"Which rows of {rows} are near-duplicates?"
    if "refit" in result:
        return f"Do {_scores(_retrained(result))} foretell what training on {rows} does?"
    if "comparison" in result:
        return f"Do {place(result['a'])} and {place(result['b'])} rank the same rows lowest?"
    if "stability" in result:
        return f"Do the score tables of {rows} agree?"
    if result.get("detection"):
        return f"Do {_scores(result['detection'])} find wrong labels in {rows}?"
    if result.get("canaries"):
        return f"Do {_scores(result['canaries'][0]['detection'])} find the wrong labels planted in {rows}?"
    return f"Do {_scores(result.get('order', {}).get('columns', []))} of {rows} agree?"


def _of_arms(result: Figures, rows: str) -> str:
    edits = list(result["comparison"])
    if not edits:
        return f"How good is a model trained on {rows}?"
    what = "Does the edit" if len(edits) == 1 else "Do the edits" if len(edits) <= NAMED else "Do"
    named = listed(edits) if len(edits) <= NAMED else f"{len(edits)} edits"
    return f"{what} {named} of {rows} help?"


def _retrained(result: Figures) -> list[str]:
    parts = (result[p].get("columns", {}) for p in ("lds", "removal", "leave_one_out", "brittleness") if p in result)
    return list(dict.fromkeys(name for columns in parts for name in columns))


def _scores(names: Any) -> str:
    """'scores of ip and loss', or how many columns there are."""
    known = [n for n in names if n != RANDOM]
    return f"scores of {listed(known)}" if 0 < len(known) <= NAMED else f"{len(known) or 'the'} score columns"


def listed(names: list[str]) -> str:
    """'a, b and c'; a long name is cut.

    >>> listed(["a", "b", "c"]), listed(["a"])
    ('a, b and c', 'a')
    """
    shown = [short(name) for name in names]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def place(path: str) -> str:
    """The last part of a path, as a label.

    >>> place("data/train.parquet"), place("-")
    ('train.parquet', 'standard input')
    """
    return "standard input" if path == "-" else short(PurePath(path).name or path, LONGEST)

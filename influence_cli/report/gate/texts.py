"""What every form says of a flagged row: what it is flagged for, where it stands, and a name that stays the same.

Ids, labels and paths are other people's: they come out on one line, without control characters or lone surrogates.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from typing import Any

from influence_cli.data.classes import class_name
from influence_cli.errors import printable

Document = dict[str, Any]
Row = dict[str, Any]


def class_said(label: Any, document: Document) -> str:
    """A label as people read it: the name of a class, or the value."""
    return printable(class_name(document["classes"], label) if isinstance(label, int) else str(label))


def row_said(row: Row, document: Document) -> str:
    """A row in a sentence: its id, its label, what it is flagged for, and the label that is proposed."""
    label = "no label" if row["label"] is None else f"label {class_said(row['label'], document)}"
    proposed = proposal_said(row, document)
    what = printable(row["reason"]) if row["reason"] else suspicion(row)
    return f"row {printable(row['id'])} ({label}): {what}" + (f"; proposed label: {proposed}" if proposed else "")


def suspicion(row: Row) -> str:
    """What a row is flagged for, in figures."""
    why = f"effect {row['effect']:.3g}" if "effect" in row else f"p-value {row['p_value']:.3g}"
    return f"score {row['score']:.3g}, {why}"


def proposal_said(row: Row, document: Document) -> str:
    """The proposed label and the model's probability of it; empty where there is none."""
    if row["proposed_label"] is None:
        return ""
    sure = row["proposed_probability"]
    said = class_said(row["proposed_label"], document)
    return said if sure is None else f"{said} (the model gives it {sure:.2f})"


def place_said(row: Row) -> str:
    """FILE:LINE, or FILE; empty where a row stands in no file."""
    if row["file"] is None:
        return ""
    return printable(row["file"]) + ("" if row["line"] is None else f":{row['line']}")


def path_of(row: Row, document: Document, root: str | None) -> str:
    """The file that a row stands in, as the repository names it: from ``root`` on, where it is inside."""
    file = row["file"] or document["manifest"]
    absolute, base = os.path.realpath(file), os.path.realpath(root or ".")
    inside = absolute.startswith(base.rstrip(os.sep) + os.sep)
    return os.path.relpath(absolute, base) if inside else os.path.normpath(file)


def fingerprints(rows: list[Row]) -> list[str]:
    """A name for each row that stays while its payload and label do: its row key, and a number where there are copies.

    A row that has no key, since its payload cannot be read, is named by its id.
    """
    seen: Counter[str] = Counter()
    names: list[str] = []
    for row in rows:
        key = row["row_key"]
        if not key.strip("0"):
            key = hashlib.blake2b(row["id"].encode(errors="backslashreplace"), digest_size=16).hexdigest()
        seen[key] += 1
        names.append(f"{key}:{seen[key]}")
    return names


def steps_said(document: Document) -> list[str]:
    """What to do next, a line each: in words, and the command."""
    return [printable(f"{step['what']}: {step['command']}") for step in document.get("next", ())]

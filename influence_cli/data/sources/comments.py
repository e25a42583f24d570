"""Lines of comment (# ...) before the names of a CSV's columns."""

from __future__ import annotations

import csv
import itertools
import re
from pathlib import Path

MOST = 200  # lines that are looked at
_NUMBER = re.compile(r"\s*[+-]?(\d+[.,]?\d*|[.,]\d+)\s*")


def comment_lines(path: Path, encoding: str, delimiter: str) -> int:
    """How many lines stand before the names of columns: those that begin with #, but for names that do so themselves.

    A last one with as many fields as the line after it is the names, unless numbers begin a line later: then that is.
    """
    with path.open(encoding=encoding, newline="", errors="replace") as handle:
        lines = [line.strip("\r\n\ufeff") for line in itertools.islice(handle, MOST)]
    count = next((k for k, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    comments = [k for k in range(count) if lines[k].startswith("#")]
    if not comments or count == len(lines):
        return 0
    rows = list(itertools.islice(csv.reader([line for line in lines[count:] if line.strip()], delimiter=delimiter), 2))
    named = next(csv.reader([lines[comments[-1]]], delimiter=delimiter))
    later = len(rows) > 1 and not _has_number(rows[0]) and _has_number(rows[1])
    return comments[-1] if len(named) == len(rows[0]) > 1 and not later else count


def _has_number(fields: list[str]) -> bool:
    return any(_NUMBER.fullmatch(field) for field in fields)

"""Texts that a spreadsheet would run as formulas, in CSV: written with a quote before them, and read back without it.

A text runs where it begins with =, +, -, @ or the like and is no number.  Where a table has one, every text that is one
but for quotes before it gets one quote more, so that one that really begins with '= is told apart; and a column named
``influence_quoted`` says, by its name, that this was done, and in each row to how many texts.  Files without that
column are read as they are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from influence_cli.data.kinds.protocol import is_text

MARK = "influence_quoted"
_STARTS = "[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
_QUOTED = re.compile(f"'+{_STARTS}")
_FORMULA = re.compile(f"{_STARTS}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(inf|infinity|nan)", re.IGNORECASE)


def runs(text: str) -> bool:
    """Whether a spreadsheet would run the text.

    >>> [runs(t) for t in ("=1+1", "-2+3", "@x", "-0.5", "+1e-3", "a=b", "'=1", "")]
    [True, True, True, False, False, False, False, False]
    """
    return _FORMULA.match(text) is not None and _NUMBER.fullmatch(text) is None


def quoted(text: str) -> str:
    """The text as it is written in a table that has the mark."""
    return f"'{text}" if runs(text) or _QUOTED.match(text) else text


def unquoted(text: str) -> str:
    """The text that ``quoted`` was given."""
    return text[1:] if _QUOTED.match(text) else text


def said(count: int) -> str:
    """What was done, for people."""
    return (
        f"{count:,} texts that a spreadsheet would run as formulas are written with a quote (') before them; "
        f"column {MARK} says so, and they are read back without it"
    )


def formulas_in(table: pa.Table) -> int:
    """How many texts of a table, and names of its columns, a spreadsheet would run."""
    count = sum(map(runs, table.column_names))
    for column in table.columns:
        if is_text(column.type):
            starts = pc.MatchSubstringOptions(f"^{_STARTS}")  # quick: most have none
            suspects = column.filter(pc.call_function("match_substring_regex", [column], starts))
            count += sum(map(runs, suspects.to_pylist()))
    return count


def without_formulas(table: pa.Table, marked: bool | None = None) -> pa.Table:
    """The table with quotes before its formulas, and the mark; as it is where it has none.

    ``marked`` says whether there are some in all of which it is a part.
    """
    if not (formulas_in(table) if marked is None else marked):
        return table
    columns, counts = [], [0] * table.num_rows
    for column in table.columns:
        if is_text(column.type):
            values = column.to_pylist()
            written = [None if v is None else quoted(v) for v in values]
            counts = [n + (a != b) for n, a, b in zip(counts, values, written, strict=True)]
            column = pa.array(written, pa.string())
        columns.append(column)
    names = [*map(quoted, table.column_names), MARK]
    return pa.Table.from_arrays([*columns, pa.array(counts, pa.int64())], names=names)


def is_marked(path: Path, delimiter: str = ",", first: int = 0) -> bool:
    """Whether a CSV file has the mark, among the names of its columns: after ``first`` lines."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as handle:
        for _ in range(first):
            handle.readline()
        head = handle.read(1 << 20)
    if MARK not in head:  # quick: most have none
        return False
    try:
        return MARK in next(csv.reader(io.StringIO(head, newline=""), delimiter=delimiter), [])
    except csv.Error:
        return False


def as_meant(path: Path, delimiter: str = ",", first: int = 0) -> Path | pa.BufferReader:
    """A CSV file for a reader: itself, or where it has the mark its rows without the quotes and the mark.

    The ``first`` lines are no rows.

    Raises:
        pa.ArrowInvalid: it has the mark and is no CSV in UTF-8.
    """
    if not is_marked(path, delimiter, first):
        return path
    out = io.StringIO(newline="")
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            for _ in range(first):
                handle.readline()
            rows = csv.reader(handle, delimiter=delimiter)
            header = next(rows)
            mark = header.index(MARK)
            writer = csv.writer(out, delimiter=delimiter, lineterminator="\r\n")  # both are quoted
            writer.writerows(_row(row, mark) for row in (header, *rows))
    except (csv.Error, UnicodeDecodeError) as error:
        raise pa.ArrowInvalid(str(error)) from error
    finally:
        csv.field_size_limit(limit)
    return pa.BufferReader(out.getvalue().encode())


def _row(row: Sequence[str], mark: int) -> list[str]:
    return [unquoted(text) for k, text in enumerate(row) if k != mark]

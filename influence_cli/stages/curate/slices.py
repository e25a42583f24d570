"""Limits of the gate by slice: for every value of a column the new rows, the flagged ones, and those allowed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from influence_cli.data.label_kinds import CLASSES
from influence_cli.errors import UsageError, nearest
from influence_cli.settings import parse_budget
from influence_cli.stages.curate.score_table import ScoreTable

FLAG = "--max-flagged-per"
NONE = "(none)"  # the slice of rows without a value


@dataclass(frozen=True)
class Slice:
    """The new rows with one value in one column; ``limit`` is what was asked for, ``allowed`` that many rows."""

    column: str
    value: str
    rows: int
    flagged: int
    limit: str
    allowed: int

    @property
    def over(self) -> bool:
        """Whether more rows are flagged than are allowed."""
        return self.flagged > self.allowed

    def sentence(self) -> str:
        """The slice in a line."""
        return (
            f"{self.column}={self.value}: {self.flagged:,} of {self.rows:,} new rows flagged, {self.allowed:,} allowed"
        )


def check_limits(scores: ScoreTable, asked: Sequence[str]) -> dict[str, str]:
    """The limit of each column, of texts COLUMN=LIMIT.

    Raises:
        UsageError: a text is none, a column is named twice, is not there or holds lists, or a limit cannot be read.
    """
    limits: dict[str, str] = {}
    table = scores.manifest.table
    for text in asked:
        column, _, limit = text.rpartition("=")
        if not column or not limit:
            raise UsageError(f"{FLAG} {text!r} is no column with a limit", fix=f"write {FLAG} source=2%")
        if column in limits:
            raise UsageError(f"{FLAG} names column {column!r} twice", fix="give one limit a column")
        if column not in table.column_names:
            fix = nearest(column, table.column_names)
            raise UsageError(f"no column {column!r} for {FLAG}", where=scores.manifest.source, fix=fix)
        kind = table.schema.field(column).type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            what = f"column {column} is {kind}, and {FLAG} takes one plain value a row"
            raise UsageError(what, where=scores.manifest.source, fix="name a column of texts, numbers or truths")
        rows_allowed(limit, 0)
        limits[column] = limit
    return limits


def rows_allowed(limit: str, rows: int, flag: str = FLAG) -> int:
    """How many of some rows a limit allows: a share, rounded down, or a number, at most all.  Raises UsageError."""
    return min(int(limit), rows) if limit.isdecimal() and limit.isascii() else parse_budget(limit, rows, flag)


def slices_of(
    scores: ScoreTable, limits: dict[str, str], candidates: Sequence[int], flagged: Sequence[int]
) -> tuple[Slice, ...]:
    """The slices of new rows, ``candidates`` by number in the manifest, those that are over their limit first.

    Rows that cannot be judged count as rows of their slice and are not flagged: the gate trips for them anyway.
    """
    found: list[Slice] = []
    for column, limit in limits.items():
        rows, hit = (Counter(_values(scores, column, which)) for which in (candidates, flagged))
        for value, count in rows.items():
            found.append(Slice(column, value, count, hit[value], limit, rows_allowed(limit, count)))
    return tuple(sorted(found, key=lambda s: (-s.over, s.allowed - s.flagged, s.column, s.value)))


def _values(scores: ScoreTable, column: str, rows: Sequence[int]) -> list[str]:
    """The values of some rows as text; those of the label column by the names of the classes."""
    manifest = scores.manifest
    taken: list[Any] = manifest.table.column(column).take(pa.array(list(rows), pa.int64())).to_pylist()
    if column == scores.label and manifest.label_kind.holds == CLASSES:
        taken = [str(manifest.label_kind.plain(manifest.labels[row], manifest.classes)) for row in rows]
    return [NONE if value is None else str(value) for value in taken]

"""Checks of a manifest's rows: the first bad row is refused by name, or every bad row is listed and left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.ids import Ids, distinct
from influence_cli.data.kinds.protocol import is_text
from influence_cli.data.split_column import CODES, SKIPPED, SPLITS, Splits
from influence_cli.errors import ManifestError
from influence_cli.store.arrow import values_of


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: its position, its id where it has one, the column at fault, and why."""

    row: int
    id: str | None
    column: str
    reason: str


class RowChecks:
    """What is wrong with the rows of one table; raises at the first, or with ``skip`` collects one reason a row."""

    def __init__(self, source: str, table: pa.Table, skip: bool = False) -> None:
        self.source, self.table, self.skip = source, table, skip
        self.bad: dict[int, BadRow] = {}

    def name(self, row: int) -> str | None:
        """The id of a row, or None where it has none."""
        value = self.table.column("id")[row].as_py()
        return None if value is None else str(value)

    def place(self, row: int, column: str) -> str:
        """'FILE, row id=ID, column NAME', for errors."""
        name = self.name(row)
        return f"{self.source}, {f'row {row}' if name is None else f'row id={name}'}, column {column}"

    def fail(self, row: int, column: str, what: str, fix: str) -> None:
        """Refuse a row.  Raises ManifestError: bad rows are not skipped."""
        if not self.skip:
            raise ManifestError(what, where=self.place(row, column), fix=f"{fix}, or pass --skip-bad")
        self.bad.setdefault(row, BadRow(row, self.name(row), column, what))

    def left_out(self, splits: Splits) -> tuple[Splits, tuple[BadRow, ...]]:
        """The splits [n] in which rows that are left out are ``SKIPPED``, and these rows in order."""
        if not self.bad:
            return splits, ()
        splits = splits.copy()
        splits[list(self.bad)] = SKIPPED
        return splits, tuple(self.bad[row] for row in sorted(self.bad))

    def each(self, rows: NDArray[Any], column: str, what: Callable[[int], str], fix: str) -> None:
        """Refuse every one of ``rows``."""
        for row in rows.tolist():
            self.fail(row, column, what(row), fix)


def checked_columns(
    checks: RowChecks, labels: Callable[[RowChecks], NDArray[Any]], ids_checked: bool = False
) -> tuple[NDArray[Any], Splits]:
    """Labels as ``labels`` reads them, and splits [n], after a check of ids and weights too.

    With ``ids_checked`` the ids are known to be texts of which none stands twice.

    Raises:
        ManifestError: a column is of another type than it has to be, or a row is refused.
    """
    if not ids_checked:
        _check_ids(checks)
    read = labels(checks)
    splits = _splits(checks)
    _check_weights(checks)
    return read, splits


def _check_ids(checks: RowChecks) -> None:
    """Ids are text, none is null, none stands twice (the first keeps it)."""
    ids = checks.table.column("id")
    if not is_text(ids.type):
        where = f"{checks.source}, column id"
        raise ManifestError(f"ids are {ids.type}, not strings", where=where, fix="cast them to string")
    if ids.null_count == 0 and distinct(Ids(ids)):
        return
    seen: set[str] = set()
    for row, value in enumerate(ids.to_pylist()):
        if value is None:
            checks.fail(row, "id", "an id is null", "name every row")
        elif value in seen:
            checks.fail(row, "id", "an id is there twice", "make ids unique")
        else:
            seen.add(value)


def _splits(checks: RowChecks) -> Splits:
    """Every row is a train row where there is no such column."""
    if "split" not in checks.table.column_names:
        return Splits.all_of("train", checks.table.num_rows)
    column = checks.table.column("split")
    try:
        coded = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    except pa.ArrowNotImplementedError as error:  # of lists, structs and the like
        where = f"{checks.source}, column split"
        raise ManifestError(f"splits are {column.type}, not strings", where=where, fix="cast them to string") from error
    values = [*(coded.chunk(0).dictionary.to_pylist() if coded.num_chunks else ()), None]
    known = np.array([CODES[v] if v in SPLITS else CODES[SKIPPED] for v in values], np.uint8)
    last = len(values) - 1  # of null
    codes = np.concatenate([np.zeros(0, np.uint8), *(known[values_of(c.indices, last)] for c in coded.chunks)])
    unknown, fix = np.flatnonzero(codes == CODES[SKIPPED]), f"use one of {', '.join(SPLITS)}"
    checks.each(unknown, "split", lambda row: f"unknown split {column[row].as_py()!r}", fix)
    return Splits(codes)


def _check_weights(checks: RowChecks) -> None:
    """Weights are finite and not negative."""
    if "weight" not in checks.table.column_names:
        return
    kind = checks.table.schema.field("weight").type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        where = f"{checks.source}, column weight"
        raise ManifestError(f"weights are {kind}, not numbers", where=where, fix="cast them")
    weights = values_of(checks.table.column("weight").cast(pa.float64()), 1.0)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    checks.each(bad, "weight", lambda row: f"a weight is {weights[row]}", "use finite weights >= 0")

"""Which train rows are known to be wrong: by a column of clean labels, or by a list of ids."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.formulas import MARK, unquoted
from influence_cli.data.labels import wrong_labels
from influence_cli.data.manifest import Rows
from influence_cli.errors import ManifestError, UsageError
from influence_cli.events import SILENT, Listener
from influence_cli.store.keys import parse_json
from influence_cli.store.lfs import refuse_pointer

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Truth:
    """Which rows [n] are wrong, among those of which that is known."""

    wrong: Mask
    known: Mask
    source: str  # where it is from, for people

    def without(self, rows: Mask) -> Truth:
        """The truth about all rows but these."""
        return Truth(self.wrong & ~rows, self.known & ~rows, self.source)


def truth_of_column(rows: Rows, column: str) -> Truth | None:
    """Truth from a column of clean labels: a row is wrong where it differs, unknown where it is null.

    None where there is no such column.

    Raises:
        ManifestError: it says that no row is wrong, or that every row is.
    """
    found = wrong_labels(rows, column=column)
    return None if found is None else _two_kinds(Truth(*found, f"{rows.manifest.source}, column {column}"))


def truth_of_list(rows: Rows, path: str, listener: Listener = SILENT) -> Truth:
    """Truth from a list of ids that are wrong; every other row counts as right.

    Ids of rows that have no score (of other splits, or left out) are counted in a note and set aside.

    Raises:
        UsageError: the list cannot be read.
        ManifestError: an id is no row's, or the list names no train row or every one.
    """
    named = read_ids(path)
    elsewhere = named - set(rows.ids)
    split = {i: s for i, s in zip(rows.manifest.ids, rows.manifest.splits.tolist(), strict=True) if i in elsewhere}
    unknown = elsewhere - split.keys()
    if unknown:
        what = f"row id={min(unknown)} is no train row, nor any other ({len(unknown)} of {len(named)} are none)"
        raise ManifestError(what, where=path, fix=f"list ids of train rows of {rows.manifest.source}")
    parts = ", ".join(f"{count} {name}" for name, count in sorted(Counter(split.values()).items()))
    if 0 < len(split) < len(named):
        listener.note(f"{path}: {len(split)} of {len(named)} ids are of rows that have no score ({parts}): set aside")
    if len(split) == len(named) > 0:
        fix = "list ids of train rows, or score a manifest in which these rows have split train"
        raise ManifestError(f"no id is of a train row: all {len(named)} are of others ({parts})", where=path, fix=fix)
    wrong = np.array([i in named for i in rows.ids])
    return _two_kinds(Truth(wrong, np.ones(len(rows), dtype=bool), path))


def _two_kinds(truth: Truth) -> Truth:
    wrong, known = int(truth.wrong.sum()), int(truth.known.sum())
    if wrong in (0, known):
        what = f"{wrong} of {known} train labels are wrong: there is nothing to tell apart"
        raise ManifestError(what, where=truth.source, fix="check the column, or the list")
    return truth


def read_ids(path: str) -> set[str]:
    """Ids from a file: one a line; a CSV with a column id; JSONL or a JSON list of ids or of objects with an id.

    Raises:
        UsageError: it is none of these.
    """
    refuse_pointer(path)
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")  # a return in an id stays
        suffix = Path(path).suffix
        if suffix == ".csv":
            rows = csv.DictReader(io.StringIO(text, newline=""))
            if "id" not in (rows.fieldnames or ()):
                raise ValueError("no column id")
            return {unquoted(row["id"]) if MARK in row else row["id"] for row in rows}
        if suffix in (".json", ".jsonl"):
            values = parse_json(text) if suffix == ".json" else [parse_json(s) for s in text.splitlines() if s.strip()]
            return {_id_of(v) for v in values}
        return {line.strip() for line in text.splitlines() if line.strip()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "write one id a line, a CSV with a column id, or JSONL"
        raise UsageError(f"the list of wrong rows cannot be read ({error})", where=path, fix=fix) from error


def _id_of(value: Any) -> str:
    found_id = value["id"] if isinstance(value, dict) else value
    if not isinstance(found_id, str):
        raise ValueError(f"{found_id!r} is no id")
    return found_id

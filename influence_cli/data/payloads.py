"""Payloads where a manifest keeps them: streamed from Parquet, read from files, named by content."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.kinds.protocol import BadPayload, Kind, Payload, read_file
from influence_cli.data.outside import Inside
from influence_cli.data.row_checks import RowChecks
from influence_cli.data.tables import read_batches, read_schema
from influence_cli.errors import ManifestError
from influence_cli.store.file_keys import StoredFileKeys
from influence_cli.store.keys import KEY_BYTES, Keys, keys_of_rows, stack
from influence_cli.store.lfs import FIX, WHAT, is_pointer


def payload_batches(files: Sequence[Path], kind: Kind) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(first row, the payload's columns) of each record batch, in file order."""
    first = 0
    for file in files:
        for batch in read_batches(file, kind.batch_rows, list(kind.columns)):
            yield first, batch
            first += batch.num_rows


def rows_outside(files: Sequence[Path], kind: Kind, folder: Path) -> int:
    """How many rows name files outside of a folder: whoever reads them there has to allow it (see ``outside``)."""
    if not files or not kind.by_path(read_schema(files[0])):
        return 0
    inside = Inside(folder)
    stored = (s for _, batch in payload_batches(files, kind) for s in kind.stored(batch, folder))
    return sum(isinstance(s, Path) and not inside.holds(s) for s in stored)


def read_payload(stored: Payload | Path | None, where: Callable[[], str]) -> Payload:
    """The payload, read from its file where it is one.

    Raises:
        ManifestError: it is empty, or its file cannot be read.
    """
    if stored is None:
        raise ManifestError("the payload is empty", where=where(), fix="fill it in or take the row out")
    if not isinstance(stored, Path):
        return stored
    try:
        return read_file(stored)
    except OSError as error:
        fix = "name a regular file; paths count from the manifest's folder"
        raise ManifestError(f"cannot read {stored} ({error.strerror})", where=where(), fix=fix) from error


def payload_keys(
    files: Sequence[Path], kind: Kind, folder: Path, checks: RowChecks, known: StoredFileKeys | None = None
) -> Keys:
    """Payload keys [n, 16], by streaming every payload once; zeros for rows that are left out.

    Raises:
        ManifestError: a payload is empty, unreadable, in a file that may not be read (see ``outside``), or has a
            feature that is not finite (unless rows are skipped).
    """
    inside = Inside(folder)
    keys: list[Keys] = [stack([])]
    widths: dict[str, list[NDArray[np.int64]]] = {column: [] for column in kind.columns}
    for first, batch in payload_batches(files, kind):
        together = kind.raw_rows(batch)
        if together is None:
            pairs = [_key(s, first + k, kind, checks, inside, known) for k, s in enumerate(kind.stored(batch, folder))]
            keys.append(stack([key for key, _ in pairs]))
            for column, found in widths.items():
                found.append(np.array([width.get(column, -1) for _, width in pairs], dtype=np.int64))
        else:
            keys.append(keys_of_rows(kind.domain.encode(), together))
            for found in widths.values():
                found.append(np.full(len(together), together.shape[1], dtype=np.int64))
    for column, found in widths.items():
        _check_widths(checks, np.concatenate(found or [np.zeros(0, np.int64)]), column)
    if known is not None:
        known.save()
    return np.concatenate(keys)


def _key(
    stored: Any, row: int, kind: Kind, checks: RowChecks, inside: Inside, known: StoredFileKeys | None
) -> tuple[bytes, dict[str, int]]:
    """A payload's key, and how many numbers each of its columns holds; zeros for a row that is left out."""
    outside = inside.fault(stored) if isinstance(stored, Path) else None
    if outside is not None:
        checks.fail(row, kind.column, str(outside), outside.fix)
        return bytes(KEY_BYTES), {}
    found = known.find(stored) if known is not None and isinstance(stored, Path) else None
    if found is not None:
        return found, {}
    try:
        payload = read_payload(stored, functools.partial(checks.place, row, kind.column))
        pointer = isinstance(payload, bytes) and is_pointer(payload)
        bad = BadPayload(WHAT, FIX) if pointer else kind.fault(payload)
    except ManifestError as error:
        payload, bad = None, BadPayload(error.what, error.fix)
    if bad is not None:
        checks.fail(row, kind.column, str(bad), bad.fix)
        return bytes(KEY_BYTES), {}
    key = kind.key(payload)
    if known is not None and isinstance(stored, Path):
        known.put(stored, key)
    return key, kind.widths(payload)


def _check_widths(checks: RowChecks, widths: NDArray[np.int64], column: str) -> None:
    """Vectors of a column are all as long as most of them are; ``widths`` [n] is -1 where a row has none."""
    values, counts = np.unique(widths[widths >= 0], return_counts=True)
    if len(values) > 1:
        usual = int(values[counts.argmax()])
        odd = np.flatnonzero((widths >= 0) & (widths != usual))
        what = lambda row: f"{widths[row]} features where most rows have {usual}"  # noqa: E731
        checks.each(odd, column, what, "give every row the same features")

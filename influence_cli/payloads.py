"""Payloads where a manifest keeps them: streamed from Parquet, read from files, named by content."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from influence_cli.errors import ManifestError
from influence_cli.store.keys import Keys, payload_key, stack
from influence_cli.tables import damaged

Payload = bytes | NDArray[np.float32]


def payload_batches(files: Sequence[Path], kind: str) -> Iterator[tuple[int, pa.Array]]:
    """(first row, payload column) of each record batch, in file order."""
    first = 0
    for file in files:
        try:
            with pa.OSFile(str(file)) as handle, pq.ParquetFile(handle) as reader:
                for batch in reader.iter_batches(batch_size=1024, columns=[kind]):
                    yield first, batch.column(0)
                    first += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise damaged(file, error) from error


def payload_values(column: pa.Array, kind: str, folder: Path) -> list[Payload | Path | None]:
    """Payloads as they are stored; a Path where only a path is."""
    if kind == "features":
        return _feature_values(column)
    if kind == "path":
        return [None if v is None else folder / v for v in column.to_pylist()]
    if pa.types.is_struct(column.type):
        return [_image_value(v, folder) for v in column.to_pylist()]
    return column.to_pylist()


def _feature_values(column: pa.Array) -> list[Payload | Path | None]:
    """Feature vectors f32; rows of one buffer where none is null and all are as long, which is quick."""
    lengths = column.value_lengths() if not pa.types.is_fixed_size_list(column.type) else None
    values = column.flatten()  # leaves null rows out
    even = lengths is None or (len(lengths) > 0 and lengths.null_count == 0 and len(lengths.unique()) == 1)
    if len(column) and column.null_count == 0 and values.null_count == 0 and even:
        stacked = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        return list(stacked.reshape(len(column), -1))
    return [None if v is None else np.asarray(v, dtype=np.float32) for v in column.to_pylist()]


def _image_value(value: dict[str, Any] | None, folder: Path) -> bytes | Path | None:
    if value is None:
        return None
    if value.get("bytes") is not None:
        return value["bytes"]
    return folder / value["path"] if value.get("path") else None


def read_payload(value: Payload | Path | None, where: Callable[[], str]) -> Payload:
    """The payload, read from its file where it is one.

    Raises:
        ManifestError: it is empty, or its file cannot be read.
    """
    if value is None:
        raise ManifestError("the payload is empty", where=where(), fix="fill it in or take the row out")
    if not isinstance(value, Path):
        return value
    try:
        return value.read_bytes()
    except OSError as error:
        raise ManifestError(
            f"cannot read {value} ({error.strerror})", where=where(), fix="paths count from the manifest's folder"
        ) from error


def payload_keys(files: Sequence[Path], kind: str, table: pa.Table, source: str) -> Keys:
    """Payload keys [n, 16], by streaming every payload once.

    Raises:
        ManifestError: a payload is empty, unreadable, or has a feature that is not finite.
    """
    domain = "influence.feat" if kind == "features" else "influence.image"
    keys: list[bytes] = []
    for first, column in payload_batches(files, kind):
        for offset, stored in enumerate(payload_values(column, kind, files[0].parent)):
            where = functools.partial(row_place, source, table, first + offset, kind)
            value = read_payload(stored, where)
            if isinstance(value, np.ndarray):
                if not np.isfinite(value).all():
                    raise ManifestError("a feature is not finite", where=where(), fix="impute it or take the row out")
                value = value.astype("<f4").tobytes()
            keys.append(payload_key(domain, value))
    return stack(keys)


def row_place(source: str, table: pa.Table, row: int, column: str) -> str:
    """'FILE, row id=ID, column NAME', for errors."""
    return f"{source}, row id={table.column('id')[row].as_py()}, column {column}"

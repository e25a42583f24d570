"""(0) The table every stage reads: schema, keys, provenance, "-" in and out.

A manifest is a Parquet file, or a folder of them, with one row per example: ``id`` (unique string), a payload
(``image`` as bytes or ``{bytes, path}``, ``path``, or ``features``), ``label`` (integer), and optionally ``split``
(train, val, test), ``group``, ``weight`` and ``clean_label``.  Narrow columns are held in memory; payloads are
streamed, and named by the hash of what is stored (``store.keys``).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.errors import ManifestError
from influence_cli.payloads import Payload, payload_batches, payload_keys, payload_values, read_payload, row_place
from influence_cli.store.keys import Keys, digest_of_sorted, fingerprint, row_keys
from influence_cli.store.shards import positions
from influence_cli.tables import concatenated, parquet_files, read_parquet, read_schema

PAYLOADS = ("image", "path", "features")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Manifest:
    """A checked manifest: its narrow columns, labels [n] and keys [n, 16], and where the payload is."""

    source: str
    files: tuple[Path, ...]
    kind: str  # one of PAYLOADS
    table: pa.Table  # every column but the payload
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    payload_keys: Keys
    row_keys: Keys
    classes: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def ids(self) -> list[str]:
        """Row ids, in order."""
        return self.table.column("id").to_pylist()

    def rows(self, split: str) -> Rows:
        """The rows of one split, in order."""
        return Rows(self, np.flatnonzero(self.splits == split))

    def all_rows(self) -> Rows:
        """Every row, in order."""
        return Rows(self, np.arange(len(self)))

    def payloads(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, Payload]]:
        """(row, payload) for ``rows`` in ascending order, streamed: batches without a wanted row are skipped."""
        wanted = np.sort(rows)
        for first, column in payload_batches(self.files, self.kind):
            low, high = np.searchsorted(wanted, [first, first + len(column)])
            if low == high:
                continue
            chosen = wanted[low:high]
            values = payload_values(column.take(pa.array(chosen - first)), self.kind, self.files[0].parent)
            for row, value in zip(chosen.tolist(), values, strict=True):
                yield row, read_payload(value, functools.partial(row_place, self.source, self.table, row, self.kind))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Name of the content that stages agree on: ids, rows and splits, in any order (weights change no score)."""
        entries = sorted(
            [i, k.tobytes().hex(), s] for i, k, s in zip(self.ids, self.row_keys, self.splits.tolist(), strict=True)
        )
        return fingerprint("manifest", 1, rows=entries)

    def weights(self) -> NDArray[np.float64]:
        """Row weights [n]; 1 where there is no ``weight`` column."""
        if "weight" not in self.table.column_names:
            return np.ones(len(self))
        return self.table.column("weight").cast(pa.float64()).fill_null(1.0).to_numpy()

    def column(self, name: str) -> NDArray[Any] | None:
        """A narrow column as an array, or None where there is none."""
        if name not in self.table.column_names:
            return None
        return self.table.column(name).to_numpy(zero_copy_only=False)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a manifest, by position."""

    manifest: Manifest
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    @functools.cached_property
    def ids(self) -> list[str]:
        """Row ids."""
        ids = self.manifest.ids
        return [ids[i] for i in self.index.tolist()]

    @functools.cached_property
    def labels(self) -> NDArray[np.int64]:
        """Labels [n]."""
        return self.manifest.labels[self.index]

    @functools.cached_property
    def payload_keys(self) -> Keys:
        """Payload keys [n, 16]."""
        return self.manifest.payload_keys[self.index]

    @functools.cached_property
    def row_keys(self) -> Keys:
        """Row keys [n, 16]."""
        return self.manifest.row_keys[self.index]

    @functools.cached_property
    def weights(self) -> NDArray[np.float64]:
        """Weights [n]."""
        return self.manifest.weights()[self.index]

    def clean_labels(self, column: str = "clean_label") -> NDArray[np.int64] | None:
        """True labels [n], -1 where unknown; None where there is no such column.

        Raises:
            ManifestError: they are no integers.
        """
        if column not in self.manifest.table.column_names:
            return None
        values = self.manifest.table.column(column)
        if not pa.types.is_integer(values.type):
            where = f"{self.manifest.source}, column {column}"
            raise ManifestError(f"clean labels are {values.type}, not integers", where=where, fix="number the classes")
        return values.fill_null(-1).to_numpy().astype(np.int64)[self.index]

    def fingerprint(self) -> str:
        """Name of the multiset of row keys: order and ids do not matter."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        return digest_of_sorted(self.row_keys)

    def take(self, chosen: NDArray[Any]) -> Rows:
        """A subset, by boolean mask or by positions among these rows."""
        return Rows(self.manifest, self.index[chosen])


def read_manifest(source: str, files: Sequence[Path], label: str = "label") -> Manifest:
    """Read and check a manifest.

    Raises:
        ManifestError: a column is missing, an id is null or twice there, a label is null or no integer, a split is
            unknown, a weight is negative, a payload is empty or unreadable.
    """
    schema = read_schema(files[0])
    kind = next((k for k in PAYLOADS if k in schema.names), None)
    if kind is None:
        raise ManifestError("no payload column", where=source, fix="a manifest needs one of: " + ", ".join(PAYLOADS))
    for needed in ("id", label):
        if needed not in schema.names:
            fix = f"columns there are: {', '.join(schema.names)}"
            raise ManifestError(
                f"no column {needed!r}",
                where=source,
                fix=fix + ("; pass --label COLUMN" if needed == label else ""),
            )
    narrow = [n for n in schema.names if n != kind]
    for file in files[1:]:
        odd = _differing(schema, read_schema(file))
        if odd:
            fix = "write all files with one schema"
            raise ManifestError(f"the files have different columns ({odd})", where=f"{source}: {file.name}", fix=fix)
    table = concatenated([read_parquet(f, narrow) for f in files], source)
    if table.num_rows == 0:
        raise ManifestError("the manifest has no rows", where=source, fix="give a manifest with train rows")
    _check_ids(table, source)
    labels = _labels(table, label, source)
    splits = _splits(table, source)
    _check_weights(table, source)
    _check_payload_type(schema, kind, source)
    keys = payload_keys(files, kind, table, source)
    return Manifest(
        source,
        tuple(files),
        kind,
        table,
        labels,
        splits,
        keys,
        row_keys(keys, labels),
        _classes(schema, files[0]),
    )


def _differing(schema: pa.Schema, other: pa.Schema) -> str:
    """The columns that are missing from one of two schemas, or have another type."""
    names = sorted({*schema.names, *other.names})
    both = [n for n in names if n in schema.names and n in other.names]
    odd = [n for n in names if n not in both] + [n for n in both if schema.field(n).type != other.field(n).type]
    return ", ".join(odd)


def open_manifest(path: str | Path, label: str = "label") -> Manifest:
    """Read a manifest from a file or folder of Parquet files."""
    return read_manifest(str(path), parquet_files(str(path)), label)


def _check_ids(table: pa.Table, source: str) -> None:
    ids = table.column("id")
    if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise ManifestError(f"ids are {ids.type}, not strings", where=f"{source}, column id", fix="cast them to string")
    seen: set[str] = set()
    for row, value in enumerate(ids.to_pylist()):
        if value is None:
            raise ManifestError("an id is null", where=f"{source}, row {row}, column id", fix="name every row")
        if value in seen:
            raise ManifestError(
                "an id is there twice", where=f"{source}, row id={value}, column id", fix="make ids unique"
            )
        seen.add(value)


def _labels(table: pa.Table, label: str, source: str) -> NDArray[np.int64]:
    column = table.column(label)
    if not pa.types.is_integer(column.type):
        raise ManifestError(
            f"labels are {column.type}, not integers",
            where=f"{source}, column {label}",
            fix="number the classes from 0 and name them in the schema metadata key 'classes'",
        )
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise ManifestError(
            "a label is null", where=row_place(source, table, row, label), fix="label it or take it out"
        )
    labels = column.to_numpy().astype(np.int64)
    if labels.min() < 0:
        row = int(np.argmax(labels < 0))
        raise ManifestError(
            f"a label is negative ({labels[row]})",
            where=row_place(source, table, row, label),
            fix="number the classes from 0",
        )
    return labels


def _splits(table: pa.Table, source: str) -> NDArray[np.str_]:
    if "split" not in table.column_names:
        return np.full(table.num_rows, "train")
    values = table.column("split").to_pylist()
    for row, value in enumerate(values):
        if value not in SPLITS:
            raise ManifestError(
                f"unknown split {value!r}",
                where=row_place(source, table, row, "split"),
                fix=f"use one of {', '.join(SPLITS)}",
            )
    return np.array(values)


def _check_weights(table: pa.Table, source: str) -> None:
    if "weight" not in table.column_names:
        return
    kind = table.schema.field("weight").type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ManifestError(f"weights are {kind}, not numbers", where=f"{source}, column weight", fix="cast them")
    weights = table.column("weight").cast(pa.float64()).fill_null(1.0).to_numpy()
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise ManifestError(
            f"a weight is {weights[row]}",
            where=row_place(source, table, row, "weight"),
            fix="use finite weights >= 0",
        )


def _check_payload_type(schema: pa.Schema, kind: str, source: str) -> None:
    """Refuse a payload column whose type holds no payload."""
    found = schema.field(kind).type
    is_list = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
    number = is_list and (pa.types.is_floating(found.value_type) or pa.types.is_integer(found.value_type))
    is_bytes = pa.types.is_binary(found) or pa.types.is_large_binary(found)
    is_text = pa.types.is_string(found) or pa.types.is_large_string(found)
    good, wanted = {
        "features": (number, "a list of numbers"),
        "path": (is_text, "text"),
        "image": (is_bytes or pa.types.is_struct(found), "bytes or {bytes, path}"),
    }[kind]
    if not good:
        where = f"{source}, column {kind}"
        raise ManifestError(f"column {kind} is {found}, not {wanted}", where=where, fix=f"store {wanted}")


def _classes(schema: pa.Schema, file: Path) -> tuple[str, ...] | None:
    stored = (schema.metadata or {}).get(b"classes")
    beside = file.parent / "classes.json"
    if stored is None and beside.exists():
        stored = beside.read_bytes()
    if stored is None:
        return None
    try:
        names = json.loads(stored)
    except ValueError:
        return None
    return tuple(str(n) for n in names) if isinstance(names, list) else None


def without_overlap(target: Rows, train: Rows) -> tuple[Rows, Rows]:
    """Target rows whose payload is no training row's, and those whose payload is."""
    same = positions(target.payload_keys, train.payload_keys) >= 0
    return target.take(~same), target.take(same)

"""(0) The table every stage reads: schema, keys, provenance, "-" in and out.

A manifest is a Parquet file, or a folder of them, with one row per example: ``id`` (unique string), a payload in the
columns of its kind (``data.kinds``), ``label`` (the number of a class, or as its task says: ``data.label_kinds``), and
optionally ``split`` (train, val, test), ``group``, ``weight`` and ``clean_label``.  Narrow columns are held in memory;
payloads are streamed, and named by the hash of what is stored (``store.keys``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.classes import classes_of_files
from influence_cli.data.ids import Ids
from influence_cli.data.kinds import KINDS, kind_in
from influence_cli.data.kinds.protocol import Decoded, InputSpec, Kind, Payload
from influence_cli.data.label_kinds import (
    CLASSES,
    DEFAULT,
    LANGUAGE,
    NOTHING,
    TASK_KEY,
    TASKS,
    LabelKind,
    one_task,
    task_in,
)
from influence_cli.data.lean_tables import ids_in_one_piece, sharing_labels
from influence_cli.data.partitions import folder_of
from influence_cli.data.payloads import payload_batches, payload_keys, read_payload
from influence_cli.data.row_checks import BadRow, RowChecks, checked_columns
from influence_cli.data.row_names import digest_of_ids, named_rows
from influence_cli.data.split_column import SKIPPED, Splits
from influence_cli.data.tables import concatenated, differing, manifest_command, read_parquet, read_schema, refuse_twins
from influence_cli.errors import ManifestError
from influence_cli.store.arrow import array_of, values_of
from influence_cli.store.file_keys import StoredFileKeys
from influence_cli.store.keys import Keys, digest_of_sorted, row_keys, taken
from influence_cli.store.manifest_keys import LEAST_ROWS, ReadBefore, digest_of_parts
from influence_cli.store.shards import positions

LABEL = "label"  # the column of labels, unless another is named


@dataclass(frozen=True, eq=False)
class Manifest:
    """A checked manifest: its narrow columns, labels [n] and keys [n, 16], and where the payload is."""

    source: str
    files: tuple[Path, ...]
    kind: str  # the name of its payload's
    table: pa.Table  # every column but the payload
    labels: NDArray[Any]  # int64 classes [n], or as the task has them
    splits: Splits
    payload_keys: Keys
    row_keys: Keys
    classes: tuple[str, ...] | None
    folder: Path  # what relative payload paths count from
    bad: tuple[BadRow, ...] = ()  # rows that are left out: their split is SKIPPED
    bad_when_read: int = 0  # how many of them reading finds again; the others depend on the model
    numbers: Mapping[int, int] | None = None  # what the labels in the files are, where others are numbered otherwise
    task: str = DEFAULT

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def payload_kind(self) -> Kind:
        """What its payloads are."""
        return KINDS[self.kind]

    @property
    def labelled(self) -> bool:
        """Whether its rows have labels; others are to be predicted themselves."""
        return self.label_kind.holds != NOTHING

    @property
    def label_kind(self) -> LabelKind:
        """What its labels are."""
        return TASKS[self.task]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of its classes, where labels are classes that have names."""
        return self.classes if self.label_kind.holds == CLASSES else None

    @functools.cached_property
    def ids(self) -> Ids:
        """Row ids, in order."""
        return Ids(self.table.column("id"))

    def place(self, row: int, column: str | None = None) -> str:
        """'FILE, row id=ID, column NAME', for errors."""
        return f"{self.source}, row id={self.ids[row]}" + ("" if column is None else f", column {column}")

    def rows(self, split: str) -> Rows:
        """The rows of one split, in order."""
        return Rows(self, np.flatnonzero(self.splits == split))

    def all_rows(self) -> Rows:
        """Every row that is not left out, in order."""
        return Rows(self, np.flatnonzero(self.splits != SKIPPED))

    @property
    def left_out(self) -> dict[str, list[BadRow]]:
        """Rows that cannot be used, by manifest."""
        return {self.source: list(self.bad)} if self.bad else {}

    def without(self, bad: Sequence[BadRow]) -> Manifest:
        """The manifest with more rows left out; its fingerprint stays that of what was read."""
        splits = self.splits.copy()
        splits[[b.row for b in bad]] = SKIPPED
        changed = replace(self, splits=splits, bad=(*self.bad, *bad))
        changed.__dict__["fingerprint"] = self.fingerprint
        return changed

    def without_ids(self, ids: Sequence[str], why: str) -> Manifest:
        """The manifest without the rows of these ids, where they are not left out already."""
        gone = set[str](ids)
        if not gone:
            return self
        rows = [k for k, i in enumerate(self.ids) if i in gone and self.splits[k] != SKIPPED]
        return self.without([BadRow(k, self.ids[k], self.payload_kind.column, why) for k in rows])

    def payloads(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, Payload]]:
        """(row, payload) for ``rows`` in ascending order, streamed: batches without a wanted row are skipped."""
        wanted, kind = np.sort(rows), self.payload_kind
        for first, batch in payload_batches(self.files, kind):
            low, high = np.searchsorted(wanted, [first, first + len(batch)])
            if low == high:
                continue
            chosen = wanted[low:high]
            values = kind.stored(batch.take(array_of(chosen - first)), self.folder)
            for row, value in zip(chosen.tolist(), values, strict=True):
                yield row, read_payload(value, functools.partial(self.place, row, kind.column))

    def decoded(self, row: int, payload: Payload, spec: InputSpec) -> Decoded:
        """One row's values as a model is fed with them; no torch is imported, so that a warm run may decode too.

        Raises:
            ManifestError: it cannot be decoded.
        """
        kind = spec.payload_kind
        try:
            return kind.decode(payload, spec)
        except ValueError as error:
            fix = f"{getattr(error, 'fix', kind.repair)}, or pass --skip-bad"
            raise ManifestError(str(error), where=self.place(row, self.payload_kind.column), fix=fix) from error

    @functools.cached_property
    def fingerprint(self) -> str:
        """Name of the content that stages agree on: ids, rows and splits, in any order (weights change no score)."""
        used = np.flatnonzero(self.splits != SKIPPED)
        return named_rows(self.ids.take(used), taken(self.row_keys, used), self.splits[used])

    def weights(self) -> NDArray[np.float64]:
        """Row weights [n]; 1 where there is no ``weight`` column."""
        if "weight" not in self.table.column_names:
            return np.ones(len(self))
        return values_of(self.table.column("weight").cast(pa.float64()), 1.0)

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
    def ids(self) -> Ids:
        """Row ids."""
        return self.manifest.ids.take(self.index)

    @functools.cached_property
    def labels(self) -> NDArray[Any]:
        """Labels [n], or [n, L]."""
        return self._of(self.manifest.labels)

    @functools.cached_property
    def strata(self) -> NDArray[np.int64]:
        """The class of every row [n], or one number for all where labels are no classes."""
        return self.manifest.label_kind.strata(self.labels)

    @functools.cached_property
    def payload_keys(self) -> Keys:
        """Payload keys [n, 16]."""
        return self._of(self.manifest.payload_keys)

    @functools.cached_property
    def row_keys(self) -> Keys:
        """Row keys [n, 16]."""
        return self._of(self.manifest.row_keys)

    def _of(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values of these rows; those of the manifest themselves where they are all of its rows."""
        return values if self._every else taken(values, self.index)

    @functools.cached_property
    def _every(self) -> bool:
        n = len(self.manifest)
        return len(self.index) == n and bool((self.index == np.arange(n)).all())

    @functools.cached_property
    def weights(self) -> NDArray[np.float64]:
        """Weights [n]."""
        return self._of(self.manifest.weights())

    @functools.cached_property
    def _fingerprint(self) -> str:
        return digest_of_sorted(self.row_keys)

    def fingerprint(self) -> str:
        """Name of the multiset of row keys: order and ids do not matter."""
        return self._fingerprint

    def undecodable(self, spec: InputSpec) -> list[BadRow]:
        """Every row whose payload cannot be decoded into a model's input."""
        manifest, found = self.manifest, list[BadRow]()
        for row, payload in manifest.payloads(self.index):
            try:
                spec.payload_kind.decode(payload, spec)
            except ValueError as error:
                found.append(BadRow(row, manifest.ids[row], manifest.payload_kind.column, str(error)))
        return found

    def take(self, chosen: NDArray[Any]) -> Rows:
        """A subset, by boolean mask or by positions among these rows."""
        return Rows(self.manifest, self.index[chosen])


def read_manifest(
    source: str,
    files: Sequence[Path],
    label: str = LABEL,
    *,
    skip_bad: bool = False,
    folder: Path | None = None,
    known: StoredFileKeys | None = None,
) -> Manifest:
    """Read and check a manifest.

    With ``skip_bad`` rows that cannot be used are left out and listed in ``bad``.  Relative payload paths count from
    ``folder`` (None: where the first file is).  ``known`` remembers the keys of payload files between runs.

    Raises:
        ManifestError: a column is missing or of the wrong type; an id is null or twice there, a label is null or
            none of its task, a split is unknown, a weight is negative, a payload is empty, unreadable, not finite or of
            another length (unless bad rows are skipped); or no row is left.
    """
    schema = read_schema(files[0])
    kind = _check_columns(schema, label, source, files)
    table = concatenated([read_parquet(f, [n for n in schema.names if n not in kind.columns]) for f in files], source)
    if table.num_rows == 0:
        raise ManifestError("the manifest has no rows", where=source, fix="give a manifest with train rows")
    classes = classes_of_files(files, source)
    task = one_task({file.name: _task(read_schema(file), kind, label, source) for file in files}, source)
    folder = folder_of(files[0]) if folder is None else folder
    table = ids_in_one_piece(table)
    checks = RowChecks(source, table, skip_bad)
    memo = None if known is None else known.manifests
    before, ids = (None if memo is None else memo.find(files, kind.name)), digest_of_ids(table)
    ids_checked = before is not None and before.ids == ids
    labels, splits = checked_columns(checks, lambda found: TASKS[task].read(found, label), ids_checked)
    good = len(checks.bad)
    keys = payload_keys(files, kind, folder, checks, known) if before is None else before.payload_keys
    embedded = len(checks.bad) == good and not kind.by_path(schema)
    if len(keys) != table.num_rows:
        what = f"column {kind.column} has {len(keys)} values for {table.num_rows} rows: the file is damaged"
        raise ManifestError(what, where=source, fix="write it again")
    splits, bad = checks.left_out(splits)
    if len(bad) == table.num_rows:
        first = f"{source}, row {bad[0].row}, column {bad[0].column}"
        raise ManifestError(f"no usable row: {bad[0].reason}", where=first, fix="repair the rows")
    if classes is not None and labels.ndim == 2 and labels.shape[1] != len(classes):
        what = f"{len(classes)} names for {labels.shape[1]} labels a row"
        raise ManifestError(what, where=f"{source}, classes", fix="name every label once, in order")
    rows = None if memo is None else digest_of_parts(ids, keys, str(labels.dtype), labels, splits.digest())
    known_rows = before is not None and before.rows == rows
    named = before.row_keys if before is not None and known_rows else row_keys(keys, labels)
    about = (sharing_labels(table, label, labels), labels, splits, keys, named, classes, folder, bad, len(bad))
    manifest = Manifest(source, tuple(files), kind.name, *about, task=task)
    if before is not None and known_rows:
        manifest.__dict__["fingerprint"] = before.fingerprint
    elif memo is not None and embedded and len(manifest) >= LEAST_ROWS:
        memo.put(files, kind.name, ReadBefore(keys, named, ids, str(rows), manifest.fingerprint))
    return manifest


def _task(schema: pa.Schema, kind: Kind, label: str, source: str) -> str:
    """The task that a schema names; where it names none that of language, if texts have no labels.

    Raises:
        ManifestError: the rows are none of such a task.
    """
    said = task_in(schema, source)
    bare = label not in schema.names and kind.own_target and TASK_KEY not in (schema.metadata or {})
    if TASKS[said].holds == NOTHING and not kind.own_target:
        what = f"task {said} is of texts, one a row, and the rows have {kind.column}"
        raise ManifestError(what, where=source, fix="name the column of texts: influence manifest SOURCE --text COLUMN")
    return LANGUAGE if bare else said


def _check_columns(schema: pa.Schema, label: str, source: str, files: Sequence[Path]) -> Kind:
    """The payload's kind; refuses schemas that lack a column, have two of one name, or differ between files."""
    refuse_twins(schema.names, source)
    kind = kind_in(schema.names)
    if kind is None:
        known = ", ".join(" and ".join(k.columns) for k in KINDS.values() if k.columns)
        fix = f"a manifest needs one of: {known}; of a table of other columns make one: "
        raise ManifestError("no payload column", where=source, fix=fix + manifest_command(source, label))
    for needed in ("id", label):
        if needed not in schema.names and not (needed == LABEL and kind.own_target):
            more = "pass --label COLUMN" if needed == label else f"number the rows: {manifest_command(source, label)}"
            fix = f"columns there are: {', '.join(schema.names)}; {more}"
            raise ManifestError(f"no column {needed!r}", where=source, fix=fix)
    for file in files[1:]:
        odd = differing(schema, read_schema(file))
        if odd:
            fix = "write all files with one schema"
            raise ManifestError(f"the files have different columns ({odd})", where=f"{source}: {file.name}", fix=fix)
    for column in kind.columns:
        found = schema.field(column).type
        if not kind.holds(found):
            what = f"column {column} is {found}, not {kind.wanted}"
            raise ManifestError(what, where=f"{source}, column {column}", fix=f"store {kind.wanted}")
    return kind


def without_overlap(target: Rows, train: Rows) -> tuple[Rows, Rows]:
    """Target rows whose payload is no training row's, and those whose payload is."""
    same = positions(target.payload_keys, train.payload_keys) >= 0
    return target.take(~same), target.take(same)

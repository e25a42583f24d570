"""Data as people have it -> a checked manifest: numbered labels, splits, payloads by path or embedded."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.classes import CLEAN
from influence_cli.data.content_notes import SHOWN, content_notes
from influence_cli.data.earlier import MADE, marked
from influence_cli.data.frames import name_of
from influence_cli.data.ids import SeenIds, perhaps_twice
from influence_cli.data.kinds import KINDS, kind_in
from influence_cli.data.kinds.protocol import BadPayload, Kind
from influence_cli.data.label_kinds import CLASSES, DEFAULT, NOTHING, NUMBERS, TASK_KEY, TASKS
from influence_cli.data.label_readers import BadLabel, reader_of
from influence_cli.data.manifest import Manifest, read_manifest
from influence_cli.data.outputs import Output, check_outputs, writing
from influence_cli.data.outside import Inside, allowing_outside
from influence_cli.data.request import COLUMNS_KEY, IngestRequest
from influence_cli.data.sources import Source, is_saved, open_source
from influence_cli.data.sources.image_folder import IMAGE_FOLDER
from influence_cli.data.sources.origin import origin_metadata
from influence_cli.data.sources.payload_columns import mostly_unknown
from influence_cli.data.sources.protocol import LeftOut
from influence_cli.errors import ManifestError, UsageError
from influence_cli.events import SILENT, Listener
from influence_cli.store.keys import canonical_json
from influence_cli.store.parquet import SealedWriter
from influence_cli.store.remote import is_remote, local


@dataclass
class Ingested:
    """The manifest that was written, and what was found on the way."""

    manifest: Manifest
    kind: str
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (row id, reason)
    notes: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)  # what the source was taken to mean, in sentences
    left_out: list[LeftOut] = field(default_factory=list)  # columns, files and folders that no row is made from
    elsewhere: bool = False  # whether it names files outside of its folder, which has to be allowed when it is read


def make_manifest(request: IngestRequest, listener: Listener = SILENT) -> Ingested:
    """Convert, check and write; nothing is written where a check fails.

    Raises:
        ManifestError: the source cannot be read, or a row cannot be used (and bad rows are not skipped).
        UsageError: shares of splits that cannot be read.
    """
    shares = _shares(request.split)
    suffix, folder = Path(request.output).suffix, Path(request.output).parent
    if is_remote(request.output):  # from which no path leads to images here
        request, folder = replace(request, embed=True), Path.cwd()
    if request.output == "-":
        what = "a manifest does not go to standard output: later commands read it more than once"
        raise UsageError(what, fix="pass -o manifest.parquet")
    if suffix != ".parquet":
        raise UsageError(f"cannot write {request.output!r}: a manifest is Parquet", fix="use .parquet")
    read = [] if is_saved(request.source) else [request.source]
    check_outputs([Output("-o", request.output, MADE)], [*read, request.columns.like])
    source = open_source(local(request.source) if is_remote(request.source) else request.source, request.columns)
    conversion = _Conversion(request, source, shares)
    metadata = origin_metadata(source, request.source, request.columns, bool(conversion.splits), folder)
    metadata |= columns_metadata(source, conversion.labels.numbered)
    with writing(request.output, MADE) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        with contextlib.ExitStack() as stack:
            writer: SealedWriter | None = None
            for table in conversion.tables(listener):
                table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
                table = table.cast(marked(table.schema, MADE))
                writer = writer or stack.enter_context(contextlib.closing(SealedWriter(sink, table.schema)))
                writer.write_table(table)
        if writer is None:
            raise ManifestError("no usable row", where=_named(request.source), fix="see what was skipped")
        # every check of a manifest, before it gets its name; where its files lie was looked at in the source
        with allowing_outside(True):
            read_manifest(_named(request.source), [temporary], folder=folder)
    with allowing_outside(True):
        manifest = read_manifest(request.output, [local(request.output)])
    left_out = [f"left out: {entry.what}: {entry.reason}" for entry in source.left_out]
    notes = [
        *left_out,
        *source.notes,
        *conversion.notes,
        *conversion.counted(),
        *conversion.remarked(),
        *content_notes(manifest, (source.columns or {}).get("group")),
    ]
    for line in mostly_unknown(source.counts, len(manifest)):
        listener.warn(line)
    said = (notes, list(source.taken), list(source.left_out))
    return Ingested(manifest, source.kind, conversion.skipped, *said, conversion.elsewhere > 0)


def columns_metadata(source: Source, numbered: int | None) -> dict[bytes, bytes]:
    """Schema metadata: what the source was taken to mean, what was left out, and how many labels are plain numbers."""
    left_out = [[entry.what, entry.reason] for entry in source.left_out]
    value = {**(source.columns or {}), "taken": list(source.taken), "left_out": left_out, "numbered": numbered}
    return {COLUMNS_KEY: canonical_json(value).encode()}


def _named(source: Any) -> str:
    return source if isinstance(source, str) else name_of(source)


def _shares(text: str) -> tuple[float, float]:
    """Where val and test begin on [0, 1)."""
    try:
        parts = [float(p) for p in text.split("/")]
    except ValueError:
        parts = []
    if len(parts) != 3 or min(parts, default=-1) < 0 or sum(parts) <= 0:
        raise UsageError(f"--split {text!r} cannot be read", fix="write train/val/test shares, such as 80/10/10")
    return parts[0] / sum(parts), (parts[0] + parts[1]) / sum(parts)


def _splits_and_ids(source: Source) -> tuple[set[str], bool]:
    """The splits that a source has, and whether an id may stand twice in it."""
    found = set[str]()

    def ids() -> Iterator[pa.ChunkedArray]:
        for table in (source.narrow or source.tables)():
            if "split" in table.column_names:
                found.update(table.column("split").to_pylist())
            yield table.column("id")

    twice = perhaps_twice(ids())
    return found, twice


class _Conversion:
    """A source's rows as those of a manifest; bad rows are collected in ``skipped`` or refused."""

    def __init__(self, request: IngestRequest, source: Source, shares: tuple[float, float]) -> None:
        self.request, self.source, self.shares = request, source, shares
        self.inside, self.near = Inside(Path(source.folder)), Inside(Path(request.output).parent)
        # in memory the program names files, and in a folder of images its owner's links do: nothing of the data
        self.trusted = not isinstance(request.source, str | Path) or source.kind == IMAGE_FOLDER
        self.elsewhere = 0
        self.splits, twice = _splits_and_ids(source)
        self.labels = reader_of(source.task, source.classes, source.narrow or source.tables)
        self.notes = list(self.labels.notes)
        self.skipped: list[tuple[str, str]] = []
        self._seen = SeenIds() if twice else None  # the first row of an id keeps it; most sources have none twice
        self._remarks: Counter[str] = Counter()
        how = f"by payload, {request.split} (train/val/test), seed {request.seed}"
        if not self.splits:
            self.notes.append(f"the source has no splits: rows were divided {how}")
        elif "val" not in self.splits and "train" in self.splits:
            self.notes.append(f"the source has no val rows: a share of train was taken, {how}")

    def tables(self, listener: Listener) -> Iterator[pa.Table]:
        """The source's tables as manifest tables."""
        names, task = self.labels.names, self.labels.task
        metadata = {"classes": json.dumps(list(names), ensure_ascii=False)} if names else {}
        metadata |= {} if task == DEFAULT else {TASK_KEY.decode(): task}
        first = 0
        for table in self.source.tables():
            kind, rows = kind_in(table.column_names), list[dict[str, Any]]()
            assert kind is not None  # every source finds a payload, or says that there is none
            ids = table.column("id").to_pylist()
            twice = [False] * len(ids) if self._seen is None else self._seen.twice(ids)
            for k, row in enumerate(table.to_pylist(), first):
                try:
                    rows.append(self._row(row, kind, twice[k - first]))
                except BadPayload as bad:
                    self._skip(row["id"], k, bad)
            first += table.num_rows
            if rows:
                made = pa.table(_arrays(rows, table, self.labels.type)).replace_schema_metadata(metadata)
                yield made.drop_columns(["label"]) if TASKS[task].holds == NOTHING else made
            listener.detail(f"{len(rows):,} rows converted")

    def counted(self) -> list[str]:
        """What was found while the rows were read, with how many of them."""
        found = self.source.counts.most_common()
        more = sum(rows for _, rows in found[SHOWN:])
        notes = [f"{what} ({rows:,} row{'s' if rows > 1 else ''})" for what, rows in found[:SHOWN]]
        return [*notes, *([f"and {len(found) - SHOWN:,} more of this sort ({more:,} rows)"] if more else [])]

    def _row(self, row: dict[str, Any], kind: Kind, twice: bool) -> dict[str, Any]:
        """One row; the first row of an id keeps it: ``twice`` says that there was one."""
        if row["id"] is None:
            raise BadPayload("an id is null", "name every row, or pass --id none to number the rows")
        if twice:
            fix = "pass --id COLUMN for another column, or --id none to number the rows"
            raise BadPayload("an id is there twice", fix)
        folder = Path(self.source.folder)
        try:
            file = kind.file_named(row, folder)
            outside = None if file is None or self.trusted else self.inside.fault(file)
            if outside is not None:
                raise outside
            payload = kind.from_source(row, folder)
        except BadPayload as bad:
            if bad.position is None or bad.position >= len(self.source.names):
                raise
            name = self.source.names[bad.position]
            raise BadPayload(f"column {name}: a value is missing or not finite", bad.fix) from bad
        self._remarks.update(kind.remarks(payload))
        row["label"] = self._label(row["label"], "label")
        if row["label"] is None:
            column = (self.source.columns or {}).get("label") or "label"
            raise BadPayload(f"column {column} is null{'' if self.request.skip_bad else self._unlabelled()}")
        if CLEAN in row:
            row[CLEAN] = self._label(row[CLEAN], CLEAN)
        row["split"] = self._split(row.get("split"), kind.raw(payload))
        made = kind.placed(row, payload, self.request.embed, folder, Path(self.request.output).parent)
        if file is not None and isinstance(made.get(kind.columns[0]), str):  # by its path
            self.elsewhere += not self.near.holds(file)
        return made

    def _unlabelled(self) -> str:
        """How many rows have no label, where several have none."""
        rows = sum(t.column("label").null_count for t in (self.source.narrow or self.source.tables)())
        return f" in {rows:,} rows, and this is the first" if rows > 1 else ""

    def _label(self, value: Any, column: str) -> Any:
        """The label of what stands in a column; None for null."""
        if column == CLEAN and (value == "" or value != value or (isinstance(value, list) and None in value)):
            return None
        try:
            return self.labels.of(value)
        except BadLabel as error:
            said = self.source.columns or {}
            named = said.get({"label": "label"}.get(column, "clean")) or column
            if error.at is not None and column == "label" and said.get("labels"):
                named = said["labels"][error.at]
            raise BadPayload(f"column {named}: {error}", error.fix) from error

    def _split(self, given: str | None, payload: bytes) -> str:
        """The split of a row: its own, or drawn from (seed, payload), so that equal payloads fall into the same one."""
        val, test = self.shares
        draws = given == "train" and "val" not in self.splits
        if given is not None and not draws:
            return given
        digest = hashlib.blake2b(payload, digest_size=8, key=str(self.request.seed).encode()).digest()
        at = int.from_bytes(digest, "little") / 2.0**64  # uniform on [0, 1)
        if draws:
            return "val" if at < ((test - val) / test if test else 0.0) else "train"
        return "train" if at < val else "val" if at < test else "test"

    def remarked(self) -> list[str]:
        """What payloads are read otherwise than people may think, and how many."""
        parts = [(number, *remark.partition(": ")) for remark, number in sorted(self._remarks.items())]
        if self.elsewhere:
            how = "pass --allow-outside to what reads it, or make it with --embed or in their folder"
            parts.append((self.elsewhere, "files outside of the manifest's folder", "", how))
        return [f"{what} ({number:,} row{'' if number == 1 else 's'}): {how}" for number, what, _, how in parts]

    def _skip(self, name: str | None, row: int, bad: BadPayload) -> None:
        if not self.request.skip_bad:
            place = f"row {row}, column id" if name is None else f"row id={name}"
            where, fix = f"{_named(self.request.source)}, {place}", f"{bad.fix}, or pass --skip-bad"
            raise ManifestError(str(bad), where=where, fix=fix) from bad
        self.skipped.append((f"row {row}" if name is None else str(name), str(bad)))


def _arrays(rows: list[dict[str, Any]], table: pa.Table, label: pa.DataType) -> dict[str, pa.Array]:
    kinds = {"id": pa.string(), "label": label, "split": pa.string(), "weight": pa.float64(), CLEAN: label}
    kinds |= {name: kind for payload in KINDS.values() for name, kind in payload.types.items()}
    typed = {name: kinds.get(name) or table.schema.field(name).type for name in rows[0]}
    return {name: pa.array([row[name] for row in rows], kind) for name, kind in typed.items()}


def label_table(manifest: Manifest) -> tuple[str, list[dict[str, Any]]]:
    """What the rows of a table are, and the table: rows of each class, or with each label, in each split.

    Of numbers, how many there are in each split, with their mean, standard deviation, least and most.
    """
    splits, labels, names = ("train", "val", "test"), manifest.labels, manifest.classes or ()
    found = {s: labels[manifest.splits == s] for s in splits}
    if manifest.label_kind.holds == NUMBERS:
        return "split", [{"split": s, "rows": len(y), **_spread(y)} for s, y in found.items() if len(y)]
    if manifest.label_kind.holds == NOTHING:
        return "split", [{"split": s, "rows": len(y)} for s, y in found.items() if len(y)]
    by_class = manifest.label_kind.holds == CLASSES
    parts, table = manifest.label_kind.parts(labels), list[dict[str, Any]]()
    none = np.zeros(len(labels), dtype=bool)
    for c in range(max(max(parts) + 1, len(names))):
        here = parts.get(c, none)
        counts = {s: int((here & (manifest.splits == s)).sum()) for s in splits}
        table.append({"class": c, "name": names[c] if c < len(names) else str(c), **counts})
    return "class" if by_class else "label", table


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    figures = {"mean": values.mean(), "sd": values.std(), "least": values.min(), "most": values.max()}
    return {name: float(value) for name, value in figures.items()}

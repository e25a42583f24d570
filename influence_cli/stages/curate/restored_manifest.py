"""The manifest as it was before edits, written by streaming: whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from influence_cli.actions.edited import rebased
from influence_cli.data.earlier import RESTORED, marked
from influence_cli.data.outputs import Output, check_outputs, writing
from influence_cli.data.sources.origin import moved_origin
from influence_cli.data.tables import PROVENANCE_KEY, read_batches, read_schema
from influence_cli.errors import UsageError
from influence_cli.stages.curate.curated_manifest import set_column, set_weights, write_sealed
from influence_cli.stages.curate.undo import Undoing

BATCH = 8192


def write_restored(undoing: Undoing, output: str) -> int:
    """Stream the manifest as it was to a Parquet file; returns its number of rows."""
    path = Path(output)
    if path.suffix != ".parquet":
        raise UsageError(f"cannot write {output!r}: a manifest is Parquet", fix="use .parquet")
    original = [] if undoing.original is None else undoing.original.files
    check_outputs([Output("-o", output, RESTORED)], [*undoing.curated.files, *original])
    with writing(path, RESTORED) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        return write_sealed(((table, table.num_rows) for table in _batches(undoing, path.parent)), sink)


def _batches(undoing: Undoing, folder: Path) -> Iterator[pa.Table]:
    curated, schema = undoing.curated, _schema(undoing, folder)
    back = _trimmed_rows(undoing, folder)
    first = 0
    for file in curated.files:
        for batch in read_batches(file, BATCH):
            here = slice(first, first + batch.num_rows)
            table = rebased(pa.Table.from_batches([batch]), curated, folder)
            table = set_column(table, undoing.label, undoing.labels[here])
            if "weight" in table.column_names:
                changed = undoing.weights[here] != curated.weights()[here]
                table = set_weights(table, undoing.weights[here], changed)
            table = table.drop_columns([n for n in undoing.added if n in table.column_names])
            yield from _between(table.select(schema.names).cast(schema), first, back, undoing, schema)
            first += batch.num_rows
    if len(curated) in undoing.before:
        yield back.take(pa.array(_rows(undoing, len(curated)))).cast(schema)


def _between(table: pa.Table, first: int, back: pa.Table, undoing: Undoing, schema: pa.Schema) -> Iterator[pa.Table]:
    """A batch of curated rows with the trimmed rows where they were."""
    start = 0
    for place in sorted(p for p in undoing.before if first <= p < first + table.num_rows):
        if place - first > start:
            yield table.slice(start, place - first - start)
        yield back.take(pa.array(_rows(undoing, place))).cast(schema)
        start = place - first
    if start < table.num_rows:
        yield table.slice(start)


def _rows(undoing: Undoing, place: int) -> list[int]:
    """Positions among the trimmed rows, in the order of the original, of those that come before a place."""
    order = {k: i for i, k in enumerate(sorted(k for rows in undoing.before.values() for k in rows))}
    return [order[k] for k in undoing.before[place]]


def _trimmed_rows(undoing: Undoing, folder: Path) -> pa.Table:
    """The rows that come back, payload included, in the order of the original."""
    original, wanted = undoing.original, sorted(k for rows in undoing.before.values() for k in rows)
    if original is None or not wanted:
        return pa.table({})
    parts, first = list[pa.Table](), 0
    positions = np.array(wanted)
    for file in original.files:
        for batch in read_batches(file, BATCH):
            inside = positions[(positions >= first) & (positions < first + batch.num_rows)] - first
            if len(inside):
                parts.append(rebased(pa.Table.from_batches([batch]).take(pa.array(inside)), original, folder))
            first += batch.num_rows
    return pa.concat_tables(parts)


def _schema(undoing: Undoing, folder: Path) -> pa.Schema:
    """The original's schema where it is found and has the same columns; else the curated one's, less what was added."""
    curated = undoing.curated
    schema = read_schema(curated.files[0])
    fields = [f for f in schema if f.name not in undoing.added]
    if undoing.original is not None:
        old = read_schema(undoing.original.files[0])
        if old.names == [f.name for f in fields]:
            return marked(moved_origin(old, undoing.original.folder, folder), RESTORED)
    metadata = {k: v for k, v in (schema.metadata or {}).items() if k != PROVENANCE_KEY}
    return marked(moved_origin(pa.schema(fields, metadata), curated.folder, folder), RESTORED)

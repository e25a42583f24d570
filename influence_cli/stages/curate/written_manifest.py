"""The manifest after its edits, or as it was before them, payloads included: streamed, whole or not at all."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.actions.edited import rebased
from influence_cli.actions.protocol import PROPOSAL
from influence_cli.data.earlier import CURATED, RESTORED, marked
from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.locators import written_to
from influence_cli.data.manifest import Manifest
from influence_cli.data.outputs import Output, check_outputs, writing
from influence_cli.data.outside import outside_allowed
from influence_cli.data.payloads import rows_outside
from influence_cli.data.sources.origin import moved_origin
from influence_cli.data.tables import PROVENANCE_KEY, read_batches, read_schema, with_provenance
from influence_cli.errors import UsageError
from influence_cli.stages.curate.curate import Curated
from influence_cli.stages.curate.undo import Undoing
from influence_cli.store.arrow import array_of, is_valid, mask_of
from influence_cli.store.parquet import SealedWriter
from influence_cli.store.remote import is_remote

BATCH = 8192


def write_curated(curated: Curated, output: str) -> int:
    """Stream the edited manifest to a Parquet file, or to "-"; returns the number of train rows written.

    Trimmed train rows are left out; val and test rows are written as they are.
    """
    if not curated.scores.manifest.files:
        raise UsageError("the rows of a Dataset cannot be written as a manifest", fix="take the edits, by row number")
    if output == "-":
        return _write(_edited(curated, Path.cwd(), output), pa.PythonFile(sys.stdout.buffer, mode="w"))
    path, folder = Path(output), Path.cwd() if is_remote(output) else Path(output).parent
    if path.suffix != ".parquet":
        fix = "use .parquet, or - for standard output"
        raise UsageError(f"cannot write {output!r}: a manifest is Parquet", fix=fix)
    check_outputs([Output("-o", output, CURATED)], [*curated.scores.manifest.files, curated.request.scores])
    with writing(output, CURATED) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        return _write(_edited(curated, folder, output), sink)


def said_of_files_outside(manifest: Manifest, output: str) -> str | None:
    """What a copy of a manifest takes to be read where it was written; None: no more than the manifest itself took."""
    if outside_allowed() or output == "-" or is_remote(output):
        return None
    folder = Path(output).parent
    same = folder.resolve() == manifest.folder.resolve()
    rows = 0 if same else rows_outside([Path(output)], manifest.payload_kind, folder)
    if not rows:
        return None
    fix = f"pass --allow-outside to what reads it, or write it into the folder of {manifest.source}"
    return f"{rows:,} rows of {output} name files outside of its folder: {fix}"


def write_restored(undoing: Undoing, output: str) -> int:
    """Stream the manifest as it was to a Parquet file; returns its number of rows."""
    path, folder = Path(output), Path.cwd() if is_remote(output) else Path(output).parent
    if path.suffix != ".parquet":
        raise UsageError(f"cannot write {output!r}: a manifest is Parquet", fix="use .parquet")
    original = [] if undoing.original is None else undoing.original.files
    check_outputs([Output("-o", output, RESTORED)], [*undoing.curated.files, *original])
    with writing(output, RESTORED) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        return _write(((table, table.num_rows) for table in _restored(undoing, folder)), sink)


def _write(tables: Iterable[tuple[pa.Table, int]], sink: Any) -> int:
    """Write tables one after another as one Parquet file with a seal; returns the sum of their counts."""
    writer: SealedWriter | None = None
    written = 0
    try:
        for table, count in tables:
            writer = writer or SealedWriter(sink, table.schema)
            writer.write_table(table)
            written += count
    finally:
        if writer is not None:
            writer.close()
    return written


def _parts(manifest: Manifest, folder: Path) -> Iterator[tuple[slice, pa.Table]]:
    """The manifest part by part, with the rows that each holds, and payloads found from another folder."""
    first = 0
    for file in manifest.files:
        for batch in read_batches(file, BATCH):
            here = slice(first, first + batch.num_rows)
            yield here, rebased(pa.Table.from_batches([batch]), manifest, folder)
            first = here.stop


def _edited(curated: Curated, folder: Path, output: str) -> Iterator[tuple[pa.Table, int]]:
    """The manifest after its edits, part by part, with the number of train rows in each."""
    manifest, edits, after = curated.scores.manifest, curated.edits, curated.after()
    proposal = np.full(len(manifest) if edits.proposal is not None else 0, -1, dtype=np.int64)
    if edits.proposal is not None:
        proposal[curated.scores.train.index] = edits.proposal
    train = after.keep & (manifest.splits == "train")
    reweighted = after.weights != manifest.weights() if edits.action == "reweight" else after.keep
    schema = moved_origin(read_schema(manifest.files[0]), manifest.folder, folder)
    metadata = written_to(
        with_provenance(pa.Table.from_batches([], schema), curated.provenance()), output
    ).schema.metadata
    for here, part in _parts(manifest, folder):
        table = part
        if manifest.labelled:
            table = _labelled(part, manifest, curated.scores.label, after.labels[here])
        if edits.action == "reweight":
            table = _set_weights(table, after.weights[here], reweighted[here])
        if edits.proposal is not None:
            table = _set_column(table, PROPOSAL, proposal[here], null=proposal[here] < 0)
        yield table.filter(mask_of(after.keep[here])).replace_schema_metadata(metadata), int(train[here].sum())


def _labelled(table: pa.Table, manifest: Manifest, name: str, labels: NDArray[Any]) -> pa.Table:
    """The table with a manifest's labels; those that are no classes stay as they are, since no edit changes them."""
    return _set_column(table, name, labels) if manifest.label_kind.holds == CLASSES else table


def _set_column(table: pa.Table, name: str, values: NDArray[Any], null: NDArray[np.bool_] | None = None) -> pa.Table:
    """The table with a column's values replaced, in its type, or with the column appended."""
    array = array_of(values, null)
    if name in table.column_names:
        position = table.column_names.index(name)
        return table.set_column(position, name, array.cast(table.schema.field(name).type))
    return table.append_column(name, array)


def _set_weights(table: pa.Table, weights: NDArray[np.float64], changed: NDArray[np.bool_]) -> pa.Table:
    """The table with new weights as doubles; what was null and is not edited stays null."""
    if "weight" not in table.column_names:
        return table.append_column("weight", array_of(weights))
    null = ~is_valid(table.column("weight")) & ~changed
    kind = table.schema.field("weight").type
    values = array_of(weights, null).cast(kind if pa.types.is_floating(kind) else pa.float64())
    return table.set_column(table.column_names.index("weight"), "weight", values)


def _restored(undoing: Undoing, folder: Path) -> Iterator[pa.Table]:
    """The manifest as it was, part by part: a trimmed row stands before the row that it comes before."""
    curated, schema = undoing.curated, _old_schema(undoing, folder)
    weights = curated.weights()
    trimmed = sorted(k for rows in undoing.before.values() for k in rows)
    back = _trimmed_rows(undoing, np.array(trimmed), folder)
    order = {k: i for i, k in enumerate(trimmed)}

    def coming_before(place: int) -> pa.Table:
        return back.take(pa.array([order[k] for k in undoing.before[place]])).cast(schema)

    for here, part in _parts(curated, folder):
        table = _labelled(part, curated, undoing.label, undoing.labels[here]) if curated.labelled else part
        if "weight" in table.column_names:
            table = _set_weights(table, undoing.weights[here], undoing.weights[here] != weights[here])
        table = table.drop_columns([n for n in undoing.added if n in table.column_names])
        table = table.select(schema.names).cast(schema)
        start = here.start
        for place in sorted(p for p in undoing.before if here.start <= p < here.stop):
            if place > start:
                yield table.slice(start - here.start, place - start)
            yield coming_before(place)
            start = place
        if start < here.stop:
            yield table.slice(start - here.start)
    if len(curated) in undoing.before:
        yield coming_before(len(curated))


def _trimmed_rows(undoing: Undoing, wanted: NDArray[np.int64], folder: Path) -> pa.Table:
    """The rows that come back, payload included, in the order of the original."""
    if undoing.original is None or not len(wanted):
        return pa.table({})
    parts = list[pa.Table]()
    for here, part in _parts(undoing.original, folder):
        inside = wanted[(wanted >= here.start) & (wanted < here.stop)] - here.start
        if len(inside):
            parts.append(part.take(array_of(inside)))
    return pa.concat_tables(parts)


def _old_schema(undoing: Undoing, folder: Path) -> pa.Schema:
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

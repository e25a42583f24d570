"""The curated manifest, payload included, written by streaming: whole or not at all."""

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
from influence_cli.data.earlier import CURATED
from influence_cli.data.outputs import Output, check_outputs, writing
from influence_cli.data.sources.origin import moved_origin
from influence_cli.data.tables import read_batches, read_schema, with_provenance
from influence_cli.errors import UsageError
from influence_cli.stages.curate.curate import Curated
from influence_cli.store.parquet import SealedWriter


def write_curated(curated: Curated, output: str) -> int:
    """Stream the edited manifest to a Parquet file, or to "-"; returns the number of train rows written.

    Trimmed train rows are left out; val and test rows are written as they are.
    """
    if not curated.scores.manifest.files:
        raise UsageError("the rows of a Dataset cannot be written as a manifest", fix="take the edits, by row number")
    if output == "-":
        return write_sealed(_edited_batches(curated, Path.cwd()), pa.PythonFile(sys.stdout.buffer, mode="w"))
    path = Path(output)
    if path.suffix != ".parquet":
        raise UsageError(
            f"cannot write {output!r}: a manifest is Parquet", fix="use .parquet, or - for standard output"
        )
    check_outputs([Output("-o", output, CURATED)], [*curated.scores.manifest.files, curated.request.scores])
    with writing(path, CURATED) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        return write_sealed(_edited_batches(curated, path.parent), sink)


def write_sealed(tables: Iterable[tuple[pa.Table, int]], sink: Any) -> int:
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


def _edited_batches(curated: Curated, folder: Path) -> Iterator[tuple[pa.Table, int]]:
    manifest, edits, after = curated.scores.manifest, curated.edits, curated.after()
    proposal = np.full(len(manifest), -1, dtype=np.int64)
    if edits.proposal is not None:
        proposal[curated.scores.train.index] = edits.proposal
    is_train = manifest.splits == "train"
    reweighted = after.weights != manifest.weights()
    schema = moved_origin(read_schema(manifest.files[0]), manifest.folder, folder)
    metadata = with_provenance(schema.empty_table(), curated.provenance()).schema.metadata
    first = 0
    for file in manifest.files:
        for batch in read_batches(file, 8192):
            here = slice(first, first + batch.num_rows)
            table = rebased(pa.Table.from_batches([batch]), manifest, folder)
            table = set_column(table, curated.scores.label, after.labels[here])
            if edits.action == "reweight":
                table = set_weights(table, after.weights[here], reweighted[here])
            if edits.proposal is not None:
                table = set_column(table, PROPOSAL, proposal[here], null=proposal[here] < 0)
            table = table.filter(pa.array(after.keep[here])).replace_schema_metadata(metadata)
            yield table, int((after.keep & is_train)[here].sum())
            first += batch.num_rows


def set_column(table: pa.Table, name: str, values: NDArray[Any], null: NDArray[np.bool_] | None = None) -> pa.Table:
    """The table with a column's values replaced, in its type, or with the column appended."""
    array = pa.array(values, mask=null)
    if name in table.column_names:
        position = table.column_names.index(name)
        return table.set_column(position, name, array.cast(table.schema.field(name).type))
    return table.append_column(name, array)


def set_weights(table: pa.Table, weights: NDArray[np.float64], changed: NDArray[np.bool_]) -> pa.Table:
    """The table with new weights as doubles; what was null and is not edited stays null."""
    if "weight" not in table.column_names:
        return table.append_column("weight", pa.array(weights))
    null = table.column("weight").is_null().to_numpy() & ~changed
    kind = table.schema.field("weight").type
    values = pa.array(weights, mask=null).cast(kind if pa.types.is_floating(kind) else pa.float64())
    return table.set_column(table.column_names.index("weight"), "weight", values)

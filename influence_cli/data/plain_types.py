"""Arrow's many types of one thing as the few that the package reads: once, where a table comes in.

Dictionaries become their values; views and large forms the plain ones; decimals and half floats real numbers; UUIDs
their text and other extensions what they are stored as; lists of fixed size or of lists one flat list a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from influence_cli.errors import ManifestError

pc: Any = pyarrow.compute  # its functions are made when it is imported, which type checkers do not see


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that a column of ``kind`` is read as; most are their own.

    >>> plain_type(pa.dictionary(pa.int32(), pa.large_string()))
    DataType(string)
    >>> plain_type(pa.list_(pa.list_(pa.decimal128(5, 2), 3)))
    ListType(list<item: double>)
    """
    if _is_uuid(kind):
        return pa.string()
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_float16(kind):
        return pa.float32()
    if is_list(kind):
        inner = plain_type(kind.value_type)
        return inner if is_list(inner) and not _holds_text(inner) else pa.list_(inner)
    return kind


_LISTS = {
    kind.id
    for kind in (
        *(form(pa.int8()) for form in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view)),
        pa.list_(pa.int8(), 1),
    )
}


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is a list, of whatever form."""
    return kind.id in _LISTS


def _is_uuid(kind: pa.DataType) -> bool:
    return isinstance(kind, getattr(pa, "UuidType", ()))


def _holds_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind.value_type) or pa.types.is_binary(kind.value_type)


def is_plain(schema: pa.Schema) -> bool:
    """Whether every column is read as it is; dictionary and large forms that are quick to read stay as they are."""
    return all(_as_it_is(field.type) for field in schema)


def _as_it_is(kind: pa.DataType) -> bool:
    """Whether the readers know the type; lists of whatever form of numbers are read without a copy."""
    if is_list(kind) and not (pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)):
        inner = kind.value_type
        return plain_type(inner) == inner and not is_list(inner)
    return pa.types.is_large_string(kind) or plain_type(kind) == kind


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema with the types that columns are read as; metadata stay."""
    if is_plain(schema):
        return schema
    fields = [f if _as_it_is(f.type) else f.with_type(plain_type(f.type)) for f in schema]
    return pa.schema(fields, schema.metadata)


def plain_table(table: pa.Table, where: str) -> pa.Table:
    """The table with columns of plain types.

    Raises:
        ManifestError: a column cannot be read as one; names it.
    """
    if is_plain(table.schema):
        return table
    columns = [_column(table.column(k), f, where) for k, f in enumerate(table.schema)]
    return pa.Table.from_arrays(columns, schema=plain_schema(table.schema))


def plain_batch(batch: pa.RecordBatch, where: str) -> pa.RecordBatch:
    """A batch with columns of plain types.  Raises ManifestError: a column cannot be read as one; names it."""
    if is_plain(batch.schema):
        return batch
    table = plain_table(pa.Table.from_batches([batch]), where).combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _column(column: pa.ChunkedArray, field: pa.Field, where: str) -> pa.ChunkedArray:
    if _as_it_is(field.type):
        return column
    kind = plain_type(field.type)
    try:
        return pa.chunked_array([_plain(chunk) for chunk in column.chunks], kind)
    except (pa.ArrowException, ValueError, TypeError) as error:
        what = f"column {field.name} of type {field.type} cannot be read as {kind} ({error})"
        raise ManifestError(what, where=f"{where}, column {field.name}", fix=f"store it as {kind}") from error


def _plain(values: pa.Array) -> pa.Array:
    """An array of another form as one of its plain type."""
    kind, wanted = values.type, plain_type(values.type)
    if kind == wanted:
        return values
    if _is_uuid(kind):
        return pa.array([None if v is None else str(v) for v in values.to_pylist()], pa.string())
    if isinstance(values, pa.ExtensionArray):
        return _plain(values.storage)
    if pa.types.is_dictionary(kind):
        return _plain(values.dictionary_decode())
    if is_list(kind):
        return _plain_list(values)
    return pc.cast(values, wanted)


def _plain_list(values: pa.Array) -> pa.Array:
    """One flat list a row, of a list in whatever form; a null row stays null."""
    lengths, inner = pc.list_value_length(values), _plain(values.flatten())  # which leaves out null rows
    ends = np.cumsum([0, *pc.fill_null(lengths, 0).to_pylist()])
    if is_list(inner.type) and not _holds_text(inner.type):
        parts = np.cumsum([0, *pc.fill_null(pc.list_value_length(inner), 0).to_pylist()])
        ends, inner = parts[ends], inner.flatten()
    mask = values.is_null() if values.null_count else None
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), inner, mask=mask)

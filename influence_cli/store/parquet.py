"""Parquet that is known again as it was written: page checksums, and a seal over what they do not cover.

Page checksums cover the values' bytes, not the footer with names, types and metadata.  The seal, under a file-level
key of its own, holds digests of the metadata and of every narrow column's values, and how many bytes of data stood
before the footer.  A table that somebody has edited and written anew (users do, between stages) has another size, or
keeps the seal in its Arrow schema too, where we never write it: such a table is taken as it is.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from influence_cli.memory import trim_memory
from influence_cli.store.arrow import array_of, is_valid, values_of
from influence_cli.store.files import DamagedFile
from influence_cli.store.keys import parse_json
from influence_cli.store.parts import opened

SEAL = b"influence.checksum"
BULKY = {"image", "features"}  # payloads: page checksums alone, since their keys are computed from them anyway
BLOCK = 65_536  # rows that a digest takes at once
GROUP_ROWS = 65_536  # rows of a group: those that wait in memory while they are written
LARGE = 1 << 23  # bytes of a table after whose reading the heap is trimmed
STREAMED_BYTES = 1 << 20  # of a column that are read at once, where rows are streamed
_ARROW = b"ARROW:schema"
_SMALL = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, TypeError)


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema without a seal."""
    metadata = {k: v for k, v in (schema.metadata or {}).items() if k != SEAL}
    return schema.with_metadata(metadata or None)


class _ColumnDigest:
    """Digest of a column's values, whatever the chunks they come in; None for types that Parquet may not give back."""

    def __init__(self, name: str, kind: pa.DataType) -> None:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        self.kind = _SMALL.get(kind, kind)  # dictionaries of large texts come back as dictionaries of texts
        self.text = any(is_kind(self.kind) for is_kind in (
            pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary,
            pa.types.is_fixed_size_binary,
        ))  # fmt: skip
        number = pa.types.is_integer(self.kind) or self.kind in (pa.float32(), pa.float64(), pa.bool_())
        self.taken = name not in BULKY and (self.text or number)
        self.parts = [hashlib.blake2b(digest_size=16) for _ in range(3)]  # of validity, lengths, values

    def update(self, column: pa.ChunkedArray) -> None:
        for chunk in column.chunks if self.taken else ():
            for first in range(0, len(chunk), BLOCK):  # a copy of a whole column is as large as the column
                part = chunk.slice(first, BLOCK)
                self._update(part.dictionary_decode() if pa.types.is_dictionary(part.type) else part)

    def _update(self, chunk: Any) -> None:
        valid, lengths, values = self.parts
        valid.update(is_valid(chunk).astype(np.uint8).tobytes())
        if self.text:
            sizes, data = _bytes_of(chunk)
            lengths.update(sizes.tobytes())
            values.update(data)
        else:
            flat = chunk.cast(pa.uint8()) if pa.types.is_boolean(chunk.type) else chunk
            values.update(values_of(flat, 0).tobytes())

    def entry(self, name: str) -> list[str | None]:
        """The column's name, type and digest, as they stand in the seal."""
        digest = "".join(part.hexdigest() for part in self.parts)
        return [name, str(self.kind), digest] if self.taken else [name, None, None]


def _bytes_of(chunk: Any) -> tuple[NDArray[np.int64], memoryview]:
    """How long each value [n] of texts or binary values is (0 where it is null), and the bytes of all of them.

    They are read where they lie: Arrow's cast of a slice makes offsets for all that stands before it too, so that a
    column looked at in slices would take time and memory by the square of its rows.
    """
    kind = chunk.type
    if chunk.null_count:  # what stands in the place of a null is nobody's
        chunk = chunk.take(array_of(np.arange(len(chunk))))
        chunk, kind = chunk.cast(pa.large_binary()).fill_null(b""), pa.large_binary()
    here = slice(chunk.offset, chunk.offset + len(chunk))
    if pa.types.is_fixed_size_binary(kind):
        width, data = kind.byte_width, memoryview(chunk.buffers()[1] or b"")
        return np.full(len(chunk), width, np.int64), data[here.start * width : here.stop * width]
    wide = pa.types.is_large_binary(kind) or pa.types.is_large_string(kind)
    _, offsets, data = chunk.buffers()
    places = np.frombuffer(offsets or bytes(8), np.int64 if wide else np.int32)[here.start : here.stop + 1]
    return np.diff(places).astype(np.int64), memoryview(data or b"")[places[0] : places[-1]]


def column_digest(name: str, column: pa.ChunkedArray) -> str:
    """Digest of a column's values, whatever the chunks they come in."""
    digest = _ColumnDigest(name, column.type)
    digest.update(column)
    return json.dumps(digest.entry(name))


def _metadata_digest(metadata: dict[bytes, bytes] | None) -> str:
    rest = sorted((k.hex(), v.hex()) for k, v in (metadata or {}).items() if k not in (SEAL, _ARROW))
    return hashlib.blake2b(json.dumps(rest).encode(), digest_size=16).hexdigest()


class SealedWriter:
    """A Parquet file written table by table, with page checksums and a seal."""

    def __init__(self, sink: Any, schema: pa.Schema) -> None:
        self.sink, self.schema = sink, plain_schema(schema)
        self.digests = [_ColumnDigest(field.name, field.type) for field in self.schema]
        self.rows = 0
        often: Any = _repeated(self.schema)
        self.writer = pq.ParquetWriter(sink, self.schema, write_page_checksum=True, use_dictionary=often)

    def write_table(self, table: pa.Table) -> None:
        """Append the rows of a table of the writer's columns."""
        self.writer.write_table(table, row_group_size=GROUP_ROWS)
        self.rows += table.num_rows
        for digest, column in zip(self.digests, table.columns, strict=True):
            digest.update(column)

    def close(self) -> None:
        """Write the seal and the footer."""
        entries = [d.entry(name) for d, name in zip(self.digests, self.schema.names, strict=True)]
        about = {"bytes": self.sink.tell(), "rows": self.rows, "metadata": _metadata_digest(self.schema.metadata)}
        seal = {**about, "columns": entries}
        self.writer.add_key_value_metadata({SEAL.decode(): json.dumps(seal, separators=(",", ":"))})
        self.writer.close()


def _repeated(schema: pa.Schema) -> list[str]:
    """The columns whose values stand many times, which alone are worth a dictionary: not scores, keys and payloads."""
    kinds = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_dictionary)
    return [f.name for f in schema if f.name not in ("id", *BULKY) and any(is_kind(f.type) for is_kind in kinds)]


def write_sealed(table: pa.Table, sink: Any) -> None:
    """Write a table as one Parquet file to an open Arrow file or stream."""
    writer = SealedWriter(sink, table.schema)
    writer.write_table(table)
    writer.close()


def _reader(handle: Any, streamed: bool) -> pq.ParquetFile:
    """A reader that verifies page checksums; ``streamed`` it holds some pages of a column, not all of a row group's."""
    return pq.ParquetFile(handle, page_checksum_verification=True, buffer_size=STREAMED_BYTES if streamed else 0)


@contextlib.contextmanager
def _opened(file: Path, streamed: bool = False) -> Generator[tuple[pq.ParquetFile, dict[str, Any] | None]]:
    """A Parquet file and its seal, by path: a colon starts no URI; DamagedFile where reading fails, now or later.

    Raises:
        UsageError: it is at an address, and cannot be fetched.
    """
    in_parts = opened(file)
    try:
        source = pa.OSFile(str(file)) if in_parts is None else pa.PythonFile(in_parts, mode="r")
        with source as handle, _reader(handle, streamed) as reader:
            yield reader, _seal(handle, reader)
    except UNREADABLE as error:
        if in_parts is not None and in_parts.failed is not None:
            raise in_parts.failed from error
        raise DamagedFile(str(error).strip() or type(error).__name__) from error


def _seal(handle: Any, reader: pq.ParquetFile) -> dict[str, Any] | None:
    """The seal of a file, if it has one; DamagedFile where rows, names or metadata are not as they were written."""
    metadata = reader.metadata.metadata or {}
    if SEAL not in metadata or _ARROW not in metadata:
        return None
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(metadata[_ARROW])))
    if SEAL in (schema.metadata or {}):
        return None  # read and written by somebody else since
    end = handle.size() - 8
    handle.seek(end)
    footer = end - int.from_bytes(handle.read(4), "little")
    seal = parse_json(metadata[SEAL])
    if seal["bytes"] != footer:
        return None
    names = [name for name, _, _ in seal["columns"]]
    same = names == reader.schema_arrow.names and seal["rows"] == reader.metadata.num_rows
    if not same or {seal["metadata"]} != {_metadata_digest(metadata), _metadata_digest(schema.metadata)}:
        raise DamagedFile("its columns or metadata are not those that were written")
    return seal


def read_parquet_schema(file: Path) -> pa.Schema:
    """The schema of a Parquet file; DamagedFile where it cannot be read, or is not as it was written."""
    with _opened(file) as (reader, _):
        return plain_schema(reader.schema_arrow)


def read_parquet_table(file: Path, columns: list[str] | None = None, whole: bool = False) -> pa.Table:
    """The rows, some columns or all; DamagedFile where they cannot be read, or are not as they were written.

    They are read some row groups at a time: a whole column is built in twice the memory that it takes.  With ``whole``
    the columns of a sealed file that are not asked for are looked at too, and let go.
    """
    with _opened(file, streamed=True) as (reader, seal):
        if whole and columns is not None and seal is not None:
            _check_others(reader, seal, columns)
        parts = [reader.read_row_groups([], columns=columns)]  # their types
        checks = _ValueChecks(parts[0].schema, () if seal is None else seal["columns"])
        for groups in _groups_together(reader):
            parts.append(reader.read_row_groups(groups, columns=columns, use_threads=False))
            parts[-1].validate(full=True)
            checks.update(parts[-1])
        checks.close()
        table = pa.concat_tables(parts[1:] or parts)
        if table.nbytes > LARGE:
            trim_memory()
        return table.replace_schema_metadata(plain_schema(table.schema).metadata)


def _check_others(reader: pq.ParquetFile, seal: dict[str, Any], columns: list[str]) -> None:
    """Refuse (DamagedFile) values of columns that are not asked for, which are held a group of rows at a time."""
    names = [name for name, _, digest in seal["columns"] if digest is not None and name not in columns]
    for name in names:
        checks = _ValueChecks(reader.schema_arrow, [e for e in seal["columns"] if e[0] == name])
        for group in range(reader.num_row_groups):
            checks.update(reader.read_row_group(group, columns=[name], use_threads=False))
        checks.close()


class _ValueChecks:
    """Whether columns, as they are read, are those that a seal's ``entries`` say."""

    def __init__(self, schema: pa.Schema, entries: Iterable[list[str | None]]) -> None:
        self.known = {name: (kind, digest) for name, kind, digest in entries}
        self.digests = {f.name: _ColumnDigest(f.name, f.type) for f in schema if self.known.get(f.name, (0, None))[1]}

    def update(self, table: pa.Table) -> None:
        """Look at some rows."""
        for name, digest in self.digests.items():
            digest.update(table.column(name))

    def close(self) -> None:
        """Refuse (DamagedFile) values that are not those that were written."""
        for name, digest in self.digests.items():
            if digest.entry(name) != [name, *self.known[name]]:
                raise DamagedFile(f"the values of column {name} are not those that were written")


def read_parquet_batches(file: Path, size: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows in batches of at most ``size``; DamagedFile where a page cannot be read, or is not as it was written."""
    with _opened(file, streamed=True) as (reader, _):
        for groups in _groups_together(reader):
            several = reader.metadata.num_rows >= GROUP_ROWS  # of less, handing columns to threads is most of the work
            for batch in reader.iter_batches(batch_size=size, row_groups=groups, columns=columns, use_threads=several):
                yield batch.replace_schema_metadata(plain_schema(batch.schema).metadata)


def _groups_together(reader: pq.ParquetFile) -> Iterator[list[int]]:
    """The row groups in order, small ones together: the reader holds what it read of all that it is asked for."""
    together, rows = list[int](), 0
    for group in range(reader.num_row_groups):
        together.append(group)
        rows += reader.metadata.row_group(group).num_rows
        if rows >= GROUP_ROWS:
            yield together
            together, rows = [], 0
    if together:
        yield together

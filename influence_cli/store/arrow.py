"""Arrow arrays from numpy's and back, by their buffers.

pyarrow's own conversions (``pa.array``, ``to_numpy``, ``fill_null``) import pandas, which takes a quarter of the time
of a run that has nothing to compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def array_of(values: NDArray[Any], null: NDArray[np.bool_] | None = None) -> pa.Array:
    """Numbers [n] as an Arrow array, with null where ``null`` [n] is true."""
    valid = None if null is None else pa.py_buffer(np.packbits(~null, bitorder="little"))
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [valid, data])


def mask_of(values: NDArray[np.bool_]) -> pa.Array:
    """Truth values [n] as an Arrow array."""
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(np.packbits(values, bitorder="little"))])


def array_of_texts(texts: Sequence[str]) -> pa.Array:
    """Texts [n] as an Arrow array."""
    raw = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, raw)], dtype=np.int64)
    large = pa.Array.from_buffers(pa.large_string(), len(raw), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(raw))])
    return large.cast(pa.string())


def is_valid(column: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Whether each value [n] of a column is there."""
    return np.concatenate([np.zeros(0, bool), *(_is_valid(chunk) for chunk in _chunks(column))])


def values_of(column: pa.Array | pa.ChunkedArray, null: float) -> NDArray[Any]:
    """The numbers [n] of a column, ``null`` where there is none, as an array of its own."""
    kind = np.dtype(column.type.to_pandas_dtype())  # a type of numpy's, all the same
    found = [np.zeros(0, kind)]
    for chunk in _chunks(column):
        data = np.frombuffer(chunk.buffers()[1] or b"", kind, chunk.offset + len(chunk))[chunk.offset :]
        found.append(data if chunk.null_count == 0 else np.where(_is_valid(chunk), data, np.array(null, kind)))
    return np.concatenate(found)


def _chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _is_valid(chunk: pa.Array) -> NDArray[np.bool_]:
    bits = chunk.buffers()[0]
    if bits is None:
        return np.full(len(chunk), chunk.null_count == 0)
    first, skipped = divmod(chunk.offset, 8)  # of a slice no more is looked at than its own bytes
    own = np.frombuffer(bits, np.uint8)[first : -(-(chunk.offset + len(chunk)) // 8)]
    return np.unpackbits(own, bitorder="little")[skipped : skipped + len(chunk)].astype(bool)

"""Tables that a Python program holds, as Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

IDS = ("id", "uid", "row_id")  # what ids are called


def name_of(source: Any) -> str:
    """What rows in memory are called in messages."""
    return f"the {type(source).__name__}"


def as_table(source: Any) -> pa.Table | None:
    """An Arrow table, or a pandas or polars frame as one; None for anything else."""
    if isinstance(source, pa.Table):
        return source
    if type(source).__module__.startswith("pandas") and hasattr(source, "columns"):
        return _of_pandas(source)
    if callable(getattr(source, "to_arrow", None)):
        return source.to_arrow()
    return None


def _of_pandas(frame: Any) -> pa.Table:
    """A DataFrame; columns of mixed objects as text, and an index that is an id, or says something, as a column."""
    index = frame.index
    if type(index).__name__ != "RangeIndex" or index.name is not None:
        own = str(index.name).lower() in IDS and str(index.name) not in map(str, frame.columns)
        named = [str(index.name)] if own else [f"__index_level_{k}__" for k in range(index.nlevels)]
        frame = frame.set_axis(index.set_names(named), axis=0).reset_index(allow_duplicates=True)
    columns: dict[str, Any] = {}
    names = ["_".join(str(part) for part in name if str(part)) if isinstance(name, tuple) else str(name)
             for name in frame.columns]  # fmt: skip
    for k, name in enumerate(names):
        values = frame.iloc[:, k]
        if str(values.dtype).startswith(("period", "interval")):
            values = values.astype(str)
        try:
            columns[name] = pa.array(values, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            columns[name] = _as_texts(values.tolist())
    if len(columns) < len(names):
        return pa.Table.from_arrays([columns[name] for name in names], names=names)
    return pa.table(columns)


def _as_texts(values: Sequence[Any]) -> pa.Array:
    return pa.array([None if is_missing(v) else str(v) for v in values], pa.string())


def is_missing(value: Any) -> bool:
    """None, NaN, or what pandas has in their place, which cannot be compared."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):
        return not hasattr(value, "__len__")

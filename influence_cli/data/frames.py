"""Tables that a Python program holds, as Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa


def name_of(source: Any) -> str:
    """What rows in memory are called in messages."""
    return f"the {type(source).__name__}"


def as_table(source: Any) -> pa.Table | None:
    """An Arrow table, or a pandas or polars frame as one; None for anything else."""
    if isinstance(source, pa.Table):
        return source
    if type(source).__module__.startswith("pandas"):
        return _of_pandas(source)
    if callable(getattr(source, "to_arrow", None)):
        return source.to_arrow()
    return None


def _of_pandas(frame: Any) -> pa.Table:
    """A DataFrame without its index; columns of mixed objects as text."""
    columns: dict[str, Any] = {}
    names = [str(name) if not isinstance(name, tuple) else "_".join(map(str, name)) for name in frame.columns]
    for k, name in enumerate(names):
        values = frame.iloc[:, k]
        try:
            columns[name] = pa.array(values, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            columns[name] = _as_texts(values.tolist())
    if len(columns) < len(names):
        return pa.Table.from_arrays([columns[name] for name in names], names=names)
    return pa.table(columns)


def _as_texts(values: Sequence[Any]) -> pa.Array:
    return pa.array([None if v is None or v != v else str(v) for v in values], pa.string())

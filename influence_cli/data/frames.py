"""Tables that a Python program holds, as Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

NUMBERED = "rows are numbered"
_INDEX = b"influence.index"
IDS = ("id", "uid", "row_id")  # what ids are called


def name_of(source: Any) -> str:
    """What rows in memory are called in messages."""
    return f"the {type(source).__name__}"


def is_frame(source: Any) -> bool:
    """Whether it is a table in memory."""
    pandas = type(source).__module__.startswith("pandas") and hasattr(source, "columns")
    return isinstance(source, pa.Table) or pandas or callable(getattr(source, "to_arrow", None))


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
    """A DataFrame; columns of mixed objects as text, and an index that is an id, or says something, as a column.

    An index that was made or named by somebody is the id, where each row has its own and no column is called so.
    """
    index, said = frame.index, ""
    counted = type(index).__name__ == "RangeIndex" and (index.start, index.step) == (0, 1)
    if not counted or index.name is not None:
        taken = {str(name).lower() for name in frame.columns} & set(IDS)
        own = index.nlevels == 1 and index.is_unique and not index.hasnans and not taken
        name = str(index.name) if str(index.name).lower() in IDS else "id"
        called = "" if index.name is None else f" {index.name}"
        if own:
            said = f"the id is pandas' index{called}"
        elif not taken:
            why = "has several levels" if index.nlevels > 1 else "repeats, or lacks a value"
            said = f"pandas' index{called} {why}: {NUMBERED}"
        named = [name] if own else [f"__index_level_{k}__" for k in range(index.nlevels)]
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
    table = pa.Table.from_arrays([columns[name] for name in names], names=names)
    return table.replace_schema_metadata({_INDEX: said}) if said else table


def index_said(table: pa.Table) -> str:
    """What became of the index of a frame that was made a table; nothing where it only counts rows."""
    return (table.schema.metadata or {}).get(_INDEX, b"").decode()


def _as_texts(values: Sequence[Any]) -> pa.Array:
    return pa.array([None if is_missing(v) else str(v) for v in values], pa.string())


def is_missing(value: Any) -> bool:
    """None, NaN, or what pandas has in their place, which cannot be compared."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):
        return not hasattr(value, "__len__")

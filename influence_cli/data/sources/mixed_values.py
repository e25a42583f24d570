"""Values as Python has them, of one type or of several, as a column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from influence_cli.errors import ManifestError


def as_column(values: Sequence[Any], name: str, where: str) -> pa.Array:
    """Python values as a column: of one type where they are, otherwise as text.

    Raises:
        ManifestError: lists or objects stand beside other values, or a text is no Unicode; names the row.
    """
    nested = [isinstance(v, list | dict) for v in values]
    odd = [k for k, v in enumerate(values) if v is not None and not nested[k]] if any(nested) else []
    place = f"{where}, column {name}"
    if odd:
        what = f"column {name} holds lists or objects in some rows, and other values in others"
        raise ManifestError(what, where=f"{where}, row {odd[0]}, column {name}", fix="write all rows alike")
    try:
        return _numeric(values) or pa.array(values, from_pandas=True)
    except UnicodeEncodeError as error:
        raise ManifestError("a text is no Unicode (half a surrogate pair)", where=place, fix="repair it") from error
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        if any(nested):
            fix = "write lists of numbers, or objects of the same keys"
            raise ManifestError(f"column {name} cannot be read ({error})", where=place, fix=fix) from error
        return pa.array([v if v is None or isinstance(v, str) else str(v) for v in values], pa.string())


def _numeric(values: Iterable[Any]) -> pa.Array | None:
    """Integers and real numbers together; Arrow takes them for a mixture."""
    kinds = {type(v) for v in values if v is not None}
    if not kinds or not kinds <= {int, float}:
        return None
    if kinds == {int}:
        return pa.array(values)
    return pa.array([None if v is None else float(v) for v in values], pa.float64())

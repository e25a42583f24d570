"""A manifest's narrow columns in as little memory as they take: nothing of a million rows twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.kinds.protocol import is_text
from influence_cli.store.arrow import array_of


def ids_in_one_piece(table: pa.Table) -> pa.Table:
    """The table with its ids as one array, which sequences of them share."""
    kind, column = table.schema.field("id"), table.column("id")
    if column.num_chunks < 2 or not is_text(kind.type):
        return table
    return table.set_column(table.column_names.index("id"), kind, column.combine_chunks())


def sharing_labels(table: pa.Table, name: str, labels: NDArray[Any]) -> pa.Table:
    """The table with labels [n] as its column of whole numbers, where that holds the same."""
    if name not in table.column_names or table.schema.field(name).type != pa.int64() or labels.dtype != np.int64:
        return table
    if table.column(name).null_count or labels.min() < 0:  # rows that are left out have others there
        return table
    return table.set_column(table.column_names.index(name), table.schema.field(name), array_of(labels))

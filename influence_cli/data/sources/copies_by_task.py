"""Which features are the label under another name, in the sense of each task."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.label_kinds import NOTHING, NUMBERS, TASKS
from influence_cli.data.plain_types import pc
from influence_cli.data.sources.chunks import Chunks
from influence_cli.data.sources.features import NUMBER, as_texts, column_of, numbers_of
from influence_cli.data.sources.label_copies import LabelCopy, label_copies, number_copies
from influence_cli.data.sources.label_values import labels_of
from influence_cli.data.sources.roles import Roles, Seen

JOINED = "\0labels"  # no column is called so


def copies_of(chunks: Chunks, roles: Roles, seen: Seen) -> list[tuple[str, LabelCopy]]:
    """The features that are the label, or one of several, or say all of these; each with what it is a copy of."""
    holds, features = TASKS[roles.task].holds, [f.column for f in roles.features]
    if holds == NOTHING or not features:
        return []
    found: dict[str, tuple[str, LabelCopy]] = {}
    if holds == NUMBERS:
        columns = [f.column for f in roles.features if f.kind == NUMBER]
        copies = number_copies(_numbers(chunks, roles, seen), roles.label, columns, seen.rows)
        found |= {copy.column: (roles.label, copy) for copy in copies}
    for label in roles.labels or (roles.label,):
        for copy in label_copies((chunk.table for chunk in chunks()), label, features, seen.rows):
            found.setdefault(copy.column, (label, copy))
    if roles.labels:
        for copy in label_copies(_joined(chunks, roles), JOINED, features, seen.rows):
            found.setdefault(copy.column, (", ".join(roles.labels[:3]), copy))
    return [found[name] for name in features if name in found]


def _numbers(chunks: Chunks, roles: Roles, seen: Seen) -> Iterator[dict[str, NDArray[np.float64]]]:
    """The numbers [n] of the label and of each feature that is a number, chunk by chunk."""
    for chunk in chunks():
        table = chunk.table
        label = labels_of(lambda name, t=table: column_of(t, name), roles, roles.label, seen, chunk.where)
        numbers = {f.column: numbers_of(column_of(table, f.column), f.form, f.unit)
                   for f in roles.features if f.kind == NUMBER}  # fmt: skip
        yield numbers | {roles.label: numbers_of(label)}


def _joined(chunks: Chunks, roles: Roles) -> Iterator[pa.Table]:
    """The tables, with a column that says all labels of a row."""
    for chunk in chunks():
        texts = [pc.fill_null(as_texts(column_of(chunk.table, name)), "") for name in roles.labels]
        yield chunk.table.append_column(JOINED, pc.binary_join_element_wise(*texts, ";"))

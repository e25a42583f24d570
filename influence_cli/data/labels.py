"""The labels of a manifest: numbered as another's, and those of other columns numbered as its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.classes import CLEAN, Names, class_count, numbers_in
from influence_cli.data.kinds.protocol import is_text
from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.data.row_checks import RowChecks
from influence_cli.errors import ManifestError, nearest
from influence_cli.events import SILENT, Listener
from influence_cli.store.keys import row_keys


def numbered_as(manifest: Manifest, classes: Names | None, of: str, listener: Listener = SILENT) -> Manifest:
    """The manifest with its labels numbered as in ``classes``, which are those of ``of``; where any changes, a note.

    Raises:
        ManifestError: it has a class, or a row a label, that is none of them.
    """
    of = "the training rows" if of == manifest.source else of  # rows in memory are called by their type
    if manifest.label_kind.holds != CLASSES:
        return _named_alike(manifest, classes, of)
    numbers = numbers_in(manifest.classes, classes, manifest.source, of)
    if numbers is None:
        known = classes is not None and manifest.classes not in (None, tuple(classes))
        return replace(manifest, classes=tuple(classes or ())) if known else manifest
    labels, used = manifest.labels, manifest.all_rows().index
    found = np.array([numbers.get(label, -1) for label in labels.tolist()], dtype=np.int64)
    lost = used[found[used] < 0]
    if len(lost):
        what = f"label {labels[lost[0]]} is none of the classes of {of}"
        fix = "correct the label, or name the classes of both manifests (schema metadata key 'classes')"
        raise ManifestError(what, where=manifest.place(lost[0]), fix=fix)
    listener.note(f"labels of {manifest.source} are numbered as in {of}, by the names of the classes")
    before = manifest.numbers
    numbers = numbers if before is None else {k: numbers[v] for k, v in before.items() if v in numbers}
    names = None if classes is None else tuple(classes)
    keys = row_keys(manifest.payload_keys, found)
    return replace(manifest, labels=found, row_keys=keys, classes=names, numbers=numbers)


def _named_alike(manifest: Manifest, names: Names | None, of: str) -> Manifest:
    """The manifest itself, whose labels have no numbers.  Raises ManifestError: they have other names, or an order."""
    own = manifest.classes
    if own is None or names is None or tuple(own) == tuple(names):
        return manifest
    here, there = (", ".join(some[:10]) for some in (own, names))
    fix = "write the labels of both in one order: influence manifest SOURCE --like MANIFEST"
    raise ManifestError(f"its labels ({here}) are not those of {of} ({there})", where=manifest.source, fix=fix)


def clean_labels(rows: Rows, column: str = CLEAN) -> NDArray[np.int64] | None:
    """True classes [n] of rows, -1 where unknown; None where there is no such column.

    Raises:
        ManifestError: one is no class.
    """
    there = column in rows.manifest.table.column_names
    return column_labels(rows.manifest, column)[rows.index] if there else None


def wrong_labels(
    rows: Rows, labels: NDArray[Any] | None = None, column: str = CLEAN
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Which rows [n] have another label than the true one, and of which that is known; None without such a column.

    ``labels`` stand for the rows' own, where given.

    Raises:
        ManifestError: a true label is none of the manifest's task.
    """
    manifest = rows.manifest
    if column not in manifest.table.column_names:
        return None
    true = clean_labels(rows, column) if manifest.label_kind.holds == CLASSES else None
    if true is not None:
        known = true >= 0
    else:
        checks = RowChecks(manifest.source, manifest.table, skip=True)  # a row without one is not known
        true = manifest.label_kind.read(checks, column)[rows.index]
        known = ~np.isin(rows.index, list(checks.bad))
    return known & manifest.label_kind.differ(true, rows.labels if labels is None else labels), known


def column_labels(manifest: Manifest, column: str) -> NDArray[np.int64]:
    """The labels of another column than the one that is scored [n], numbered as that one; -1 where null.

    Raises:
        ManifestError: they are neither whole numbers nor names, or one is no class.
    """
    stored = manifest.table.column(column)
    kind = stored.type.value_type if pa.types.is_dictionary(stored.type) else stored.type
    if pa.types.is_null(kind):
        return np.full(len(stored), -1, dtype=np.int64)
    text = is_text(kind) or pa.types.is_string_view(kind)
    if not (text or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        where = f"{manifest.source}, column {column}"
        raise ManifestError(f"clean labels are {kind}, not integers", where=where, fix="number the classes")
    values = [None if v is None or v != v else v for v in stored.to_pylist()]
    if not text:
        number = _number_of_number(manifest, values)
    elif manifest.classes:
        number = {name: k for k, name in enumerate(manifest.classes)}
    else:  # names that are whole numbers are labels
        number = {name: int(name) for name in set(values) if name is not None and name.isdecimal()}
    for row, value in enumerate(values):
        if value is not None and value not in number:
            known = manifest.classes or [str(k) for k in range(class_count(None, manifest.labels))]
            fix = nearest(str(value), list(known))
            raise ManifestError(f"{value!r} is no class", where=manifest.place(row, column), fix=fix)
    return np.array([-1 if v is None else number[v] for v in values], dtype=np.int64)


def _number_of_number(manifest: Manifest, values: Sequence[Any]) -> dict[Any, int]:
    """The label of every number; a negative one is unknown, as it always was."""
    known, most = manifest.numbers, len(manifest.classes) if manifest.classes else None
    found: dict[Any, int] = {}
    for value in {v for v in values if v is not None and float(v).is_integer()}:
        label = int(value) if known is None or value < 0 else known.get(int(value), most)
        if label is not None and (most is None or label < most):
            found[value] = max(label, -1)
    return found

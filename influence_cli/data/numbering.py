"""A manifest with its labels numbered as another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.classes import Names, numbers_in
from influence_cli.errors import ManifestError
from influence_cli.events import SILENT, Listener
from influence_cli.store.keys import row_keys

if TYPE_CHECKING:
    from influence_cli.data.manifest import Manifest


def numbered_as(manifest: Manifest, classes: Names | None, of: str, listener: Listener = SILENT) -> Manifest:
    """The manifest with its labels numbered as in ``classes``, which are those of ``of``; where any changes, a note.

    Raises:
        ManifestError: it has a class, or a row a label, that is none of them.
    """
    of = "the training rows" if of == manifest.source else of  # rows in memory are called by their type
    numbers = numbers_in(manifest.classes, classes, manifest.source, of)
    if numbers is None:
        known = classes is not None and manifest.classes not in (None, tuple(classes))
        return replace(manifest, classes=tuple(classes or ())) if known else manifest
    labels = _renumbered(manifest, numbers, of)
    listener.note(f"labels of {manifest.source} are numbered as in {of}, by the names of the classes")
    before = manifest.numbers
    return replace(
        manifest,
        labels=labels,
        row_keys=row_keys(manifest.payload_keys, labels),
        classes=None if classes is None else tuple(classes),
        numbers=numbers if before is None else {k: numbers[v] for k, v in before.items() if v in numbers},
    )


def _renumbered(manifest: Manifest, numbers: Mapping[int, int], of: str) -> NDArray[np.int64]:
    labels = manifest.labels
    found = np.array([numbers.get(label, -1) for label in labels.tolist()], dtype=np.int64)
    lost = manifest.all_rows().index
    lost = lost[found[lost] < 0]
    if len(lost):
        raise ManifestError(
            f"label {labels[lost[0]]} is none of the classes of {of}",
            where=f"{manifest.source}, row id={manifest.ids[lost[0]]}",
            fix="correct the label, or name the classes of both manifests (schema metadata key 'classes')",
        )
    return found

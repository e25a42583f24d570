"""The rows that a model is trained on or tried on, decoded once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.errors import ModelError
from influence_cli.events import Listener, Progress
from influence_cli.model.decoded import OddRows, decoded_by_place, rows_at
from influence_cli.model.examples import batches, chunked
from influence_cli.model.spec import ModelSpec


class Examples:
    """Decoded rows [n, ...] with ids, labels and weights, in memory or a mapped file."""

    def __init__(self, rows: Rows, spec: ModelSpec, listener: Listener, what: str) -> None:
        """Decode every row.

        Raises:
            ModelError: a task's transform gives inputs of several shapes.
        """
        self.ids, self.labels, self.weights, self.spec = rows.ids, rows.labels, rows.weights, spec
        self.inputs: NDArray[np.float64] | None = None  # kept by ``train.convex``
        place = {row: k for k, row in enumerate(rows.index.tolist())}
        with listener.progress(f"decode {what}", len(rows), "rows decoded") as progress:
            try:
                self.values = decoded_by_place(self._batches(rows, progress), place)
            except OddRows as error:
                raise ModelError(
                    f"{error} (from row id={rows.manifest.ids[error.row]} on)",
                    fix="let the task's transform give inputs of one shape and type",
                ) from error

    def _batches(self, rows: Rows, progress: Progress) -> Iterator[tuple[NDArray[np.int64], Any]]:
        for index, decoded in batches(rows.manifest, chunked(rows.manifest.payloads(rows.index), 256), self.spec):
            yield index, decoded
            progress.advance(len(index))

    def at(self, places: NDArray[np.int64] | slice) -> Any:
        """The decoded rows at some places."""
        return rows_at(self.values, places)

    def __len__(self) -> int:
        return len(self.ids)

"""The pass over the training rows for values of their own gradients: by row, since the label is part of the gradient.

A row whose label has changed is a row that was not seen; every full shard is written as soon as it is complete.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.methods.protocol import OfBlocks
from influence_cli.stages.grads.row_pass import Unusable, batch_size
from influence_cli.stages.run.job import Job, Member
from influence_cli.stages.run.plan import Work, key_list, timing_key
from influence_cli.store.keys import stack

if TYPE_CHECKING:
    from influence_cli.engines.point import Point


def value_pass(job: Job, work: Work, point: Point, what: str, functions: dict[str, OfBlocks]) -> None:
    """Compute and store the values that rows lack at one member; ``functions`` are by method."""
    import torch

    from influence_cli.engines.batch_size import Parts
    from influence_cli.engines.row_values import RowValues
    from influence_cli.model.examples import batches, chunked, move, to_input

    assert job.model is not None
    lacking = {name: set(key_list(keys)) for name, keys in work.values.items() if len(keys)}
    key_of = first_rows(job.train, set().union(*lacking.values()))
    if not key_of:
        return  # the pass before has left them out
    values = RowValues(point, job.row_loss, [functions[name] for name in lacking])
    writer, unusable, parts = _ValueWriter(job, work.member, lacking), Unusable(job), Parts(job.listener.warn)
    started = time.perf_counter()
    chunks = chunked(job.manifest.payloads(np.array(sorted(key_of), dtype=np.int64)), batch_size(job))
    try:
        with job.listener.progress(f"row gradients, {what}", len(key_of)) as progress:
            rows = batches(job.manifest, chunks, job.model, job.runtime.workers, unusable.listen, job.held)
            for index, decoded in rows:
                x = to_input(move(decoded, point.device), job.model, point.dtype)
                y = torch.from_numpy(job.manifest.labels[index]).to(point.device)
                of_part = lambda part, x=x, y=y: (values.of(x[part], y[part]), [])  # noqa: E731
                found, _ = parts.run(of_part, torch.arange(len(x), device=point.device))
                writer.add(index, [key_of[row] for row in index.tolist()], found.cpu().numpy())
                progress.advance(len(index))
    except KeyboardInterrupt:
        writer.flush()
        raise
    writer.flush()
    unusable.leave_out()
    job.store.write_timing(timing_key(job, True, values=True), (time.perf_counter() - started) / len(key_of))


def first_rows(rows: Rows, wanted: set[bytes]) -> dict[int, bytes]:
    """The first manifest row of every row key that is wanted."""
    first: dict[bytes, int] = {}
    for row, key in zip(rows.index.tolist(), key_list(rows.row_keys), strict=True):
        if key in wanted:
            first.setdefault(key, row)
    return {row: key for key, row in first.items()}


class _ValueWriter:
    """Collects values and writes a shard for each method whenever one is full."""

    def __init__(self, job: Job, member: Member, lacking: dict[str, set[bytes]]) -> None:
        self.job, self.member, self.lacking = job, member, lacking
        self.pending: dict[str, list[tuple[int, bytes, float]]] = {name: [] for name in lacking}

    def add(self, rows: NDArray[np.int64], keys: list[bytes], values: NDArray[np.float64]) -> None:
        """Take one batch: ``values`` [b, k] holds a column for every method."""
        for (name, wanted), column in zip(self.lacking.items(), values.T.tolist(), strict=True):
            found = zip(rows.tolist(), keys, column, strict=True)
            self.pending[name] += [entry for entry in found if entry[1] in wanted]
            if len(self.pending[name]) >= self.job.runtime.shard_rows:
                self._write(name)

    def flush(self) -> None:
        """Write what is left."""
        for name in self.pending:
            self._write(name)

    def _write(self, name: str) -> None:
        if not self.pending[name]:
            return
        rows, keys, values = zip(*self.pending[name], strict=True)
        payloads = self.job.manifest.payload_keys[list(rows)]
        tensors = {"value": np.array(values, dtype=np.float64), "payload_keys": payloads}
        self.job.row_values(name, self.member).write(stack(list(keys)), tensors)
        self.pending[name] = []

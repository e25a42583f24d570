"""The pass over rows for their own gradients: training rows, then target rows, shard by shard.

A row whose label has changed is a row that was not seen; every full shard is written as soon as it is complete.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.errors import ModelError, StoreError
from influence_cli.stages.grads.row_pass import Unusable, batch_size
from influence_cli.stages.grads.value_pass import first_rows
from influence_cli.stages.run.gradient_plan import RowWork, check_size, rate_key
from influence_cli.stages.run.job import Job, require_model
from influence_cli.stages.run.plan import key_list
from influence_cli.store import Keys
from influence_cli.store.gradients import SHARD_BYTES
from influence_cli.store.keys import stack

if TYPE_CHECKING:
    import torch

    from influence_cli.engines.row_gradients import RowGradients

AT_ONCE = 1 << 25  # most values that a batch of rows has in memory


def gradient_pass(job: Job, work: RowWork) -> int:
    """Compute and store the rows that lack their gradient; returns how many.

    Raises:
        UsageError: they are more bytes than the run's limit.
        ModelError: no layer gives the gradient of a selected parameter, or no row has finite logits.
    """
    from influence_cli.engines.point import DTYPES, Point
    from influence_cli.engines.row_gradients import RowGradients
    from influence_cli.model.build import device_of, load_model

    spec, checkpoint = require_model(job)
    request, precision = work.request, "fp32" if job.spec.precision == "bf16" else job.spec.precision
    model = load_model(spec, checkpoint, DTYPES[precision])
    point = Point(model, request.params, request.member.dropout, precision, device_of(job.runtime.device))
    gradients = RowGradients(point, job.row_loss, request.sketch_dim, request.seed)
    check_size(job, work, gradients.dim)
    started, writer, unusable = time.perf_counter(), _Writer(job, work, gradients), Unusable(job)
    try:
        _pass(job, job.train, work.train, writer, "training rows", unusable)
        _pass(job, job.target, work.target, writer, "target rows", None)
    except KeyboardInterrupt:
        writer.flush()
        raise
    writer.finish()
    unusable.leave_out()
    job.store.write_timing(rate_key(job, request), (time.perf_counter() - started) / work.rows)
    return work.rows


def _pass(job: Job, rows: Rows, wanted: Keys, writer: _Writer, what: str, unusable: Unusable | None) -> None:
    """The rows of one manifest; their shards are their own."""
    import torch

    from influence_cli.engines.batch_size import Parts
    from influence_cli.model.examples import batches, chunked, move, to_input

    manifest, gradients, listen = rows.manifest, writer.gradients, None if unusable is None else unusable.listen
    assert job.model is not None
    key_of = first_rows(rows, set(key_list(wanted)))
    size = max(1, min(batch_size(job), AT_ONCE // max(1, gradients.dim)))
    chunks = chunked(manifest.payloads(np.array(sorted(key_of), dtype=np.int64)), size) if key_of else iter([])
    parts, point = Parts(job.listener.warn), gradients.point
    with job.listener.progress(f"row gradients, {what}", len(key_of)) as progress:
        for index, decoded in batches(manifest, chunks, job.model, job.runtime.workers, listen):
            x = to_input(move(decoded, point.device), job.model, point.dtype)
            labels, payload_keys = manifest.labels[index], manifest.payload_keys[index]
            keys = [key_of[row] for row in index.tolist()]
            if gradients.ready(x):
                y = torch.from_numpy(labels).to(point.device)
                of_part = lambda part, x=x, y=y: _apart(gradients.of(x[part], y[part]))  # noqa: E731
                value, (norms, logits) = parts.run(of_part, torch.arange(len(x), device=point.device))
                with np.errstate(invalid="ignore", over="ignore"):
                    loss = job.row_loss.losses(logits.cpu().numpy(), labels)
                made = {"value": value.cpu().numpy(), "loss": loss, "norms": norms.cpu().numpy()}
                writer.add(keys, {**made, "payload_keys": payload_keys})
            else:
                writer.postpone(keys, payload_keys)
            progress.advance(len(index))
    writer.flush()


def _apart(found: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return found[0], list(found[1:])


class _Writer:
    """Collects computed rows and writes a shard whenever one is full, by rows or by bytes."""

    def __init__(self, job: Job, work: RowWork, gradients: RowGradients) -> None:
        self.job, self.work, self.gradients = job, work, gradients
        self.pending: list[tuple[list[bytes], dict[str, NDArray[Any]]]] = []
        self.count = 0
        self.postponed: list[tuple[list[bytes], NDArray[np.uint8]]] = []  # rows without finite logits, before any had

    def add(self, keys: list[bytes], values: dict[str, NDArray[Any]]) -> None:
        """Take one batch."""
        if self.count == 0:
            self._check_layout()
        self.pending.append((keys, values))
        self.count += len(keys)
        most = max(1, min(self.job.runtime.shard_rows, SHARD_BYTES // max(1, values["value"][0].nbytes)))
        while self.count >= most:
            self._write(most)

    def postpone(self, keys: list[bytes], payload_keys: NDArray[np.uint8]) -> None:
        """Take a batch of unusable rows whose columns are not known yet."""
        self.postponed.append((keys, payload_keys))

    def flush(self) -> None:
        """Write what is left."""
        if self.count:
            self._write(self.count)

    def finish(self) -> None:
        """Write the rows that had to wait.

        Raises:
            ModelError: the logits of no row were finite.
        """
        layout = self.gradients.layout() if self.gradients.layers is not None else self.work.folder.layout
        if self.postponed and layout is None:
            raise ModelError("the logits of no row are finite", fix="check the checkpoint and the inputs")
        for keys, payload_keys in self.postponed:
            assert layout is not None
            dtype = np.float64 if self.job.spec.precision == "fp64" else np.float32
            shapes = {"value": (layout["dim"],), "norms": (len(layout["layers"]),), "loss": ()}
            blank = {
                name: np.full((len(keys), *shape), np.nan, dtype if name == "value" else np.float64)
                for name, shape in shapes.items()
            }
            self.work.folder.write(stack(keys), {**blank, "payload_keys": payload_keys}, layout)

    def _check_layout(self) -> None:
        known = self.work.folder.layout
        if known is not None and known != self.gradients.layout():
            raise StoreError(
                "the model's layers are not those of the rows that are stored",
                where=str(self.work.folder.path),
                fix="take that folder out of the store",
            )

    def _write(self, count: int) -> None:
        """Write the first ``count`` rows as one shard."""
        keys = [k for ks, _ in self.pending for k in ks]
        values = {name: np.concatenate([v[name] for _, v in self.pending]) for name in self.pending[0][1]}
        first = {name: v[:count] for name, v in values.items()}
        self.work.folder.write(stack(keys[:count]), first, self.gradients.layout())
        self.pending = [(keys[count:], {name: v[count:] for name, v in values.items()})] if count < len(keys) else []
        self.count -= count

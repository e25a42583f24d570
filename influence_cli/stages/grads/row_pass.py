"""The pass over the training rows at one member: logits, and tangents along every direction that lacks some.

Rows that lack the same things share a batch; every full shard is written as soon as it is complete.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.data.row_checks import BadRow
from influence_cli.stages.grads.first_look import FirstLook
from influence_cli.stages.run.job import Job
from influence_cli.stages.run.plan import Work, index_by_key, key_list, timing_key
from influence_cli.store.keys import stack

if TYPE_CHECKING:
    import torch

    from influence_cli.data.manifest import Payload
    from influence_cli.engines.batch_size import Pace
    from influence_cli.engines.point import Point

LARGEST_BATCH = 256
LARGEST_ON_ACCELERATOR = 16  # times the size to begin with


def batch_size(job: Job) -> int:
    """Rows a batch: as asked, or 256, fewer for large inputs (about 3 million input values a batch)."""
    if job.runtime.batch_size:
        return job.runtime.batch_size
    values = int(np.prod(job.model.shape)) if job.model else 1
    return int(np.clip(3_000_000 // values, 4, LARGEST_BATCH))


def row_pass(job: Job, work: Work, point: Point, what: str, look: FirstLook) -> None:
    """Logits and tangents of the rows that lack any; rows that lack the same things share a batch."""
    import torch

    from influence_cli.engines.batch_size import Pace, Parts
    from influence_cli.engines.engine import Engine
    from influence_cli.model.examples import batches, move, sent_back, to_input

    assert job.model is not None
    # a target too small to be halved has no half direction
    halves = {name: keys for name, keys in work.halves.items() if job.store.direction_meta(name) is not None}
    wanted = {name: set(key_list(keys)) for name, keys in (work.tangents | halves).items() if len(keys)}
    directions = {name: read_direction(job, name, point) for name in wanted}
    lacking_outputs = set(key_list(work.outputs))
    row_of = index_by_key(job.train)
    key_of = {
        row: key for key, row in row_of.items() if key in lacking_outputs or any(key in w for w in wanted.values())
    }
    needs = {row: tuple(name for name in wanted if key in wanted[name]) for row, key in key_of.items()}
    writer, unusable, parts = _ShardWriter(job, work), Unusable(job), Parts(job.listener.warn)
    started, size = time.perf_counter(), batch_size(job)
    measured = point.device.type != "cpu" and not job.runtime.batch_size
    pace, last = Pace(size, size * (LARGEST_ON_ACCELERATOR if measured else 1)), started
    engine = Engine(point, job.runtime.engine, job.listener)
    waiting: list[tuple[Any, tuple[str, ...], Any]] = []  # the batch before, whose results are on their way

    def keep() -> None:
        nonlocal last
        index, names, values = waiting.pop(0)
        found, keys = values(), [key_of[int(row)] for row in index]
        look.saw(index, found[0])
        writer.add(keys, [k in lacking_outputs for k in keys], names, found)
        progress.advance(len(index))
        pace.took(names, len(index), time.perf_counter() - last)
        pace.stop_at(parts.most)
        last = time.perf_counter()

    try:
        with job.listener.progress(f"training rows, {what}", len(key_of)) as progress:
            chunks = _grouped(job, needs, pace, look)
            rows = batches(job.manifest, chunks, job.model, job.runtime.workers, unusable.listen, job.held)
            for index, decoded in rows:
                names = needs[int(index[0])]
                x = to_input(move(decoded, point.device), job.model, point.dtype)
                along = [directions[name] for name in names]
                z, tangents = parts.run(lambda part, along=along: engine.outputs(part, along), x)
                waiting.append((index, names, sent_back(torch.stack([z, *tangents]))))
                if len(waiting) > 1 or point.device.type == "cpu":
                    keep()
            while waiting:
                keep()
    except KeyboardInterrupt:
        writer.flush()
        raise
    job.listener.detail(f"{what}: {point.how()}")
    writer.flush()
    if engine.checked is not None:
        job.store.write_engine_note(work.member.name, engine.checked.as_dict())
    unusable.leave_out()
    job.store.write_timing(timing_key(job, bool(work.tangents)), (time.perf_counter() - started) / len(key_of))


def _grouped(
    job: Job, needs: dict[int, tuple[str, ...]], pace: Pace, look: FirstLook
) -> Iterator[list[tuple[int, Payload]]]:
    """Chunks of (row, payload); a chunk's rows lack the same directions.  The rows of the first look come first."""
    for rows in look.sample(np.array(sorted(needs), dtype=np.int64)):
        open_chunks: dict[tuple[str, ...], list[tuple[int, Payload]]] = {}
        for row, payload in job.manifest.payloads(rows) if len(rows) else ():
            chunk = open_chunks.setdefault(needs[row], [])
            chunk.append((row, payload))
            if len(chunk) >= pace.rows:
                yield open_chunks.pop(needs[row])
        yield from open_chunks.values()


def read_direction(job: Job, name: str, point: Point) -> dict[str, torch.Tensor]:
    """A stored direction's tensors, where the point's parameters are and in their precision."""
    import torch

    stored = job.store.read_direction(name)
    if stored is None:
        raise AssertionError(f"direction {name} was planned but is not stored")
    return {n: torch.from_numpy(stored[n].copy()).to(point.device, point.dtype) for n in point.selected}


class Unusable:
    """Rows that turn out not to be decodable, while bad rows are skipped; some kinds of payload are remembered."""

    def __init__(self, job: Job) -> None:
        self.job, self.rows = job, dict[int, str]()
        self.listen = self._add if job.inputs.skip_bad else None

    def _add(self, row: int, reason: str) -> None:
        self.rows[row] = reason

    def leave_out(self) -> None:
        """Go on without them, and without every other row of the same payload."""
        if not self.rows:
            return
        manifest = self.job.manifest
        reasons = {manifest.payload_keys[row].tobytes(): reason for row, reason in self.rows.items()}
        decoder = None if self.job.model is None else self.job.model.payload_kind.decoder(self.job.model)
        if decoder is not None:
            self.job.store.write_undecodable(decoder, {key.hex(): reason for key, reason in reasons.items()})
        keys = zip(self.job.train.index.tolist(), self.job.train.payload_keys, strict=True)
        same = {row: reasons.get(key.tobytes()) for row, key in keys}
        bad = [
            BadRow(r, manifest.ids[r], manifest.payload_kind.column, why) for r, why in same.items() if why is not None
        ]
        self.job.leave_out(bad)


class _ShardWriter:
    """Collects computed rows and writes a shard per folder whenever one is full."""

    def __init__(self, job: Job, work: Work) -> None:
        self.job, self.work = job, work
        self.pending: dict[str, list[tuple[list[bytes], Any]]] = {}

    def add(self, keys: list[bytes], lacks_output: list[bool], names: tuple[str, ...], values: Any) -> None:
        """Take one batch: ``values`` [1 + directions, b, C] holds logits, then tangents by ``names``."""
        mask = np.array(lacks_output)
        if mask.any():
            kept = [k for k, lacks in zip(keys, lacks_output, strict=True) if lacks]
            self.pending.setdefault("", []).append((kept, values[0][mask]))
        for name, tangent in zip(names, values[1:], strict=True):
            self.pending.setdefault(name, []).append((keys, tangent))
        for name in list(self.pending):
            if sum(len(k) for k, _ in self.pending[name]) >= self.job.runtime.shard_rows:
                self._write(name)

    def flush(self) -> None:
        """Write what is left."""
        for name in list(self.pending):
            self._write(name)

    def _write(self, name: str) -> None:
        parts = self.pending.pop(name)
        keys = stack([k for ks, _ in parts for k in ks])
        values = np.concatenate([v for _, v in parts])
        if name == "":
            self.job.outputs(self.work.member).write(keys, {"logits": values})
        else:
            self.job.tangents(name).write(keys, {"tangent": values})

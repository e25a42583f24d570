"""(1) manifest -> store, for the rows that the store has not seen.

At each member: pass V measures the directions that are not stored, then one pass over the training rows computes
logits and tangents for the rows that lack any of them.  Every full shard is written as soon as it is complete, so a
run that is killed has lost only the rows in hand.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.row_checks import BadRow
from influence_cli.data.tables import with_provenance
from influence_cli.stages.first_look import FirstLook, run_target
from influence_cli.stages.job import Job, require_model
from influence_cli.stages.plan import Work, index_by_key, key_list, missing_work, timing_key
from influence_cli.stages.preconditioning import curvature_report, missing_directions, note_curvature, precondition
from influence_cli.stages.reliability import direction_noise
from influence_cli.stages.usable_rows import decoder_of
from influence_cli.store.keys import KEY_BYTES, stack
from influence_cli.store.shards import as_arrow

if TYPE_CHECKING:
    import torch

    from influence_cli.data.manifest import Payload
    from influence_cli.model.forward import Point

LARGEST_BATCH = 256


def fill(job: Job, look: FirstLook | None = None) -> int:
    """Compute and store what is missing; returns the number of training rows run through the model."""
    work = [_with_readable_directions(job, w) for w in missing_work(job) if not w.nothing]
    look = look or FirstLook(job)
    if not work:
        note_curvature(job)
        return 0
    work.sort(key=lambda w: w.member != job.plain_member())  # the model itself first: how good it is, is said at once
    skipped = len(job.manifest.bad)
    from influence_cli.model.build import device_of, load_model
    from influence_cli.model.forward import DTYPES, Point

    spec, checkpoint = require_model(job)
    device = device_of(job.runtime.device)
    model = load_model(spec, checkpoint, DTYPES[job.spec.precision])
    payloads = _target_payloads(job) if any(w.directions for w in work) else {}
    done = 0
    for position, w in enumerate(work):
        point = Point(model, job.spec.params, w.member.dropout, job.spec.precision, device)
        what = f"member {position + 1} of {len(work)}" if len(work) > 1 else "model"
        if w.directions:
            _measure(job, w, point, payloads, what)
        if position == 0 and not job.linear_members():
            run_target(job, point)
        if w.preconditioned:
            precondition(job, w.member, w.preconditioned, model, device, batch_size(job))
        if w.rows:
            _pass(job, w, point, what, look)
        look.say()
        done += w.rows
    job.forget_folders()
    if len(job.manifest.bad) > skipped:  # others may have taken their place, where rows are sampled
        return done + fill(job, look)
    note_curvature(job)
    return done


def _with_readable_directions(job: Job, work: Work) -> Work:
    """The work, with directions to make again whose stored tensors turn out to be damaged or gone."""
    measure, lacking = list(work.directions), [n for n, keys in (work.tangents | work.halves).items() if len(keys)]
    unreadable = {name for name in lacking if job.store.read_direction(name) is None}  # and set aside
    missing = missing_directions(job, work.member, work.halves)
    for objective in job.objectives:
        needed = {job.direction(work.member, objective, half=h) for h in (False, True)} & unreadable
        needed |= {a.q for a in missing if a.objective == objective and job.store.read_direction(a.q) is None}
        if objective not in measure and needed:
            measure.append(objective)
    return replace(work, directions=tuple(measure), preconditioned=missing)


def batch_size(job: Job) -> int:
    """Rows a batch: as asked, or 256, fewer for large inputs (about 3 million input values a batch)."""
    if job.runtime.batch_size:
        return job.runtime.batch_size
    values = int(np.prod(job.model.shape)) if job.model else 1
    return int(np.clip(3_000_000 // values, 4, LARGEST_BATCH))


def _target_payloads(job: Job) -> dict[int, Payload]:
    """Encoded payloads of the target rows, read once for all members."""
    return dict(job.target.manifest.payloads(job.target.index))


def _measure(job: Job, work: Work, point: Point, payloads: dict[int, Payload], what: str) -> None:
    from influence_cli.model.direction import measure_directions

    assert job.model is not None
    wanted = {name: job.objectives[name] for name in work.directions}
    started = time.perf_counter()
    with job.listener.progress(f"direction, {what}", len(job.target), "target rows") as progress:
        measured = measure_directions(
            point, job.model, job.target, payloads, wanted, batch_size(job), job.runtime.workers, progress
        )
    took = time.perf_counter() - started
    job.store.write_timing(timing_key(job, True, target=True), took / len(job.target))
    for objective, m in measured.items():
        about = {**m.meta, "objective": objective, "halves": m.half is not None}
        if m.half is not None and work.halves:
            job.store.write_direction(job.direction(work.member, objective, half=True), m.half, about)
        job.store.write_direction(job.direction(work.member, objective), m.q, about)


def _pass(job: Job, work: Work, point: Point, what: str, look: FirstLook) -> None:
    """Logits and tangents of the rows that lack any; rows that lack the same things share a batch."""
    import torch

    from influence_cli.model.examples import batches, move, to_input

    assert job.model is not None
    # a target too small to be halved has no half direction
    halves = {name: keys for name, keys in work.halves.items() if job.store.direction_meta(name) is not None}
    wanted = {name: set(key_list(keys)) for name, keys in (work.tangents | halves).items() if len(keys)}
    directions = {name: _read_direction(job, name, point) for name in wanted}
    lacking_outputs = set(key_list(work.outputs))
    row_of = index_by_key(job.train)
    key_of = {
        row: key for key, row in row_of.items() if key in lacking_outputs or any(key in w for w in wanted.values())
    }
    needs = {row: tuple(name for name in wanted if key in wanted[name]) for row, key in key_of.items()}
    writer, unusable = _ShardWriter(job, work), _Unusable(job)
    started, size = time.perf_counter(), batch_size(job)
    try:
        with job.listener.progress(f"training rows, {what}", len(key_of)) as progress:
            chunks = _grouped(job, needs, size, look)
            for index, decoded in batches(job.manifest, chunks, job.model, job.runtime.workers, unusable.listen):
                names = needs[int(index[0])]
                x = to_input(move(decoded, point.device), job.model, point.dtype)
                z, tangents = point.outputs(x, [directions[name] for name in names])
                values = torch.stack([z, *tangents]).cpu().numpy()
                keys = [key_of[int(row)] for row in index]
                look.saw(index, values[0])
                writer.add(keys, [k in lacking_outputs for k in keys], names, values)
                progress.advance(len(index))
    except KeyboardInterrupt:
        writer.flush()
        raise
    writer.flush()
    unusable.leave_out()
    job.store.write_timing(timing_key(job, bool(work.tangents)), (time.perf_counter() - started) / len(key_of))


def _grouped(
    job: Job, needs: dict[int, tuple[str, ...]], size: int, look: FirstLook
) -> Iterator[list[tuple[int, Payload]]]:
    """Chunks of (row, payload); a chunk's rows lack the same directions.  The rows of the first look come first."""
    for rows in look.sample(np.array(sorted(needs), dtype=np.int64)):
        open_chunks: dict[tuple[str, ...], list[tuple[int, Payload]]] = {}
        for row, payload in job.manifest.payloads(rows) if len(rows) else ():
            chunk = open_chunks.setdefault(needs[row], [])
            chunk.append((row, payload))
            if len(chunk) == size:
                yield open_chunks.pop(needs[row])
        yield from open_chunks.values()


def _read_direction(job: Job, name: str, point: Point) -> dict[str, torch.Tensor]:
    import torch

    stored = job.store.read_direction(name)
    if stored is None:
        raise AssertionError(f"direction {name} was planned but is not stored")
    return {n: torch.from_numpy(stored[n].copy()).to(point.device, point.dtype) for n in point.selected}


class _Unusable:
    """Rows that turn out not to be decodable, while bad rows are skipped; images among them are remembered."""

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
        if self.job.model is not None and self.job.model.kind == "image":
            named = {key.hex(): reason for key, reason in reasons.items()}
            self.job.store.write_undecodable(decoder_of(self.job.model), named)
        keys = zip(self.job.train.index.tolist(), self.job.train.payload_keys, strict=True)
        same = {row: reasons.get(key.tobytes()) for row, key in keys}
        bad = [BadRow(r, manifest.ids[r], manifest.kind, why) for r, why in same.items() if why is not None]
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


def grads_table(job: Job) -> pa.Table:
    """A row per training row: id, row_key, payload_key, label and, where a model was run, its loss."""
    table = base_table(job)
    keys = as_arrow(job.train.payload_keys)
    table = table.add_column(2, "payload_key", keys)
    if job.members:
        logits = job.outputs(job.plain_member()).read(job.train.payload_keys)["logits"]
        with np.errstate(invalid="ignore", over="ignore"):
            loss = job.row_loss.losses(logits, job.train.labels)
        table = table.append_column("loss", nullable(loss))
    return with_provenance(table, {**provenance_of(job, "grads"), "noise": direction_noise(job)})


def nullable(values: NDArray[np.float64]) -> pa.Array:
    """Values [n] with null where they are not finite: such a row is never ranked as neutral."""
    return pa.array(values, mask=~np.isfinite(values))


def base_table(job: Job) -> pa.Table:
    """The columns that every stage's table begins with: id, row_key, label."""
    assert job.train.row_keys.shape[1] == KEY_BYTES
    return pa.table(
        {
            "id": pa.array(job.train.ids),
            "row_key": as_arrow(job.train.row_keys),
            "label": pa.array(job.train.labels),
        }
    )


def provenance_of(job: Job, stage: str) -> dict[str, Any]:
    """What a later stage needs to find payload, model and target again, and to know that they are the same."""
    spec = job.spec
    return {
        "schema_version": 1,
        "stage": stage,
        "manifest": {
            "locator": locator_of(job.inputs.manifest),
            "fingerprint": job.manifest.fingerprint,
            "label": job.inputs.label,
        },
        "target": {
            "locator": locator_of(job.inputs.target),
            "fingerprint": job.target_fingerprint,
            "rows": len(job.target),
        },
        "fit_rows": None if job.fit is None else job.fit.as_dict(),
        "curvature": curvature_report(job),
        "checkpoint": None
        if job.checkpoint is None
        else {"locator": job.checkpoint.locator, "fingerprint": job.checkpoint.digest},
        "model": None if job.model is None else job.model.as_dict(),
        "model_flags": {
            "model": job.inputs.model,
            "input_size": job.inputs.input_size,
            "num_classes": job.inputs.num_classes,
            "mean": _listed(job.inputs.mean),
            "std": _listed(job.inputs.std),
            "interpolation": job.inputs.interpolation,
            "crop": job.inputs.crop,
        },
        "skip_bad": job.inputs.skip_bad,
        "skipped": [b.id for b in job.manifest.bad[job.manifest.bad_when_read :]],
        "spec": {
            "methods": list(spec.methods),
            "objectives": list(spec.objectives),
            "options": spec.options,
            "params": spec.params,
            "loss": spec.loss,
            "precision": spec.precision,
            "seed": spec.seed,
        },
    }


def locator_of(source: Any) -> str | None:
    """Where rows are, for a later stage; None for rows in memory."""
    return str(source) if isinstance(source, str | Path) else None


def _listed(values: tuple[float, ...] | None) -> str | None:
    return None if values is None else ",".join(repr(v) for v in values)

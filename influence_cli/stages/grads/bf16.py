"""bf16 beside float32: which model runs which pass, and the rank correlation of their scores on a sample of rows.

Directions and curvature are float32 (or float64) whatever the precision: a sum of many gradients loses too much in
bf16.  The pass over the training rows, which is most of the time, runs in bf16.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from influence_cli.maths.labels import of_label
from influence_cli.maths.noise import spearman
from influence_cli.store import fingerprint
from influence_cli.store.shards import unique

if TYPE_CHECKING:
    import torch
    from torch import nn

    from influence_cli.engines.point import Point
    from influence_cli.stages.run.job import Job, Member

SAMPLE = 256  # training rows that are scored in both precisions


def points(job: Job, model: nn.Module, member: Member, device: torch.device) -> tuple[Point, Point]:
    """The member for gradients, and for the pass over rows: one and the same, but with bf16."""
    from influence_cli.engines.point import Point
    from influence_cli.model.examples import from_all_over, move, to_input

    precision = job.spec.precision
    if precision != "bf16":
        point = Point(model, job.spec.params, member.dropout, precision, device)
        both = point, point
    else:
        exact = Point(model, job.spec.params, member.dropout, "fp32", device)
        both = exact, Point(copy.deepcopy(model), job.spec.params, member.dropout, "bf16", device)
    if job.model is not None and job.few is None:
        job.few = from_all_over(job.train, job.model, job.held)
    for point in both:
        if job.model is not None and job.few is not None:
            point.few = to_input(move(job.few, device), job.model, point.dtype)
    return both


def note_frozen(job: Job, model: nn.Module) -> None:
    """Say which parameters are no part of the gradients, whatever --params selects."""
    from influence_cli.model.parameters import frozen_parameters

    frozen, every = frozen_parameters(model), len(list(model.parameters()))
    if frozen:
        named = ", ".join(frozen[:3]) + (" and others" if len(frozen) > 3 else "")
        job.listener.note(
            f"{len(frozen)} of {every} parameters are frozen (requires_grad is off) and left out of gradients: {named}"
        )
    elif not any(p.requires_grad for p in model.parameters()):
        job.listener.note("requires_grad is off for every parameter of the model, so none counts as frozen")


def measure_agreement(job: Job, member: Member, exact: Point, half: Point) -> None:
    """Remember the Spearman correlation of bf16 scores with float32 ones, for every objective, at the first member."""
    from influence_cli.model.examples import batches, chunked, move, to_input
    from influence_cli.stages.grads.row_pass import batch_size, read_direction

    method = job.half_method()
    lacking = [o for o in job.objectives if agreement(job, o) is None]
    if member != job.half_member() or method is None or not lacking or job.model is None:
        return
    first = {job.train.payload_keys[i].tobytes(): int(job.train.index[i]) for i in unique(job.train.payload_keys)}
    rows = np.sort(np.array([first[k.tobytes()] for k in job.half_sample()[:SAMPLE]], dtype=np.int64))
    names = [job.along(method, member, o) for o in lacking]
    along = {id(p): [read_direction(job, name, p) for name in names] for p in (exact, half)}
    found: dict[int, list[list[np.ndarray]]] = {id(p): [[] for _ in lacking] for p in (exact, half)}
    chunks = chunked(job.manifest.payloads(rows), batch_size(job))
    for index, decoded in batches(job.manifest, chunks, job.model, job.runtime.workers, lambda *_: None):
        labels = job.manifest.labels[index]
        for p in (exact, half):
            z, tangents = p.outputs(to_input(move(decoded, p.device), job.model, p.dtype), along[id(p)])
            for position, t in enumerate(tangents):
                with np.errstate(invalid="ignore", over="ignore"):
                    scores = job.row_loss.label_scores(z.cpu().numpy(), t.cpu().numpy())
                found[id(p)][position].append(of_label(scores, labels))
    for position, objective in enumerate(lacking):
        a, b = (np.concatenate(found[id(p)][position]) for p in (exact, half))
        usable = np.isfinite(a) & np.isfinite(b)
        note = {"bf16_agreement": spearman(a[usable], b[usable]), "rows": int(usable.sum())}
        job.store.write_model_note(_name(job, objective), note)


def agreement(job: Job, objective: str) -> float | None:
    """The rank correlation of bf16 scores with float32 ones at the first member, where it was measured."""
    note = job.store.read_model_note(_name(job, objective))
    return None if note is None else note["bf16_agreement"]


def _name(job: Job, objective: str) -> str:
    member, method = job.half_member(), job.half_method()
    assert member is not None
    assert method is not None
    return fingerprint("agreement", 1, direction=job.along(method, member, objective))

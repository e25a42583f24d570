"""The pass over rows for their own gradients: training rows, then target rows, shard by shard.

A row whose label has changed is a row that was not seen; every full shard is written as soon as it is complete.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from influence_cli.data.row_checks import BadRow
from influence_cli.errors import ModelError, StoreError
from influence_cli.processes.group import Group, Job
from influence_cli.stages.grads.member_model import Models
from influence_cli.stages.grads.row_loop import Compute, Parts, Speed, Waits, loop_over
from influence_cli.stages.grads.same_run import SameRun, helpers, in_job
from influence_cli.stages.run.gradient_plan import AT_ONCE, RowWork, check_size, rate_key
from influence_cli.stages.run.quantities import Part
from influence_cli.stages.run.rates import Stopwatch
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Batch, Session
from influence_cli.store import Keys
from influence_cli.store.shards import Arrays

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.engines.row_gradients import RowGradients


def gradient_pass(run: Run, session: Session, work: RowWork) -> Run:
    """Compute and store the rows that lack their gradient; returns the run without rows that cannot be used.

    Raises:
        UsageError: they are more bytes than the run's limit.
        ModelError: no layer gives the gradient of a selected parameter, or no row has finite logits.
    """
    group = helpers(run, session)
    if group is None:
        return run.without(_pass(run, session, work, Models(run, session)))
    job = GradientJob(run, session, work)
    job.here = run, session, Models(run, session)
    bad = {b.row: b for some in group.share(job) for b in some}
    return run.without([bad[row] for row in sorted(bad)])


class GradientJob(Job):
    """The pass, whose units the processes take by turn."""

    def __init__(self, run: Run, session: Session, work: RowWork) -> None:
        self.same, self.request, self.train, self.target = (
            SameRun.of(run, session),
            work.request,
            work.train,
            work.target,
        )
        self.wanted = work.wanted

    def part(self, group: Group) -> list[BadRow]:
        """The units of this process; the rows that it cannot use."""
        if group.rank == 0:
            run, session, models = self.here
        else:
            opened = self.same.open(group)
            run, session, models = opened.run, opened.session, opened.models
        with in_job(session):
            folder = self.request.folder(run, session)
            work = RowWork(self.request, folder, self.train, self.target, self.wanted)
            return _pass(run, session, work, models)


def _pass(run: Run, session: Session, work: RowWork, models: Models) -> list[BadRow]:
    from influence_cli.engines.row_gradients import RowGradients

    request = work.request
    point = models.gradient_point(request.member, request.params)
    gradients = RowGradients(point, run.row_loss, request.sketch_dim, request.seed)
    check_size(run, session, work, gradients.dim)
    part, waiting = Part("gradients", request.name(run), request.member), _Waiting(run, work, gradients)
    compute = _compute(run, session, gradients, part, waiting)
    size = max(1, min(session.batch_size(run.model), AT_ONCE // max(1, gradients.dim)))
    given = {"speed": Speed(lambda: size), "write": waiting.write}
    train = loop_over(run, session, run.train, {part: work.train}, compute, "row gradients, training rows", **given)
    target = loop_over(
        run, session, run.target, {part: work.target}, compute, "row gradients, target rows", **given, skip_bad=False
    )
    waiting.finish()
    watch = Stopwatch([*train.watch.batches, *target.watch.batches])
    replace(train, watch=watch).remember_rate(session, rate_key(run, session, request))
    return train.bad


def _compute(run: Run, session: Session, gradients: RowGradients, part: Part, waiting: _Waiting) -> Compute:
    """What maps a batch to its gradients, losses and norms; nothing while no row had finite logits."""
    import torch

    from influence_cli.engines.batch_size import Parts as Pieces

    memory, point = Pieces(session.listener.warn), gradients.point

    def compute(batch: Batch, parts: Parts) -> Waits:
        x, y = batch.on(point), batch.labels_on(point)
        if not gradients.ready(x):
            waiting.batches.append(batch)
            return dict

        def piece(some: Tensor) -> tuple[Tensor, list[Tensor]]:
            value, norms, logits = gradients.of(x[some], y[some])
            return value, [norms, logits]

        value, (norms, logits) = memory.run(piece, torch.arange(len(y), device=point.device))
        with np.errstate(invalid="ignore", over="ignore"):
            loss = run.row_loss.losses(logits.cpu().numpy(), batch.labels)
        found: Arrays = {"value": value.cpu().numpy(), "loss": loss, "norms": norms.cpu().numpy()}
        return lambda: {part: found}

    return compute


class _Waiting:
    """Batches of unusable rows, whose columns are not known before a row had finite logits; and what writes shards."""

    def __init__(self, run: Run, work: RowWork, gradients: RowGradients) -> None:
        self.run, self.folder, self.gradients = run, work.folder, gradients
        self.batches: list[Batch] = []

    def write(self, keys: Keys, arrays: Arrays) -> None:
        """Write a shard.

        Raises:
            StoreError: rows of other layers are stored.
        """
        layout = self.gradients.layout()
        if self.folder.layout not in (None, layout):
            raise StoreError(
                "the model's layers are not those of the rows that are stored",
                where=str(self.folder.path),
                fix="take that folder out of the store",
            )
        self.folder.write(keys, arrays, layout)

    def finish(self) -> None:
        """Write the rows that had to wait, whose values are null.

        Raises:
            ModelError: the logits of no row were finite.
        """
        layout = self.gradients.layout() if self.gradients.layers is not None else self.folder.layout
        if self.batches and layout is None:
            raise ModelError("the logits of no row are finite", fix="check the checkpoint and the inputs")
        for batch in self.batches:
            assert layout is not None
            shapes = {"value": (layout["dim"],), "norms": (len(layout["layers"]),), "loss": ()}
            kinds = {"value": np.float64 if self.run.spec.precision == "fp64" else np.float32}
            blank = {
                name: np.full((len(batch.index), *shape), np.nan, kinds.get(name, np.float64))
                for name, shape in shapes.items()
            }
            self.folder.write(batch.row_keys, {**blank, "payload_keys": batch.payload_keys}, layout)

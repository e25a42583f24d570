"""Target rows attacked at the checkpoint, a batch at a time, and stored; several processes share the batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.processes.group import Group
from influence_cli.stages.grads.member_model import MemberModel
from influence_cli.stages.grads.same_run import RunJob, helpers
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session

if TYPE_CHECKING:
    from torch import nn

    from influence_cli.data.manifest import Payload, Rows


Store = Callable[[Run, Session, str, "Rows", Any], None]  # attacked rows, and what they became


def make(
    run: Run, session: Session, name: str, model: nn.Module, payloads: dict[int, Payload], wanted: list[int],
    store: Store,
) -> None:  # fmt: skip
    """Attack the target rows at these places, and ``store`` them a batch at a time; all processes of the run help."""
    group = helpers(run, session) if len(wanted) > session.batch_size(run.model) else None
    if group is None:
        _make(run, session, name, model, payloads, wanted, store)
        return
    job = AttackJob(run, session, name, wanted, store)
    job.here = run, session, None, model, payloads
    group.share(job)


class AttackJob(RunJob):
    """Target rows attacked: each process has some of the batches, which are those of one process."""

    def __init__(self, run: Run, session: Session, name: str, wanted: list[int], store: Store) -> None:
        super().__init__(run, session, run.plain_member(), "model")
        self.name, self.wanted, self.store = name, wanted, store

    def of_run(self, group: Group, run: Run, session: Session, at: MemberModel | None) -> None:
        """The batches of this process."""
        if group.rank == 0:
            model, payloads = self.here[3:]
        else:
            assert at is not None
            model, payloads = at.model, dict(run.target.manifest.payloads(run.target.index))
        _make(run, session, self.name, model, payloads, self.wanted, self.store, group)


def _make(
    run: Run, session: Session, name: str, model: nn.Module, payloads: dict[int, Payload], wanted: list[int],
    store: Store, shared: Group | None = None,
) -> None:  # fmt: skip
    """The same in one process, or of several the part of this one."""
    import torch

    from influence_cli.engines.attacked import attack
    from influence_cli.model.examples import alike, chunked, move
    from influence_cli.model.named_tensors import mapped

    if not wanted:
        return
    spec, _ = require_model(run)
    objective, rows = run.objectives[name], run.target.take(np.array(wanted))
    where, kind = {row: k for k, row in enumerate(rows.index.tolist())}, next(model.parameters())
    size, left = session.batch_size(spec), len(rows)
    with session.listener.progress(f"attack {objective.kind(spec)}", len(rows), "target rows") as progress:
        held = alike(((row, payloads[row]) for row in sorted(where)), rows.manifest.payload_kind, size)
        chunks = chunked(held, size)
        if shared is not None:
            chunks = itertools.islice(chunks, shared.rank, None, shared.size)
        for batch in session.rows(spec, run.target, chunks, keep=False):
            some = rows.take(np.array([where[row] for row in batch.index.tolist()]))
            moved = attack(
                model, spec, objective, move(batch.decoded, kind.device),
                move(torch.from_numpy(batch.labels), kind.device), some.row_keys, seed=run.spec.seed,
                loss=run.row_loss, names=[f"row id={i}" for i in some.ids],
            )  # fmt: skip
            plain = mapped(lambda t: (t.float() if t.dtype == torch.bfloat16 else t).cpu(), moved)
            store(run, session, name, some, plain)
            progress.advance(len(batch.index))
            left -= len(batch.index)
        progress.advance(left)  # which others have attacked

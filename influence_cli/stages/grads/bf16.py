"""bf16 beside float32: the rank correlation of their scores on a sample of rows.

The pass over the training rows, which is most of the time, runs in bf16; directions and curvature never do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from influence_cli.maths.noise import spearman
from influence_cli.stages.grads.member_model import MemberModel, read_direction
from influence_cli.stages.run import names
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.store import fingerprint
from influence_cli.store.shards import unique

if TYPE_CHECKING:
    from influence_cli.engines.point import Point

SAMPLE = 256  # training rows that are scored in both precisions


def measure_agreement(run: Run, session: Session, at: MemberModel) -> None:
    """Remember the Spearman correlation of bf16 scores with float32 ones, for every objective, at the first member."""
    method, member = run.half_method(), at.member
    if member != run.half_member() or method is None or run.model is None:
        return
    lacking = [o for o in run.objectives if agreement(run, session, o) is None]
    if not lacking:
        return
    first = {run.train.payload_keys[i].tobytes(): int(i) for i in unique(run.train.payload_keys)}
    rows = run.train.take(np.sort([first[k.tobytes()] for k in run.half_sample()[:SAMPLE]]))
    called = [names.along(run, method, member, o) for o in lacking]
    along = {p: [read_direction(session, name, p) for name in called] for p in (at.exact, at.point)}
    found: dict[Point, list[list[np.ndarray]]] = {p: [[] for _ in lacking] for p in along}
    for batch in session.rows(run.model, rows, session.batch_size(run.model), lambda *_: None):
        for p in along:
            z, tangents = p.outputs(batch.on(p), along[p])
            for position, t in enumerate(tangents):
                with np.errstate(invalid="ignore", over="ignore"):
                    scores, _ = run.row_loss.scores(z.cpu().numpy(), t.cpu().numpy(), batch.labels)
                found[p][position].append(scores)
    for position, objective in enumerate(lacking):
        a, b = (np.concatenate(found[p][position]) for p in (at.exact, at.point))
        usable = np.isfinite(a) & np.isfinite(b)
        note = {"bf16_agreement": spearman(a[usable], b[usable]), "rows": int(usable.sum())}
        session.store.write_model_note(_name(run, objective), note)


def agreement(run: Run, session: Session, objective: str) -> float | None:
    """The rank correlation of bf16 scores with float32 ones at the first member, where it was measured."""
    note = session.store.read_model_note(_name(run, objective))
    return None if note is None else note["bf16_agreement"]


def _name(run: Run, objective: str) -> str:
    member, method = run.half_member(), run.half_method()
    assert member is not None
    assert method is not None
    return fingerprint("agreement", 1, direction=names.along(run, method, member, objective))

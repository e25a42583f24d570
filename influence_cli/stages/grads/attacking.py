"""Target rows attacked at the checkpoint, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session

if TYPE_CHECKING:
    from torch import nn

    from influence_cli.data.manifest import Payload, Rows


def made(
    run: Run, session: Session, name: str, model: nn.Module, payloads: dict[int, Payload], wanted: list[int]
) -> Iterator[tuple[Rows, Any]]:
    """The target rows at these places attacked, a batch at a time: rows and what they became, on the host."""
    import torch

    from influence_cli.engines.attacked import attack
    from influence_cli.model.examples import alike, chunked, move
    from influence_cli.model.named_tensors import mapped

    if not wanted:
        return
    spec, _ = require_model(run)
    objective, rows = run.objectives[name], run.target.take(np.array(wanted))
    where, kind = {row: k for k, row in enumerate(rows.index.tolist())}, next(model.parameters())
    size = session.batch_size(spec)
    with session.listener.progress(f"attack {objective.kind(spec)}", len(rows), "target rows") as progress:
        held = alike(((row, payloads[row]) for row in sorted(where)), rows.manifest.payload_kind, size)
        for batch in session.rows(spec, run.target, chunked(held, size), keep=False):
            some = rows.take(np.array([where[row] for row in batch.index.tolist()]))
            moved = attack(
                model, spec, objective, move(batch.decoded, kind.device),
                move(torch.from_numpy(batch.labels), kind.device), some.row_keys, seed=run.spec.seed,
                loss=run.row_loss, names=[f"row id={i}" for i in some.ids],
            )  # fmt: skip
            yield some, mapped(lambda t: (t.float() if t.dtype == torch.bfloat16 else t).cpu(), moved)
            progress.advance(len(batch.index))

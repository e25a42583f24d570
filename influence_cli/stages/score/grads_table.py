"""What the store holds of a run's training rows, as a table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from influence_cli.data.tables import with_provenance
from influence_cli.stages.grads.provenance import base_table, nullable, provenance_of, with_later_rows
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.noise import direction_noise
from influence_cli.store.shards import as_arrow


def grads_table(run: Run, session: Session) -> pa.Table:
    """A row per training row: id, row_key, payload_key, label and, where a model was run, its loss."""
    noise = direction_noise(run, session)
    session.forget_folders("tangents")
    table = base_table(run)
    table = table.add_column(2, "payload_key", as_arrow(run.train.payload_keys))
    if run.members:
        outputs, rows = session.outputs(run, run.plain_member()), run.train
        with np.errstate(invalid="ignore", over="ignore"):
            loss = outputs.of_rows(rows.payload_keys, "logits", run.row_loss.losses, rows.labels)
        table = table.append_column("loss", nullable(loss))
    table = with_later_rows(table, run)
    return with_provenance(table, {**provenance_of(run, session, "grads"), "noise": noise})

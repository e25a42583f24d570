"""The columns that every stage's table begins with, and what it says of where its numbers come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.options import kept_values
from influence_cli.stages.grads.curvature_report import curvature_report
from influence_cli.stages.grads.value_functions import negative_values
from influence_cli.stages.run.job import Job
from influence_cli.stages.run.members import decided_members, decided_options
from influence_cli.store.keys import KEY_BYTES
from influence_cli.store.shards import as_arrow


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
    return {
        "schema_version": 1,
        "stage": stage,
        "manifest": {
            "locator": locator_of(job.inputs.manifest),
            "fingerprint": job.manifest.fingerprint,
            "label": job.inputs.label,
            **({"group": job.inputs.group} if job.groups else {}),
        },
        "target": {
            "locator": locator_of(job.inputs.target),
            "fingerprint": job.target_fingerprint,
            "rows": len(job.target),
        },
        "fit_rows": None if job.fit is None else job.fit.as_dict(),
        "curvature": curvature_report(job),
        "negative_values": negative_values(job),
        "members": decided_members(job),
        "engines": [job.store.engine_note(member.name) for member in job.linear_members()],
        "checkpoint": None
        if job.checkpoint is None
        else {"locator": job.checkpoint.locator, "fingerprint": job.checkpoint.digest},
        "model": None if job.model is None else job.model.as_dict(),
        "model_flags": kept_values(job.inputs),
        "skip_bad": job.inputs.skip_bad,
        "skipped": [b.id for b in job.manifest.bad[job.manifest.bad_when_read :]],
        "spec": _spec(job),
    }


def _spec(job: Job) -> dict[str, Any]:
    """What was asked for, with the options that were left to the methods as they were decided."""
    spec = {**kept_values(job.spec), "options": decided_options(job)}
    if job.spec.rows is None:  # no row's own gradients are stored, so that nothing of them changed the table
        del spec["rows"], spec["sketch_dim"]
    return spec


def locator_of(source: Any) -> str | None:
    """Where rows are, for a later stage; None for rows in memory."""
    return str(source) if isinstance(source, str | Path) else None

"""The columns that every stage's table begins with, and what it says of where its numbers come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.data.split_column import LATER
from influence_cli.options import kept_values
from influence_cli.stages.grads.curvature_report import curvature_report, negative_values
from influence_cli.stages.grads.further_report import further_report
from influence_cli.stages.run.backbone import Backbone
from influence_cli.stages.run.members import decided_members, decided_options
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.store.arrow import array_of
from influence_cli.store.keys import KEY_BYTES
from influence_cli.store.shards import as_arrow


def nullable(values: NDArray[np.float64]) -> pa.Array:
    """Values [n] with null where they are not finite: such a row is never ranked as neutral."""
    return array_of(values, null=~np.isfinite(values))


def base_table(run: Run, rows: Rows | None = None) -> pa.Table:
    """The columns that every stage's table begins with (id, row_key, label), of the train rows or of others."""
    rows = run.train if rows is None else rows
    assert rows.row_keys.shape[1] == KEY_BYTES
    return pa.table(
        {
            "id": rows.ids.column,
            "row_key": as_arrow(rows.row_keys),
            "label": run.manifest.label_kind.shown(rows.labels, run.classes),
        }
    )


def with_later_rows(table: pa.Table, run: Run) -> pa.Table:
    """A table of the train rows with those that limits have left for later, of which nothing but the row is known."""
    splits = run.manifest.splits
    if not (splits == LATER).any():
        return table
    rows = Rows(run.manifest, np.flatnonzero((splits == LATER) | (splits == "train")))
    taken = splits[rows.index] == "train"
    places = array_of(np.cumsum(taken) - 1, null=~taken)
    known = {**{name: base_table(run, rows).column(name) for name in ("id", "row_key", "label")}}
    if "payload_key" in table.column_names:
        known["payload_key"] = pa.chunked_array([as_arrow(rows.payload_keys)])
    columns = [known[name] if name in known else table.column(name).take(places) for name in table.column_names]
    return pa.table(dict(zip(table.column_names, columns, strict=True)))


def provenance_of(run: Run, session: Session, stage: str) -> dict[str, Any]:
    """What a later stage needs to find payload, model and target again, and to know that they are the same."""
    return {
        "schema_version": 1,
        "stage": stage,
        "manifest": {
            "locator": locator_of(run.inputs.manifest),
            "fingerprint": run.manifest.fingerprint,
            "label": run.inputs.label,
            **({"group": run.inputs.group} if run.groups or run.inputs.group != "group" else {}),
        },
        "target": {
            "locator": locator_of(run.inputs.target),
            "fingerprint": run.target_fingerprint,
            "rows": len(run.target),
        },
        "fit_rows": None if run.fit is None else run.fit.as_dict(),
        "curvature": curvature_report(run, session),
        "negative_values": negative_values(run, session),
        **({"further": further} if (further := further_report(run, session)) else {}),
        "members": decided_members(run),
        "engines": [session.store.engine_note(member.name) for member in run.linear_members()],
        "checkpoint": None
        if run.checkpoint is None
        else {"locator": run.checkpoint.locator, "fingerprint": run.checkpoint.digest},
        "model": None if run.model is None else run.model.as_dict(),
        "last_layer": run.model.head if run.model is not None and run.spec.params == "last" else None,
        **({} if run.backbone is None else {"features_model": _features(run.backbone)}),
        "model_flags": kept_values(run.inputs),
        **({} if run.limits is None else {"limits": run.limits}),
        **({"given_up": list(run.given_up)} if run.given_up else {}),
        "skip_bad": run.inputs.skip_bad,
        "skipped": [b.id for b in run.manifest.bad[run.manifest.bad_when_read :]],
        "spec": _spec(run),
    }


def _features(backbone: Backbone) -> dict[str, Any]:
    """The model that ``--features`` named."""
    checkpoint = backbone.checkpoint
    return {"locator": checkpoint.locator, "fingerprint": checkpoint.digest, "model": backbone.model.as_dict()}


def _spec(run: Run) -> dict[str, Any]:
    """What was asked for, with the options that were left to the methods as they were decided."""
    spec = {**kept_values(run.spec), "options": decided_options(run)}
    if run.spec.rows is None:  # no row's own gradients are stored, so that nothing of them changed the table
        del spec["rows"], spec["sketch_dim"]
    return spec


def locator_of(source: Any) -> str | None:
    """Where rows are, for a later stage; None for rows in memory."""
    return str(source) if isinstance(source, str | Path) else None

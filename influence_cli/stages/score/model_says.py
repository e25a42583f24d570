"""What the model says of every row, as columns of a score table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.classes import class_count
from influence_cli.maths.labels import most_probable
from influence_cli.stages.grads.provenance import nullable
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.store.arrow import array_of

Outputs = NDArray[np.floating]
Columns = dict[str, NDArray[Any]]  # [n] each; whole numbers are -1 where there is none


def append_model_says(table: pa.Table, run: Run, session: Session, unseen: Outputs | None) -> pa.Table:
    """Loss and margin at the checkpoint (or first member), the model's label, and the most probable other one.

    Of numbers the prediction; of several labels a row the one that the model doubts most.  The other label is that of
    logits [n, C] ``unseen`` by training, where there are such.
    """
    logits = session.outputs(run, run.plain_member()).array(run.train.payload_keys, "logits")
    labels, loss = run.train.labels, run.row_loss
    classes = class_count(run.manifest.classes, labels) if loss.by_class else 0  # a model may have more outputs

    def said(z: Outputs, some: NDArray[np.int64]) -> Columns:
        y = labels[some]
        found: Columns = {"loss": loss.losses(z, y), **({"margin": loss.margins(z, y)} if loss.has_margins else {})}
        if not loss.by_class:
            return {**found, **loss.says(z, y)}
        other = _likeliest("other", z if unseen is None else unseen[some], y, classes)
        return {**found, **_likeliest("model", z, None, classes), **other}

    columns: Columns = {}
    with np.errstate(invalid="ignore", over="ignore"):
        for some in logits.blocks():
            for name, values in said(logits[some], some).items():
                columns.setdefault(name, np.empty(len(labels), values.dtype))[some] = values
    return _appended(table, columns)


def append_other(table: pa.Table, run: Run, unseen: Outputs) -> pa.Table:
    """The most probable other label of logits [n, C] of rows that no model was run on."""
    labels = run.train.labels
    return _appended(table, _likeliest("other", unseen, labels, class_count(run.manifest.classes, labels)))


def _likeliest(name: str, z: Outputs, other_than: NDArray[np.int64] | None, classes: int) -> Columns:
    label, probability = most_probable(z, other_than, classes)
    return {f"{name}_label": np.where(np.isnan(probability), -1, label), f"{name}_probability": probability}


def _appended(table: pa.Table, columns: Columns) -> pa.Table:
    for name, values in columns.items():
        array = array_of(values, values < 0) if values.dtype.kind == "i" else nullable(values)
        table = table.append_column(name, array)
    return table

"""Features less their mean, by their sd, of the rows that a model is trained on: part of the model from then on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from influence_cli.data.manifest import Rows
from influence_cli.model.decode import decode
from influence_cli.model.spec import ModelSpec, is_plain


def standardised_by(spec: ModelSpec, rows: Rows, raw: bool) -> ModelSpec:
    """The spec of a model that is trained on rows from scratch: standardised where it is a model of ours that takes
    numbers as they are, unless they are asked for ``raw``; else itself.
    """
    takes_numbers = is_plain(spec.name) and spec.payload_kind.scaled and not spec.mean
    return standardised(spec, rows) if takes_numbers and not raw else spec


def standardised(spec: ModelSpec, rows: Rows) -> ModelSpec:
    """The spec with mean and sd [d] of the rows that decode, in float64; a feature that is constant stays as large.

    A feature whose sd is below float32's rounding of its mean counts as constant.
    """
    count, mean, squares = 0, np.zeros(spec.shape), np.zeros(spec.shape)
    for _, payload in rows.manifest.payloads(rows.index):  # Welford's update: exact for large means
        try:
            values = np.asarray(decode(payload, spec), np.float64)
        except ValueError:
            continue  # it is refused, or left out, where the rows are checked
        count += 1
        away = values - mean
        mean += away / count
        squares += away * (values - mean)
    sd = np.sqrt(squares / max(count, 1))
    constant = sd <= np.finfo(np.float32).eps * np.abs(mean)
    return replace(spec, mean=tuple(mean.tolist()), std=tuple(np.where(constant, 1.0, sd).tolist()))

"""Rows on which ``retrain`` measures that are train rows too, and what ``--overlap`` asks to do with them.

A training is no worse for them: what they harm is what an accuracy says.  So they are warned of, and refused only where
``--overlap refuse`` asks for it; a score is of a target, and refuses more than 1% until it is said what they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.events import Listener
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.run.target import MAX_OVERLAP, of_their_own
from influence_cli.store.shards import positions

SHOWN = 5  # ids


def target_to_measure(
    request: RetrainRequest, base: Rows, target: Rows, test: Rows, listener: Listener
) -> tuple[Rows, str | None]:
    """The target rows to measure on, with a warning of rows that were trained on; and what ``score`` is to be told.

    That is the value of ``--overlap`` without which it would refuse the target.

    Raises:
        ManifestError: ``--overlap refuse`` is asked for and more than 1% of the target are train or test rows, or
            ``drop`` leaves none.
    """
    told, given = None, target
    if len(target):
        others = np.maximum(_among(target, base.manifest.rows("train")), _among(target, base.manifest.rows("test")))
        told = None if others.mean() <= MAX_OVERLAP else "keep" if others.all() else "drop"
    if len(target) and (request.overlap_asked or request.inputs.overlap != "refuse"):
        told, where = None, f"{base.manifest.source}, split val"
        given, _ = of_their_own(target, request.inputs, base.manifest, where, listener)
    elif len(target):
        _warn(target, base, "target", "--overlap drop leaves them out of the target", listener)
        tested = _among(target, base.manifest.rows("test"))
        if tested.any():
            listener.note(f"{int(tested.sum()):,} of {len(target):,} target rows are test rows too (same payload)")
    if len(test):
        _warn(test, base, "test", "take them out of one of the two", listener)
    return given, told


def _among(rows: Rows, others: Rows) -> NDArray[np.bool_]:
    """Whose payload [n] is that of one of the others."""
    return positions(rows.payload_keys, others.payload_keys) >= 0


def _warn(rows: Rows, base: Rows, name: str, fix: str, listener: Listener) -> None:
    """Say how many of the rows are trained on, and that it flatters what is measured on them."""
    shared = np.flatnonzero(_among(rows, base.take(base.weights > 0)))
    if len(shared):
        named = ", ".join(rows.ids[k] for k in shared[:SHOWN].tolist())
        found = f"{len(shared):,} of {len(rows):,} {name} rows are train rows too (same payload): {named}"
        listener.warn(f"{found}; what is measured on {name} rows is flattered by them; {fix}")

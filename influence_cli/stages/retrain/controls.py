"""The random controls of an arm: edits of the same size and class mix.

The control of a trim takes out as many random rows of each class; of a relabel, (a) takes out as many random rows of
each class and (b) gives the model's proposal to as many random rows; of a reweight, shuffles the same weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.actions.protocol import PROPOSAL
from influence_cli.data.classes import class_count
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.stages.retrain.arms import Arm, against_truth, base_arm, draw_order, edits_of, without


def control_arms(
    arm: Arm, base: Rows, curated: Manifest | NDArray[np.int64], seed: int, left_out: NDArray[np.bool_] | None = None
) -> list[Arm]:
    """Random edits of the same size and class mix as an arm's, among the rows that are trained on.

    ``curated`` holds the labels that a relabel would give: the curated manifest, or one for every row, -1 for none.
    """
    left_out = np.zeros(len(base), dtype=bool) if left_out is None else left_out
    trimmed, relabelled, reweighted = edits_of(arm, base, left_out)
    controls: list[Arm] = []
    if trimmed.any() or relabelled.any():
        taken = _random_rows(base, trimmed | relabelled, seed, "trim", among=~left_out)
        control = base_arm(f"{arm.name}: random trim", base)
        control.weights[taken] = 0.0
        control.about = {"trimmed": int(taken.sum()), **against_truth(base, taken, np.zeros_like(taken), base.labels)}
        controls.append(control)
    if relabelled.any():
        proposals = curated if isinstance(curated, np.ndarray) else _proposals(curated, base)
        if proposals is not None:
            controls.append(_random_relabel(arm, base, proposals, relabelled, seed, left_out))
    if reweighted.any():
        control = base_arm(f"{arm.name}: shuffled weights", base)
        control.weights = _shuffled(arm, base, trimmed | left_out, seed)
        control.about = {"reweighted": int(reweighted.sum())}
        controls.append(control)
    for control in controls:
        control.controls = arm.name
        without(control, left_out)
    return controls


def _shuffled(arm: Arm, base: Rows, fixed: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
    """The arm's weights shuffled among the rows of each class, so that its mass stays; ``fixed`` rows keep theirs."""
    weights = arm.weights.copy()
    order = draw_order(base.ids, seed, "weights")
    for c in np.unique(base.labels):
        rows = np.flatnonzero((base.labels == c) & ~fixed)
        drawn = order[((base.labels == c) & ~fixed)[order]]
        weights[rows] = arm.weights[drawn]
    return weights


def _proposals(curated: Manifest, base: Rows) -> NDArray[np.int64] | None:
    """The label that a curated manifest would give every row, -1 for none; None where it does not say."""
    column = curated.column(PROPOSAL)
    if column is None:
        return None
    by_id, numbers = dict(zip(curated.ids, column.tolist(), strict=True)), curated.numbers
    classes = class_count(base.manifest.classes, base.labels)
    labels = [_int_or(by_id.get(i), -1) for i in base.ids]
    known = [k if numbers is None else numbers.get(k, -1) for k in labels]
    return np.array([k if k < classes else -1 for k in known], dtype=np.int64)


def _random_relabel(
    arm: Arm,
    base: Rows,
    proposals: NDArray[np.int64],
    relabelled: NDArray[np.bool_],
    seed: int,
    left_out: NDArray[np.bool_],
) -> Arm:
    can = (proposals >= 0) & (proposals != base.labels) & ~left_out
    chosen = _random_rows(base, relabelled, seed, "relabel", among=can)
    control = base_arm(f"{arm.name}: random relabel", base)
    control.labels[chosen] = proposals[chosen]
    truth = against_truth(base, np.zeros_like(chosen), chosen, control.labels)
    control.about = {"relabelled": int(chosen.sum()), **truth}
    return control


def _int_or(value: Any, otherwise: int) -> int:
    return otherwise if value is None or value != value else int(value)


def _random_rows(
    base: Rows, like: NDArray[np.bool_], seed: int, what: str, among: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """As many rows of every class as ``like`` has, drawn by a hash of (seed, id)."""
    left = {int(c): int(n) for c, n in zip(*np.unique(base.labels[like], return_counts=True), strict=True)}
    chosen = np.zeros(len(base), dtype=bool)
    for k in draw_order(base.ids, seed, what).tolist():
        c = int(base.labels[k])
        if left.get(c, 0) > 0 and base.weights[k] > 0 and (among is None or among[k]):
            chosen[k] = True
            left[c] -= 1
    return chosen

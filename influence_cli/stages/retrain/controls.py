"""The random controls of an arm: edits of the same size and class mix.

The control of a trim takes out as many random rows of each class; of a relabel, (a) takes out as many random rows of
each class and (b) gives the model's proposal to as many random rows; of a reweight, shuffles the same weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from influence_cli.actions.protocol import PROPOSAL
from influence_cli.data.classes import class_count
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.stages.retrain.arms import Arm, against_truth, draw_order, edits_of, without

Ints = NDArray[np.int64]


def control_arms(
    arm: Arm, base: Rows, proposals: Ints | None, seed: int, left_out: NDArray[np.bool_] | None = None
) -> list[Arm]:
    """Random edits of the same size and class mix as an arm's, among the rows that are trained on.

    ``proposals`` holds the label that a relabel would give each row [n], -1 for none; None where that is not known.
    """
    left_out = np.zeros(len(base), dtype=bool) if left_out is None else left_out
    trimmed, relabelled, reweighted = edits_of(arm, base, left_out)
    none, made = np.zeros(len(base), dtype=bool), list[Arm]()
    if trimmed.any() or relabelled.any():
        taken = _random_rows(base, trimmed | relabelled, seed, "trim", ~left_out)
        about = {"trimmed": int(taken.sum()), **against_truth(base, taken, none, base.labels)}
        weights = np.where(taken, 0.0, base.weights)
        made.append(Arm(f"{arm.name}: random trim", base.labels.copy(), weights, arm.name, about))
    if relabelled.any() and proposals is not None:
        can = (proposals >= 0) & (proposals != base.labels) & ~left_out
        chosen = _random_rows(base, relabelled, seed, "relabel", can)
        labels = np.where(chosen, proposals, base.labels)
        about = {"relabelled": int(chosen.sum()), **against_truth(base, none, chosen, labels)}
        made.append(Arm(f"{arm.name}: random relabel", labels, base.weights.copy(), arm.name, about))
    if reweighted.any():
        weights, about = _shuffled(arm, base, trimmed | left_out, seed), {"reweighted": int(reweighted.sum())}
        made.append(Arm(f"{arm.name}: shuffled weights", base.labels.copy(), weights, arm.name, about))
    return [without(control, left_out) for control in made]


def proposals_of(curated: Manifest, base: Rows) -> Ints | None:
    """The label that a curated manifest would give every row [n], -1 for none; None where it does not say."""
    column = curated.column(PROPOSAL)
    if column is None:
        return None
    by_id = {i: -1 if v is None or v != v else int(v) for i, v in zip(curated.ids, column.tolist(), strict=True)}
    classes = class_count(base.manifest.classes, base.labels)
    labels = [by_id.get(i, -1) for i in base.ids]
    known = labels if curated.numbers is None else [curated.numbers.get(k, -1) for k in labels]
    return np.array([k if k < classes else -1 for k in known], dtype=np.int64)


def _shuffled(arm: Arm, base: Rows, fixed: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
    """The arm's weights shuffled among the rows of each class, so that its mass stays; ``fixed`` rows keep theirs."""
    weights = arm.weights.copy()
    order = draw_order(base.ids, seed, "weights")
    for c in np.unique(base.labels):
        rows = (base.labels == c) & ~fixed
        weights[rows] = arm.weights[order[rows[order]]]
    return weights


def _random_rows(
    base: Rows, like: NDArray[np.bool_], seed: int, what: str, among: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """As many rows of every class as ``like`` has, drawn by a hash of (seed, id) among some of those in use."""
    left = {int(c): int(n) for c, n in zip(*np.unique(base.labels[like], return_counts=True), strict=True)}
    chosen = np.zeros(len(base), dtype=bool)
    for k in draw_order(base.ids, seed, what).tolist():
        c = int(base.labels[k])
        if left.get(c, 0) > 0 and base.weights[k] > 0 and among[k]:
            chosen[k] = True
            left[c] -= 1
    return chosen

"""The arms of a comparison: training sets that differ in their edits of the same rows; and their random controls.

A control makes edits of the same size and class mix.  That of a trim takes out as many random rows of each class; of a
relabel, (a) takes out as many random rows of each class and (b) gives the model's proposal to as many random rows; of
a reweight, shuffles the same weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.actions.protocol import PROPOSAL
from influence_cli.data.classes import class_count
from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.labels import wrong_labels
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.errors import UsageError
from influence_cli.store.keys import fingerprint

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(eq=False)
class Arm:
    """A training set as edits of the base rows: which are kept, with which labels and weights [n]."""

    name: str
    labels: NDArray[Any]
    weights: NDArray[np.float64]  # 0: not trained on
    controls: str | None = None  # the arm this one is the control of
    about: dict[str, Any] = field(default_factory=dict)
    again: Callable[[int], Arm] | None = None  # of a control: the same with another seed


def base_arm(name: str, rows: Rows) -> Arm:
    """All rows as they are."""
    return Arm(name, rows.labels.copy(), rows.weights.copy())


def without(arm: Arm, left_out: Mask) -> Arm:
    """The arm, not trained on the rows that are left out for calibration."""
    arm.weights[left_out] = 0.0
    return arm


def curated_arm(name: str, base: Rows, curated: Manifest, left_out: Mask | None = None) -> Arm:
    """The edits that turn the base rows into the curated manifest's train rows; rows left out are no edits.

    Rows that cannot be used (and are skipped) are in no arm, whatever the curated manifest says of them.

    Raises:
        UsageError: the curated manifest has a train row that the base has not, or another payload under its id.
    """
    edited = curated.rows("train")
    place = {i: k for k, i in enumerate(base.ids)}
    unusable = {b.id for b in base.manifest.bad}
    arm = Arm(name, base.labels.copy(), np.zeros(len(base)))
    for i, label, weight, key in zip(edited.ids, edited.labels, edited.weights, edited.payload_keys, strict=True):
        k = place.get(i)
        if k is None and i in unusable:
            continue  # left out of every arm
        if k is None or not np.array_equal(base.payload_keys[k], key):
            what = f"train row id={i} is not the same row in the manifest it is compared with"
            raise UsageError(what, where=curated.source, fix="pass as --against the manifest that was curated")
        arm.labels[k], arm.weights[k] = label, weight
    described(arm, base, left_out)
    return arm if left_out is None else without(arm, left_out)


def described(arm: Arm, base: Rows, left_out: Mask | None = None) -> Arm:
    """The arm, with how many rows it edits and, where clean labels are known, how many of them were wrong."""
    trimmed, relabelled, reweighted = edits_of(arm, base, left_out)
    arm.about = {
        "trimmed": int(trimmed.sum()),
        "relabelled": int(relabelled.sum()),
        "reweighted": int(reweighted.sum()),
        **against_truth(base, trimmed, relabelled, arm.labels),
    }
    return arm


def edits_of(arm: Arm, base: Rows, left_out: Mask | None = None) -> tuple[Mask, Mask, Mask]:
    """Which rows [n] are trimmed, relabelled and reweighted, rows left out for calibration aside."""
    trained = base.weights > 0 if left_out is None else (base.weights > 0) & ~left_out
    trimmed = (arm.weights == 0) & trained
    relabelled = base.manifest.label_kind.differ(arm.labels, base.labels) & trained & ~trimmed
    reweighted = (arm.weights != base.weights) & trained & ~trimmed
    return trimmed, relabelled, reweighted


def against_truth(base: Rows, trimmed: Mask, relabelled: Mask, labels: NDArray[Any]) -> dict[str, Any]:
    """Where clean labels are known: how many edited rows were wrong, and how many relabels put it right."""
    truth = wrong_labels(base)
    if truth is None:
        return {}
    wrong, known = truth
    about: dict[str, Any] = {"wrong_share_of_all": float(wrong.mean())}
    if trimmed.any():
        about["wrong_share_of_trimmed"] = float(wrong[trimmed].mean())
    if relabelled.any():
        about["wrong_share_of_relabelled"] = float(wrong[relabelled].mean())
        after = wrong_labels(base, labels)
        assert after is not None
        about["right_after_relabel"] = float((known & ~after[0])[relabelled].mean())
    return about


def draw_order(ids: Sequence[str], seed: int, what: str) -> Ints:
    """The rows [n] in a random order of their own for every (seed, what), by a hash of each id."""
    salt = f"{seed}:{what}".encode()
    keys = [hashlib.blake2b(i.encode(), digest_size=16, key=salt).digest() for i in ids]
    return np.array(sorted(range(len(ids)), key=lambda k: keys[k]), dtype=np.int64)


def arm_fingerprint(
    arm: Arm, base: Rows, measured: list[Rows], recipe: dict[str, Any], model: dict[str, Any], seed: int
) -> str:
    """Name of a finished training: rows, labels, weights, recipe, model, seed, and the rows it was measured on.

    Ids count: they decide the order of training.
    """
    kept = np.flatnonzero(arm.weights > 0)
    keys = base.payload_keys
    rows = sorted([base.ids[k], keys[k].tobytes().hex(), arm.labels[k].tolist(), float(arm.weights[k])] for k in kept)
    return fingerprint(
        "training", 1, rows=rows, measured=[r.fingerprint() for r in measured], recipe=recipe, model=model, seed=seed
    )


def control_arms(arm: Arm, base: Rows, proposals: Ints | None, seed: int, left_out: Mask | None = None) -> list[Arm]:
    """Random edits of the same size and class mix as an arm's, among the rows that are trained on.

    ``proposals`` holds the label that a relabel would give each row [n], -1 for none; None where that is not known.
    """

    def drawn(place: int, another: int) -> Arm:
        return control_arms(arm, base, proposals, another, left_out)[place]

    made = _controls(arm, base, proposals, seed, np.zeros(len(base), dtype=bool) if left_out is None else left_out)
    for place, control in enumerate(made):
        control.again = partial(drawn, place)
    return made


def _controls(arm: Arm, base: Rows, proposals: Ints | None, seed: int, left_out: Mask) -> list[Arm]:
    """Those of one seed."""
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
    if column is None or curated.label_kind.holds != CLASSES:
        return None
    by_id = {i: -1 if v is None or v != v else int(v) for i, v in zip(curated.ids, column.tolist(), strict=True)}
    classes = class_count(base.manifest.classes, base.labels)
    labels = [by_id.get(i, -1) for i in base.ids]
    known = labels if curated.numbers is None else [curated.numbers.get(k, -1) for k in labels]
    return np.array([k if k < classes else -1 for k in known], dtype=np.int64)


def _shuffled(arm: Arm, base: Rows, fixed: Mask, seed: int) -> NDArray[np.float64]:
    """The arm's weights shuffled among the rows of each class, so that its mass stays; ``fixed`` rows keep theirs."""
    weights = arm.weights.copy()
    order = draw_order(base.ids, seed, "weights")
    for c in np.unique(base.strata):
        rows = (base.strata == c) & ~fixed
        weights[rows] = arm.weights[order[rows[order]]]
    return weights


def _random_rows(base: Rows, like: Mask, seed: int, what: str, among: Mask) -> Mask:
    """As many rows of every class as ``like`` has, drawn by a hash of (seed, id) among some of those in use."""
    left = {int(c): int(n) for c, n in zip(*np.unique(base.strata[like], return_counts=True), strict=True)}
    chosen = np.zeros(len(base), dtype=bool)
    for k in draw_order(base.ids, seed, what).tolist():
        c = int(base.strata[k])
        if left.get(c, 0) > 0 and base.weights[k] > 0 and among[k]:
            chosen[k] = True
            left[c] -= 1
    return chosen

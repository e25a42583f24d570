"""The arms of a comparison: training sets that differ in their edits of the same rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.labels import clean_labels
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.errors import UsageError
from influence_cli.store.keys import fingerprint


@dataclass(eq=False)
class Arm:
    """A training set as edits of the base rows: which are kept, with which labels and weights [n]."""

    name: str
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]  # 0: not trained on
    controls: str | None = None  # the arm this one is the control of
    about: dict[str, Any] = field(default_factory=dict)


def base_arm(name: str, rows: Rows) -> Arm:
    """All rows as they are."""
    return Arm(name, rows.labels.copy(), rows.weights.copy())


def without(arm: Arm, left_out: NDArray[np.bool_]) -> Arm:
    """The arm, not trained on the rows that are left out for calibration."""
    arm.weights[left_out] = 0.0
    return arm


def curated_arm(name: str, base: Rows, curated: Manifest, left_out: NDArray[np.bool_] | None = None) -> Arm:
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


def described(arm: Arm, base: Rows, left_out: NDArray[np.bool_] | None = None) -> Arm:
    """The arm, with how many rows it edits and, where clean labels are known, how many of them were wrong."""
    trimmed, relabelled, reweighted = edits_of(arm, base, left_out)
    arm.about = {
        "trimmed": int(trimmed.sum()),
        "relabelled": int(relabelled.sum()),
        "reweighted": int(reweighted.sum()),
        **against_truth(base, trimmed, relabelled, arm.labels),
    }
    return arm


def edits_of(
    arm: Arm, base: Rows, left_out: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows [n] are trimmed, relabelled and reweighted, rows left out for calibration aside."""
    trained = base.weights > 0 if left_out is None else (base.weights > 0) & ~left_out
    trimmed = (arm.weights == 0) & trained
    relabelled = (arm.labels != base.labels) & trained & ~trimmed
    reweighted = (arm.weights != base.weights) & trained & ~trimmed
    return trimmed, relabelled, reweighted


def against_truth(
    base: Rows, trimmed: NDArray[np.bool_], relabelled: NDArray[np.bool_], labels: NDArray[np.int64]
) -> dict[str, Any]:
    """Where clean labels are known: how many edited rows were wrong, and how many relabels put it right."""
    clean = clean_labels(base)
    if clean is None:
        return {}
    wrong = (clean >= 0) & (clean != base.labels)
    about: dict[str, Any] = {"wrong_share_of_all": float(wrong.mean())}
    if trimmed.any():
        about["wrong_share_of_trimmed"] = float(wrong[trimmed].mean())
    if relabelled.any():
        about["wrong_share_of_relabelled"] = float(wrong[relabelled].mean())
        about["right_after_relabel"] = float((labels == clean)[relabelled].mean())
    return about


def draw_order(ids: list[str], seed: int, what: str) -> NDArray[np.int64]:
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
    rows = sorted([base.ids[k], keys[k].tobytes().hex(), int(arm.labels[k]), float(arm.weights[k])] for k in kept)
    return fingerprint(
        "training", 1, rows=rows, measured=[r.fingerprint() for r in measured], recipe=recipe, model=model, seed=seed
    )

"""Canaries: wrong labels planted in the training copy alone, so that detection can be measured where no truth is known.

``retrain --canaries 5%`` trains on the planted labels and writes them to the run folder; no manifest, score or edit
ever holds one as a row's label.  ``score`` at such a checkpoint scores every row with its own label, and says in
column ``canary`` which label was planted; ``curate`` and the gate leave those rows alone, since the model learned
another label for them.  ``evaluate`` scores them once more with the planted label, which for methods that work on
logits and tangents is arithmetic on what is stored, and asks how well every column finds them.

Which rows become canaries is drawn class by class, by hashes of ids; their labels from the mean predicted probabilities
of an earlier model (its confusion), or uniformly.

A row whose own label is wrong already may be given the right one: at a noise rate r that is at most a share r of the
canaries, and makes detection look slightly worse than it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.classes import class_count
from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.manifest import Rows
from influence_cli.errors import ModelError, UsageError
from influence_cli.events import Listener
from influence_cli.maths.labels import softmax
from influence_cli.model.checkpoints import find_model
from influence_cli.model.run_record import PlantedLabels
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.grads.fill import fill
from influence_cli.stages.retrain.arms import Arm
from influence_cli.stages.retrain.request import CanaryRequest, RetrainRequest
from influence_cli.stages.run.open import open_run
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.store.keys import row_keys

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
FEW = 20  # canaries below which intervals say next to nothing
LEAST_LEFT = 5  # rows of a class that keep their label


def plant_in_arms(
    request: RetrainRequest, base: Rows, arms: list[Arm], left_out: NDArray[np.bool_], classes: int, listener: Listener
) -> PlantedLabels | None:
    """Plant what the request asks for in the arms' labels; returns what the run folder says of it, if anything.

    Raises:
        UsageError: arms are compared, or no row can be planted.
    """
    asked = request.canaries
    if asked is None:
        return None
    if base.manifest.label_kind.holds != CLASSES:
        what = f"canaries are rows with another class, and the labels are {base.manifest.label_kind.called}"
        raise UsageError(what, fix="leave --canaries out; evaluate --lds says how far to trust scores")
    if request.against is not None or request.edits is not None:
        raise UsageError("canaries would be wrong labels in every arm that is compared", fix="leave out one of the two")
    known = min(classes, class_count(base.manifest.classes, base.labels))  # the model may have outputs for no row
    noise = uniform_noise(known)
    if asked.kind == "confusion":
        carried = None if asked.source is None else find_model(asked.source)[1]
        model = request.inputs.model if carried is None or carried["name"] == request.inputs.model else None
        earlier = replace(request.inputs, checkpoint=asked.source, model=model)
        noise = _noise_of(earlier, classes, known, request.device, listener)
    planted = plant(base, (base.weights > 0) & ~left_out, asked.share, noise, request.seed)
    for arm in arms:
        arm.labels = np.where(planted >= 0, planted, arm.labels)
    return _record(asked, base, planted, listener)


def _record(asked: CanaryRequest, base: Rows, planted: Ints, listener: Listener) -> PlantedLabels:
    """What the run folder says of the canaries; a word of it to the listener."""
    there = np.flatnonzero(planted >= 0)
    listener.note(
        f"{len(there):,} of {len(base):,} train rows are canaries: trained on with a wrong label, {asked.kind}"
    )
    if len(there) < FEW:
        listener.warn(f"{len(there)} canaries are few: intervals will be wide; raise --canaries")
    return PlantedLabels(
        ids=[base.ids[k] for k in there],
        row_keys=[base.row_keys[k].tobytes().hex() for k in there],
        planted=planted[there].tolist(),
        labels=base.labels[there].tolist(),
        share=asked.share,
        noise=asked.kind,
        source=asked.source,
    )


def _noise_of(inputs: Inputs, classes: int, known: int, device: str, listener: Listener) -> Floats:
    """The confusion of a checkpoint among the first ``known`` classes.

    It is taken on val rows where there are any: it may have learned the train rows by heart.
    """
    session = Session.open(Runtime(None, device), listener)
    run = open_run(inputs, GradSpec(("loss",)), session)
    held_out = run.manifest.rows("val")
    run = replace(run, train=held_out) if len(held_out) else run
    session = session.silent()  # what is said of train rows would be said of these
    run, _ = fill(run, session)
    logits = session.outputs(run, run.plain_member()).read(run.train.payload_keys)["logits"]
    if logits.shape[1] != classes:
        what = f"it has {logits.shape[1]} classes, the model to be trained {classes}"
        fix = "give a checkpoint of the same classes, or --canary-noise uniform"
        raise ModelError(what, where=str(inputs.checkpoint), fix=fix)
    return confusion_noise(logits[:, :known], run.train.labels)


def with_planted(run: Run, planted: Ints) -> Run:
    """The run with the planted labels [n] in place of the rows' own, as the checkpoint was trained."""
    labels = run.manifest.labels.copy()
    labels[run.train.index] = np.where(planted >= 0, planted, run.train.labels)
    manifest = replace(run.manifest, labels=labels, row_keys=row_keys(run.manifest.payload_keys, labels))
    return replace(run, manifest=manifest, train=Rows(manifest, run.train.index))


def uniform_noise(classes: int) -> Floats:
    """Every other class alike [C, C].

    Raises:
        UsageError: there is no other class.
    """
    if classes < 2:
        raise UsageError("canaries need a second class, and the data have one", fix="leave --canaries out")
    return (1.0 - np.eye(classes)) / (classes - 1)


def confusion_noise(logits: NDArray[np.floating], labels: Ints) -> Floats:
    """Mean probability of every other class, by labelled class [C, C], rows summing to 1.

    A hundredth of the uniform noise is mixed in; a class without rows has nothing else.
    """
    classes = logits.shape[1]
    probability = softmax(logits)
    matrix = np.zeros((classes, classes))
    for c in np.unique(labels):
        matrix[c] = probability[labels == c].mean(axis=0)
    np.fill_diagonal(matrix, 0.0)
    total = matrix.sum(axis=1, keepdims=True)
    uniform = uniform_noise(classes)
    return np.where(total > 0, 0.99 * matrix / np.where(total > 0, total, 1.0) + 0.01 * uniform, uniform)


def plant(rows: Rows, may: NDArray[np.bool_], share: float, noise: Floats, seed: int) -> Ints:
    """Planted labels [n], -1 where the row keeps its own: floor(share * rows that may), about that share of each class.

    No class gives more than max(2 share, share + 0.05) of its rows, and each keeps at least five.  Which rows, and
    their labels, come from hashes of (seed, id): other rows do not matter, but for the numbers a class.

    Raises:
        UsageError: no row can be planted.
    """
    wanted = _by_class(np.bincount(rows.labels[may], minlength=len(noise)), share)
    planted = np.full(len(rows), -1, dtype=np.int64)
    place, draw = (_hashed(rows.ids, seed, what) for what in ("canary", "canary label"))
    order = np.argsort(place, kind="stable")
    for c, count in enumerate(wanted.tolist()):
        chosen = order[(may & (rows.labels == c))[order]][:count]
        planted[chosen] = np.minimum(np.searchsorted(np.cumsum(noise[c]), draw[chosen], side="right"), len(noise) - 1)
    if not (planted >= 0).any():
        raise UsageError(f"a share of {share:.3g} of {int(may.sum())} rows is no canary", fix="raise --canaries")
    return planted


def _by_class(sizes: Ints, share: float) -> Ints:
    """Canaries of each class: its share, rounded by the largest remainder, within the guard."""
    exact = share * sizes
    most = np.minimum(np.floor(max(2 * share, share + 0.05) * sizes), sizes - LEAST_LEFT).clip(0).astype(np.int64)
    counts = np.minimum(np.floor(exact + 1e-9).astype(np.int64), most)
    left = int(np.floor(exact.sum() + 1e-9)) - int(counts.sum())
    for c in np.argsort(-(exact - np.floor(exact + 1e-9)), kind="stable").tolist():
        if left > 0 and counts[c] < most[c]:
            counts[c] += 1
            left -= 1
    return counts


def _hashed(ids: Sequence[str], seed: int, what: str) -> Floats:
    """Uniform draws on [0, 1) from (seed, what, id) [n]; not the draws of the method ``random``."""
    salt = f"{seed}:{what}".encode()
    digests = [hashlib.blake2b(i.encode(), digest_size=8, key=salt).digest() for i in ids]
    return np.frombuffer(b"".join(digests), dtype="<u8") / 2.0**64

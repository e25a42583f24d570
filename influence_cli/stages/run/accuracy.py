"""How good the model of a run is on its rows, whether that is better than guessing, and whether its classes fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.class_matching import GOOD_ENOUGH, Matching, find_matching
from influence_cli.model.class_order import FLAG, NATURAL, TEXT, sorted_names
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.store.blocks import StoredArray

Seen = tuple[NDArray[np.int64], NDArray[np.int64]]  # predicted outputs and labels of rows

FEW = 10  # rows, fewer of which say nothing of a model
LEAST_ROWS = 20  # that say something of the order of classes
SHOWN_CLASSES = 20  # named in a message
NEARLY_ALL, SMALL_LOSS = 0.99, 0.05  # train accuracy from which, and loss up to which, rows are known by heart


def train_accuracy(run: Run, session: Session) -> float | None:
    """Share of training rows whose label the checkpoint (or the first member) predicts; None where no model was run.

    Of several labels a row the share of them; None where a number is predicted.
    """
    if not run.members:
        return None
    logits = session.outputs(run, run.plain_member()).array(run.train.payload_keys, "logits")
    hits = predicted_right(run, logits, run.train.labels)
    return None if hits is None else float(hits.mean())


def predicted_right(run: Run, logits: StoredArray, labels: NDArray[Any]) -> NDArray[np.float64] | None:
    """How much of each label [n] is predicted, between 0 and 1; None where no prediction is right or wrong."""
    if run.row_loss.hits(logits[:1], labels[:1]) is None:
        return None
    return logits.of_rows(cast("Callable[..., NDArray[np.float64]]", run.row_loss.hits), labels)


def at_chance(accuracy: float, rows: int, num_classes: int) -> bool:
    """Whether an accuracy is within two standard errors of guessing (1/C), or below it; a few rows say nothing."""
    if rows < FEW:
        return False
    chance = 1.0 / num_classes
    return accuracy <= chance + 2.0 * float(np.sqrt(chance * (1.0 - chance) / rows))


def warn_at_chance(run: Run, session: Session, known: dict[str, tuple[float, int]], seen: Seen | None = None) -> None:
    """Say loudly, once for each, which of the accuracies (with their numbers of rows) are no better than guessing.

    Where another order of the classes predicts ``seen`` rows far better, that is said in its place; without ``seen``
    the training rows whose logits are stored are looked at.
    """
    if run.model is None or not known or not run.row_loss.by_class:
        return
    if min(accuracy for accuracy, _ in known.values()) < GOOD_ENOUGH and "class order" not in session.said:
        matching = _matching(run, _stored(run, session) if seen is None else seen)
        if matching is not None:
            session.said |= {"class order", *known}
            session.listener.warn(_order_said(run, matching))
    for name, (accuracy, rows) in known.items():
        if name not in session.said and at_chance(accuracy, rows, run.model.num_classes):
            session.said.add(name)
            session.listener.warn(
                f"{name} accuracy is {accuracy:.1%}, no better than guessing among {run.model.num_classes} classes: "
                "are these the weights, the input size and the class order that the model was trained with?"
            )


def _stored(run: Run, session: Session) -> Seen:
    """What the checkpoint predicts for the training rows whose logits are stored, and their labels."""
    folder, nothing = session.outputs(run, run.plain_member()), np.zeros(0, dtype=np.int64)
    if not run.members:
        return nothing, nothing
    there = ~folder.missing(run.train.payload_keys)
    if not there.any():
        return nothing, nothing
    keys = run.train.payload_keys[there]
    return folder.of_rows(keys, "logits", lambda z: z.argmax(axis=1)), run.train.labels[there]


def _matching(run: Run, seen: Seen) -> Matching | None:
    assert run.model is not None
    predicted, labels = seen
    if len(labels) < LEAST_ROWS:
        return None
    orders = list(likely_orders(run.manifest.classes).values())
    return find_matching(predicted, labels, run.model.num_classes, orders)


def likely_orders(classes: tuple[str, ...] | None) -> dict[str, list[int]]:
    """Which output each class is where a checkpoint's classes were sorted otherwise: by the word of --class-map."""
    names = list(classes or ())
    found: dict[str, list[int]] = {}
    for word in (NATURAL, TEXT) if names else ():
        order = sorted_names(word, names)
        outputs = [order.index(name) for name in names]
        if outputs != list(range(len(names))):
            found[word] = outputs
    return found


def _order_said(run: Run, found: Matching) -> str:
    """What is said of another order, with the flag that puts it right."""
    assert run.model is not None
    classes, order = run.manifest.classes, run.model.order
    outputs = found.outputs if order is None else tuple(order[k] for k in found.outputs)  # as the weights have them
    count = run.model.num_classes
    named = [str(k) for k in range(count)] if classes is None else list(classes)
    words = likely_orders(classes) if len(named) == count else {}  # which name every output
    word = next((w for w, o in words.items() if tuple(o)[: len(outputs)] == outputs), None)
    by_output = _by_output(named, outputs, count)
    some = json.dumps(by_output[:SHOWN_CLASSES], ensure_ascii=False) + ("..." if len(by_output) > SHOWN_CLASSES else "")
    how = "their order seems to be" if word is None else f"their order seems to be the {word} one:"
    fix = f"pass {FLAG} FILE with the names in the checkpoint's order as a JSON list"
    if word is not None:
        fix = f"pass {FLAG} {word}"
    elif outputs == tuple(range(len(outputs))):
        fix = f"leave {FLAG} out"
    return (
        f"the checkpoint's classes seem to stand in another order than the manifest's: {found.as_it_is:.1%} of a "
        f"class's rows are predicted right as they stand, and {found.by_order:.1%} in another order; {how} {some}"
        f"{_beside(count, named)}; {fix}"
    )


def _by_output(named: list[str], outputs: tuple[int, ...], count: int) -> list[str]:
    """The name of every output: that of the class it is; of others that of a class without rows, or its own number.

    >>> _by_output(["cat", "dog"], (1, 2), 3), _by_output(["cat", "dog", "eel"], (2, 0), 3)
    (['output 0', 'cat', 'dog'], ['dog', 'eel', 'cat'])
    """
    found, rest = dict(zip(outputs, named, strict=False)), iter(named[len(outputs) :])
    return [found[k] if k in found else next(rest, f"output {k}") for k in range(count)]


def _beside(count: int, named: list[str]) -> str:
    """Where there are more outputs than classes: that their names matter to nobody."""
    more = count - len(named)
    if more <= 0:
        return ""
    return f" (its {count} outputs are {more} more than the manifest's classes; what those are called does not matter)"


def warn_of_memory(run: Run, session: Session, known: dict[str, tuple[float, int]]) -> None:
    """Say, once, that the model has learned its train rows by heart, what that does to the scores, and what helps."""
    if not run.row_loss.by_class:
        return
    if "train" not in known or "target" not in known or "memory" in session.said or not run.members:
        return
    (train, _), (target, rows) = known["train"], known["target"]
    if not memorised(train, 0.0, target, rows):  # whatever the losses are
        return
    outputs = session.outputs(run, run.plain_member())
    losses = outputs.of_rows(run.train.payload_keys, "logits", run.row_loss.losses, run.train.labels)
    loss = float(np.median(losses[np.isfinite(losses)])) if np.isfinite(losses).any() else np.inf
    if not memorised(train, loss, target, rows):
        return
    session.said.add("memory")
    session.listener.warn(
        f"the model has learned its train rows by heart (train accuracy {train:.1%}, median loss {loss:.1g}, target "
        f"accuracy {target:.1%}): wrong labels among them are fitted too, so loss and margin lose their edge. What "
        "helps: scores at a model that has not seen the rows (train on the other half), a checkpoint of fewer epochs "
        "(retrain --epochs, --keep-checkpoints), or --method ip --params last --set ip.normalise=cosine; "
        "evaluate says which finds more"
    )


def memorised(train: float, loss: float, target: float, target_rows: int) -> bool:
    """Whether nearly every train label is predicted, at a median loss near 0, and target rows are clearly worse.

    >>> memorised(1.0, 1e-4, 0.8, 500), memorised(1.0, 1e-4, 0.999, 500), memorised(0.9, 1e-4, 0.7, 500)
    (True, False, False)
    """
    error = float(np.sqrt(target * (1.0 - target) / max(1, target_rows)))
    return train >= NEARLY_ALL and loss <= SMALL_LOSS and train - target > max(0.01, 2.0 * error)

"""How good the model of a run is on its rows, and whether that is better than guessing."""

from __future__ import annotations

import numpy as np

from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session

NEARLY_ALL, SMALL_LOSS = 0.99, 0.05  # train accuracy from which, and loss up to which, rows are known by heart


def train_accuracy(run: Run, session: Session) -> float | None:
    """Share of training rows whose label the checkpoint (or the first member) predicts; None where no model was run."""
    if not run.members:
        return None
    logits = session.outputs(run, run.plain_member()).read(run.train.payload_keys)["logits"]
    return float((logits.argmax(axis=1) == run.train.labels).mean())


def at_chance(accuracy: float, rows: int, num_classes: int) -> bool:
    """Whether an accuracy is within two standard errors of guessing (1/C), or below it."""
    chance = 1.0 / num_classes
    return accuracy <= chance + 2.0 * float(np.sqrt(chance * (1.0 - chance) / rows))


def warn_at_chance(run: Run, session: Session, known: dict[str, tuple[float, int]]) -> None:
    """Say loudly, once for each, which of the accuracies (with their numbers of rows) are no better than guessing."""
    for name, (accuracy, rows) in known.items():
        if run.model is not None and name not in session.said and at_chance(accuracy, rows, run.model.num_classes):
            session.said.add(name)
            session.listener.warn(
                f"{name} accuracy is {accuracy:.1%}, no better than guessing among {run.model.num_classes} classes: "
                "are these the weights, the input size and the class order that the model was trained with?"
            )


def warn_of_memory(run: Run, session: Session, known: dict[str, tuple[float, int]]) -> None:
    """Say, once, that the model has learned its train rows by heart, what that does to the scores, and what helps."""
    if "train" not in known or "target" not in known or "memory" in session.said or not run.members:
        return
    logits = session.outputs(run, run.plain_member()).read(run.train.payload_keys)["logits"]
    losses = run.row_loss.losses(logits, run.train.labels)
    (train, _), (target, rows) = known["train"], known["target"]
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

"""How good the model of a run is on its rows, and whether that is better than guessing."""

from __future__ import annotations

import numpy as np

from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session


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

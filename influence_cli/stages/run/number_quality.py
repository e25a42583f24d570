"""How good predictions of numbers are, in words, and whether they are of any use."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from influence_cli.data.measures import MEASURES
from influence_cli.stages.run.accuracy import FEW
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session


def train_quality(run: Run, session: Session) -> dict[str, float]:
    """How good predictions of numbers are on the training rows, by measure; nothing where accuracy says it."""
    if not run.members or run.model is None:
        return {}
    stored, y = session.outputs(run, run.plain_member()).array(run.train.payload_keys, "logits"), run.train.labels
    if run.row_loss.hits(stored[:1], y[:1]) is not None:
        return {}
    z = stored.whole()  # as many numbers as labels have, which are in memory too
    usable = np.isfinite(z).all(axis=1)
    if not usable.any():
        return {}
    return run.row_loss.quality(z[usable], y[usable])


def quality_said(measures: Mapping[str, float]) -> str:
    """Measures in words.

    >>> quality_said({"rmse": 53.4123, "r2": 0.51, "loss": 1426.4})
    'RMSE 53.41, R2 0.51, loss 1426'
    """
    return ", ".join(f"{MEASURES[name].called} {MEASURES[name].text(value)}" for name, value in measures.items())


def warn_of_no_use(session: Session, measures: Mapping[str, float], rows: int) -> None:
    """Say, once, that predictions of numbers explain nothing of them, as those of another model's weights would."""
    explained = measures.get("r2")
    if explained is None or explained > 0.0 or rows < FEW or "no use" in session.said:
        return
    session.said.add("no use")
    session.listener.warn(
        f"the model predicts its train rows no better than their mean would (R2 {explained:.2f}): are these the "
        "weights, and the features as the model was trained with?"
    )

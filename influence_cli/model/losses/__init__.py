"""The losses of a row: to add one, write its class in a file here (``protocol.RowLoss``) and say in ``loss_of`` when.

All are functions of a row's outputs and label, so scores are arithmetic on stored outputs and tangents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from influence_cli.model.losses.cross_entropy import CrossEntropy
from influence_cli.model.losses.next_token import NextTokens
from influence_cli.model.losses.own import OwnLoss
from influence_cli.model.losses.protocol import RowLoss

if TYPE_CHECKING:
    from influence_cli.model.spec import ModelSpec

CROSS_ENTROPY: RowLoss = CrossEntropy()


def loss_of(spec: ModelSpec | None) -> RowLoss:
    """The loss of a run, whose model is such; None: it has none."""
    if spec is None:
        return CROSS_ENTROPY
    if spec.is_language:
        return NextTokens()
    return CROSS_ENTROPY if spec.task is None or spec.task.loss is None else OwnLoss(spec.task.loss)

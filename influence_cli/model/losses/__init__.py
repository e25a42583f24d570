"""The losses of a row: to add one, write its class in a file here (``protocol.RowLoss``) and say in ``loss_of`` when.

All are functions of a row's outputs and label, so scores are arithmetic on stored outputs and tangents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from influence_cli.model.losses.cross_entropy import CrossEntropy
from influence_cli.model.losses.own import OwnLoss
from influence_cli.model.losses.protocol import RowLoss

if TYPE_CHECKING:
    from influence_cli.model.task import Task

CROSS_ENTROPY: RowLoss = CrossEntropy()


def loss_of(task: Task | None) -> RowLoss:
    """The loss of a run."""
    return CROSS_ENTROPY if task is None or task.loss is None else OwnLoss(task.loss)

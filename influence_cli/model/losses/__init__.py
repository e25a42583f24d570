"""The losses of a row: to add one, write its class in a file here (``protocol.RowLoss``) and add it to the table.

All are functions of a row's outputs and label, so scores are arithmetic on stored outputs and tangents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from influence_cli.data.label_kinds import NUMBERS, SEVERAL, LabelKind
from influence_cli.errors import UsageError, nearest
from influence_cli.model.losses.binary import SummedBinary
from influence_cli.model.losses.cross_entropy import CrossEntropy
from influence_cli.model.losses.next_token import NextTokens
from influence_cli.model.losses.own import OwnLoss
from influence_cli.model.losses.protocol import RowLoss
from influence_cli.model.losses.squared import Huber, SquaredError

if TYPE_CHECKING:
    from influence_cli.model.spec import ModelSpec

CROSS_ENTROPY: RowLoss = CrossEntropy()
LOSSES: dict[str, Callable[[], RowLoss]] = {
    "cross-entropy": lambda: CROSS_ENTROPY,
    "squared": SquaredError,
    "huber": Huber,
    "binary": SummedBinary,
    "next-token": NextTokens,
}
OWN = "own"  # of a spec whose Task has a loss: what its labels are stands behind a colon, unless they are classes
_LIKE = {NUMBERS: SquaredError, SEVERAL: SummedBinary}  # the usual loss of labels that are no classes


def named_loss(name: str) -> RowLoss:
    """A loss by its name: ``huber:DELTA`` has its delta with it.

    Raises:
        UsageError: there is none of this name, or delta is no positive number.
    """
    word, colon, tail = name.partition(":")
    if word not in LOSSES or (colon and word != "huber"):
        raise UsageError(f"--loss {name!r} is unknown", fix=nearest(word, list(LOSSES)))
    if not colon:
        return LOSSES[word]()
    try:
        delta = float(tail)
    except ValueError:
        delta = 0.0
    if not 0.0 < delta < float("inf"):
        fix = "write huber:1.5: errors up to 1.5 count squared, in the unit of the labels"
        raise UsageError(f"--loss {name!r}: delta is no positive number", fix=fix)
    return Huber(delta)


def is_loss(value: object) -> bool:
    """Whether a spec can say this of its loss."""
    if not isinstance(value, str):
        return False
    try:
        return value in {f"{OWN}:{holds}" for holds in _LIKE} or not named_loss(value).by_class
    except UsageError:
        return False


def loss_in_spec(asked: str | None, labels: LabelKind, own: bool) -> str | None:
    """What a spec says of its loss, for rows of such labels; None for cross-entropy, as specs always had it.

    ``asked`` is the name that was asked for, ``own`` whether the model brings a loss of its own.

    Raises:
        UsageError: the loss is not one of such labels, or there are two.
    """
    if own:
        if asked is not None:
            raise UsageError(f"--loss {asked} and the task's own loss are two", fix="leave one of them out")
        return f"{OWN}:{labels.holds}" if labels.holds in _LIKE else None
    loss = named_loss(asked or labels.losses[0])
    if loss.holds != labels.holds:
        known = " or ".join(labels.losses)
        raise UsageError(f"--loss {asked} is no loss of labels that are {labels.called}", fix=f"pass --loss {known}")
    return None if loss.by_class else loss.name(1)


def loss_of(spec: ModelSpec | None) -> RowLoss:
    """The loss of a model: that of its Task, or the one that its spec names."""
    own = None if spec is None or spec.task is None else spec.task.loss
    named = None if spec is None else spec.loss
    if own is not None:
        _, _, holds = (named or "").partition(":")
        return OwnLoss(own, _LIKE[holds]() if holds in _LIKE else None)
    return CROSS_ENTROPY if named is None else named_loss(named)

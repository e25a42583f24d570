"""Find the training rows that hurt a model, fix them, and show whether it helped.

    manifest --(grads)--> store --(score)--> scores --(curate)--> edits + curated manifest --(retrain)--> comparison

Each arrow is a stage: ``grads`` runs the model on the rows that the store has not seen, ``score`` turns what is
stored into one number a row (positive: the row helps), ``curate`` edits rows under a budget, ``retrain`` trains with
and without the edits and with random edits of the same size, and ``evaluate`` says how far to trust the scores.
They are functions here and commands of the same names in the shell.  Importing this package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from influence_cli.api import curate, evaluate, grads, manifest, per_target, plan, retrain, score, tokens
    from influence_cli.errors import InfluenceError, InfluenceWarning
    from influence_cli.model.task import Task

__all__ = [
    "InfluenceError",
    "InfluenceWarning",
    "Task",
    "curate",
    "evaluate",
    "grads",
    "manifest",
    "per_target",
    "plan",
    "retrain",
    "score",
    "tokens",
]

_ELSEWHERE = {
    "InfluenceError": "influence_cli.errors",
    "InfluenceWarning": "influence_cli.errors",
    "Task": "influence_cli.model.task",
}


def __getattr__(name: str) -> Any:
    """Public names, imported when they are first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'influence_cli' has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "influence_cli.api")), name)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted({*globals(), *__all__})

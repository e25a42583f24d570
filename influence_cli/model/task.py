"""A model of the user's own: its module, how a payload becomes its input, and its loss, as one small object.

A loss is known by its values on fixed logits (``losses.loss_name``), a model by what it does to a few rows.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.kinds.own_input import errors_of_own_code, text_of_error
from influence_cli.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


PYTHON = "python:"  # prefix of a function of the user's that makes a model or a Task


@dataclass(frozen=True, eq=False)
class Task:
    """What is scored, in the user's own code.

    ``model`` is a module, or a function that makes one; called with a batch of inputs it returns logits [n, C], in
    which rows do not depend on each other.  It is copied, never changed.  ``transform`` makes one row's input, a
    tensor or a dict of tensors, from its payload: the bytes of an image, a float32 vector, a dict of what several
    columns hold, or what a Dataset's row holds; without it the payload must be an array, a tensor or a dict of these.
    ``loss`` gives one loss a row, [n], from logits [n, C] and labels [n]; without it, cross-entropy.  ``name`` tells
    tasks with the same weights apart; it is not needed where only code changes.
    """

    model: nn.Module | Callable[[], nn.Module]
    transform: Callable[[Any], Tensor] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    name: str = ""
    penalty: ClassVar[Callable[[float], dict[str, float]] | None] = None  # l2 by parameter, for rows of some weight

    def build(self) -> nn.Module:
        """A model to work with: made anew, or a copy of the module.  Raises ModelError: it is no module."""
        from torch import nn

        from influence_cli.model.own_module import copied, plain_module, refuse_wrappers

        if isinstance(self.model, nn.Module):
            refuse_wrappers(self.model)
            return plain_module(copied(self.model))
        made = _called(self.model, "the task's model")
        if not isinstance(made, nn.Module):
            raise ModelError(f"the task's model is a {type(made).__name__}, not a torch module", fix="give nn.Module")
        return plain_module(made)

    def input(self, payload: Any) -> NDArray[Any] | dict[str, NDArray[Any]]:
        """One row's input as an array, or as arrays by name.

        Raises:
            ValueError: the transform failed, or gave no tensor; callers add the row's name.
        """
        with errors_of_own_code(lambda why: ValueError(f"the task's transform failed ({why})")):
            value = payload if self.transform is None else self.transform(_writeable(payload))
        made = "the payload" if self.transform is None else "the transform's result"
        if isinstance(value, dict) and value:
            return {str(name): _as_array(part, f"{name!r} of {made}") for name, part in value.items()}
        return _as_array(value, made)


def _writeable(payload: Any) -> Any:
    """The payload with copies of arrays that must not be written to: torch warns of tensors on their memory."""
    if isinstance(payload, dict):
        return {name: _writeable(part) for name, part in payload.items()}
    return payload.copy() if isinstance(payload, np.ndarray) and not payload.flags.writeable else payload


def _as_array(value: Any, made: str) -> NDArray[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return _writeable(value)
    raise ValueError(f"{made} is a {type(value).__name__}, not a tensor: give the task a transform")


def own_code(name: str) -> tuple[Task, bool]:
    """What ``python:PACKAGE.MODULE:FACTORY`` makes, as a Task, and whether it is a plain module without a transform.

    The working folder is searched too.  To call this is to run code: ``name`` comes from a flag, a setting or an
    argument of this run, never from a file that is read as data (``spec.with_own_code``).

    Raises:
        UsageError: it cannot be imported, or is no function.
        ModelError: it makes neither.
    """
    from torch import nn

    module, colon, factory = name.removeprefix(PYTHON).partition(":")
    if not (module and colon and factory):
        raise UsageError(f"cannot read model {name!r}", fix="write python:PACKAGE.MODULE:FACTORY")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        make = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"cannot import {name!r} ({error})", fix="check the module and the function's name") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: code of the user's does not end the program
        raise UsageError(f"cannot import {name!r} ({text_of_error(error)})", fix="repair the module") from error
    if not callable(make):
        raise UsageError(f"{name!r} is no function", fix="name a function that returns a Task or a torch module")
    made = _called(make, repr(name))
    if isinstance(made, Task):
        return made, False
    if isinstance(made, nn.Module):
        return Task(cast(Any, make)), True
    raise ModelError(f"{name!r} made a {type(made).__name__}", fix="return an influence_cli.Task or a torch module")


def _called(make: Callable[[], Any], what: str) -> Any:
    """What a function of the user's makes."""
    with errors_of_own_code(
        lambda why: ModelError(f"{what} failed ({why})", fix="repair the function; --debug shows where")
    ):
        return make()


def checked_task(task: Any) -> Task:
    """The task that was given through the Python API.  Raises UsageError: it is none."""
    if not isinstance(task, Task):
        kind = type(task).__name__
        raise UsageError(f"the task is a {kind}", fix="give influence_cli.Task(model=..., transform=..., loss=...)")
    return task

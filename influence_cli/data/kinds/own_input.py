"""Payloads that code of the user's own makes a model's input of, and rows that a Python program holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from influence_cli.data.kinds.protocol import Decoded, InputSpec, Kind
from influence_cli.errors import UsageError


@contextlib.contextmanager
def errors_of_own_code(failure: Callable[[str], Exception]) -> Generator[None]:
    """Run code of the user's: what it raises, SystemExit too, is the ``failure`` of its text; only Ctrl-C passes."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise failure(text_of_error(error)) from error


def text_of_error(error: BaseException) -> str:
    """Type and text of an error, for messages."""
    return f"{type(error).__name__}: {error}"


class TaskInput(Kind):
    """What a task's transform makes of a payload of any kind."""

    name = "task"

    def decode(self, payload: Any, spec: InputSpec) -> Decoded:
        """What the transform gives.  Raises ValueError: it fails."""
        return spec.task.input(payload)

    def collate(self, values: Sequence[Any]) -> Decoded:
        """Batches as torch's collating makes them: code of the user's may look at their memory with ``view``."""
        stacked = super().collate(values)
        if isinstance(stacked, dict):
            return {name: np.ascontiguousarray(value) for name, value in stacked.items()}
        return np.ascontiguousarray(stacked)

    def blank(self, spec: InputSpec, rows: int) -> None:
        """Only the transform knows."""
        return


class DatasetRow(Kind):
    """What a Dataset of a Python program gives: of any type, in no column, and an input by a task's transform alone."""

    name = "dataset"
    model_kind = "task"
    as_it_is = False

    def shape(self, payload: Any, whole: bool = False) -> tuple[int, ...]:
        """Raises UsageError: only a transform knows."""
        fix = "return an influence_cli.Task with a transform"
        raise UsageError("a Dataset does not say how its rows become a model's input", fix=fix)

"""How many rows go through a model at once: a rule to begin with, more where that pays, half when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from influence_cli.errors import ModelError

Outputs = tuple[Tensor, list[Tensor]]
TRIED = 2  # batches of a size that are timed, after a first one
PAYS = 0.95  # a larger batch is worth its memory where a row takes at most this share of the time
_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an accelerator's or the machine's memory ran out."""
    text = str(error).lower()
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(words in text for words in _MESSAGES))


class Pace:
    """Doubles the rows of a batch while that makes a row cheaper, and goes back to the best size once it does not.

    Small batches leave an accelerator idle, and how large they must be depends on the model, the inputs and the device;
    so it is measured, on batches that are wanted anyway.  Scores differ by rounding alone, as between any two sizes.
    """

    def __init__(self, rows: int, most: int) -> None:
        """``rows`` to begin with, and at most ``most``: with both the same nothing is tried."""
        self.rows, self.most = rows, most
        self.best: tuple[float, int] | None = None  # seconds a row, and the size that took them
        self._kind: Any = None
        self._seconds: list[float] = []

    def took(self, kind: Any, rows: int, seconds: float) -> None:
        """A batch of ``rows`` rows took so long; batches of another ``kind`` (of work) are not comparable."""
        if kind != self._kind:
            self._kind, self._seconds, self.best = kind, [], None
        if rows != self.rows or self.rows >= self.most:
            return
        self._seconds.append(seconds / rows)
        if len(self._seconds) <= TRIED:  # the first of a size sets things up
            return
        found, self._seconds = min(self._seconds[1:]), []
        if self.best is None or found < PAYS * self.best[0]:
            self.best, self.rows = (found, self.rows), min(2 * self.rows, self.most)
        else:
            self.rows = self.most = self.best[1]

    def stop_at(self, rows: int | None) -> None:
        """Memory ran out above so many rows: nothing larger is tried."""
        if rows is not None and rows < self.rows:
            self.rows = self.most = rows


class Parts:
    """Runs batches whole, or in parts once a whole one did not fit."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """``warn`` is called once that batches are run in parts."""
        self.warn = warn
        self.most: int | None = None  # rows that may fit, once some did not

    def run(self, outputs: Callable[[Tensor], Outputs], x: Tensor) -> Outputs:
        """``outputs(x)``, with as many rows at a time as fit.

        Raises:
            ModelError: a single row does not fit.
        """
        made: list[Outputs] = []
        done = 0
        while done < len(x) or not made:
            size = min(self.most or len(x), len(x) - done)
            try:
                made.append(outputs(x[done : done + size]))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if size <= 1:
                    fix = "pass --device cpu, or take gradients in fewer parameters (--params last)"
                    raise ModelError("memory runs out on a single row", fix=fix) from None
            else:
                done += size
                continue
            self._halve(size)  # out of the handler, in which the error still holds what did not fit
        return made[0] if len(made) == 1 else _joined(made)

    def _halve(self, size: int) -> None:
        if self.most is None:
            self.warn(f"memory ran out on a batch of {size} rows: batches are halved until they fit")
        self.most = max(1, size // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _joined(made: Sequence[Outputs]) -> Outputs:
    return torch.cat([z for z, _ in made]), [torch.cat(ts) for ts in zip(*(t for _, t in made), strict=True)]

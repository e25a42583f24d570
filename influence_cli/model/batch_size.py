"""How many rows go through a model at once: a rule to begin with, and half of it whenever memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from influence_cli.errors import ModelError

Outputs = tuple[Tensor, list[Tensor]]
_SAYS_SO = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an accelerator's or the machine's memory ran out."""
    text = str(error).lower()
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(words in text for words in _SAYS_SO))


class Parts:
    """Runs batches whole, or in parts once a whole one did not fit."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """``say`` is told once that batches are run in parts."""
        self.say = say
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
                self._halve(size)
                continue
            done += size
        return made[0] if len(made) == 1 else _joined(made)

    def _halve(self, size: int) -> None:
        if self.most is None:
            self.say(f"memory ran out on a batch of {size} rows: batches are halved until they fit")
        self.most = max(1, size // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _joined(made: Sequence[Outputs]) -> Outputs:
    return torch.cat([z for z, _ in made]), [torch.cat(ts) for ts in zip(*(t for _, t in made), strict=True)]

"""Batches that are kept between passes over the same rows, where all of them are small together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

IN_MEMORY_BYTES = 1 << 28  # up to which they are

Stored = list[tuple[NDArray[np.int64], Tensor]]  # rows, and a tensor [b, ...] of theirs


class Kept:
    """What one pass keeps for the next."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._bytes = 0
        self._items: Stored = []

    def add(self, index: NDArray[np.int64], tensor: Tensor) -> None:
        """Keep a batch, unless they have become too large."""
        self._bytes += tensor.numel() * tensor.element_size()
        self._items.append((index, tensor))
        if self._bytes > IN_MEMORY_BYTES:
            self._items.clear()

    def small(self) -> Stored | None:
        """All that was added; None where that is too large."""
        return self._items if self._bytes <= IN_MEMORY_BYTES else None

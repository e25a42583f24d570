"""Random: a seeded uniform draw per row id, the floor that every other method is measured against."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influence_cli.methods.protocol import FreeMethod


@dataclass(frozen=True)
class Random(FreeMethod):
    """Uniform on [0, 1) from (seed, id): neither order nor the other rows matter."""

    def score(self, ids: list[str], seed: int) -> NDArray[np.float64]:
        """Scores [n]."""
        salt = seed.to_bytes(8, "little", signed=True)
        draws = [hashlib.blake2b(i.encode(), digest_size=8, key=salt).digest() for i in ids]
        return np.frombuffer(b"".join(draws), dtype="<u8") / 2.0**64

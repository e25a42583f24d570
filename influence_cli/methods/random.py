"""Random: a seeded uniform draw per row id, the floor that every other method is measured against."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from influence_cli.methods.protocol import Floats, Kind, Method, Scores
from influence_cli.methods.stored import Stored

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.model.losses import RowLoss


@dataclass(frozen=True)
class Random(Method):
    """Uniform on [0, 1) from (seed, id): neither order nor the other rows matter."""

    needs: ClassVar[str] = "nothing"
    kind: ClassVar[Kind] = "ranking"

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        """A draw for each row."""
        return [Scores(uniform_draws(rows.ids, stored.seed))]


def uniform_draws(ids: Sequence[str], seed: int) -> Floats:
    """Uniform draws [n] on [0, 1) from (seed, id)."""
    salt = seed.to_bytes(8, "little", signed=True)
    drawn = [hashlib.blake2b(i.encode(), digest_size=8, key=salt).digest() for i in ids]
    return np.frombuffer(b"".join(drawn), dtype="<u8") / 2.0**64

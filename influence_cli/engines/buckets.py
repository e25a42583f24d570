"""Running sums over target rows in buckets that their payload keys say, for a gradient and how noisy it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.processes.group import Group

BUCKETS = 16


@dataclass
class BucketSums:
    """Running float64 sums of one objective: rows of even and of odd buckets, and the bucket at hand.

    A bucket of a single batch is what the backward pass gave, read once: with as many parameters as models have, each
    further copy of them takes as long as the pass over several rows.
    """

    halves: tuple[list[Tensor], list[Tensor]]
    norms: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BUCKETS))  # |sum of the bucket's gradients|^2
    bucket: list[Tensor] | None = None
    number: int = 0  # of the bucket at hand
    value: float = 0.0
    hits: float = 0  # rows that are predicted as they are labelled; not a number where no prediction is right or wrong
    clean_hits: float = 0  # of the rows as they are, where the objective is measured on attacked ones
    flips: int = 0  # rows whose prediction is not that of their twin

    def add(self, gradients: Sequence[Tensor]) -> None:
        """One more batch of the bucket at hand."""
        if self.bucket is None:
            self.bucket = list(gradients)
        else:
            self.bucket = [sum_.double() + g for sum_, g in zip(self.bucket, gradients, strict=True)]

    def enter_bucket(self, b: int) -> None:
        """What is added from now on is of bucket b; nothing more comes of the one before, if that is another."""
        if b != self.number:
            self.close_bucket()
            self.number = b

    def close_bucket(self) -> None:
        """Nothing more comes of the bucket at hand."""
        for sum_, g in zip(self.halves[self.number % 2], self.bucket or (), strict=False):
            self.norms[self.number] += float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2
            sum_ += g  # in float64, as the sum is
        self.bucket = None

    def add_up(self, shared: Group, device: torch.device) -> None:
        """Have the sums over the buckets of all processes."""
        counts = [self.value, self.hits, self.clean_hits, float(self.flips)]
        scalars = torch.from_numpy(np.concatenate([self.norms, counts])).to(device)
        shared.add_up([scalars, *self.halves[0], *self.halves[1]])
        found = scalars.cpu().numpy()
        self.norms, (self.value, self.hits, self.clean_hits) = found[:BUCKETS], found[BUCKETS : BUCKETS + 3].tolist()
        self.flips = int(found[-1])


def bucket_of(keys: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Bucket 0..15 of each payload key [m, 16]: a property of the row, not of its place."""
    return keys[:, 0].astype(np.int64) % BUCKETS

"""Uniform draws that belong to a row's key, whatever its place among the rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64, in wrapping 64-bit integers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keyed_uniform(keys: NDArray[np.uint8], seed: int, stream: int) -> NDArray[np.float64]:
    """A number in [0, 1) for every key [n, 16]; another seed or stream gives independent ones.

    >>> keys = np.arange(32, dtype=np.uint8).reshape(2, 16)
    >>> u = keyed_uniform(keys, 0, 0)
    >>> bool((u[::-1] == keyed_uniform(keys[::-1], 0, 0)).all()), bool((u == keyed_uniform(keys, 0, 1)).any())
    (True, False)
    """
    halves = np.ascontiguousarray(keys).view("<u8").astype(np.uint64)
    x = np.zeros(len(halves), dtype=np.uint64)
    for part in (np.full_like(x, seed), np.full_like(x, stream), halves[:, 0], halves[:, 1]):
        x = _mixed((x ^ part) + _GOLDEN)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53

"""Uniform draws and dropout masks by SplitMix64 of keys: the same bits in any order and on any device."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15


def stream_key(text: bytes, what: str) -> int:
    """64 bits that stand for a stream of draws; what is drawn for one use is independent of any other's."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=f"influence.{what}".encode()).digest(), "little")


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def hashed_uniform(key: int, count: int, device: torch.device) -> Tensor:
    """32 uniform bits [count] as int64: SplitMix64 of key + index * golden ratio, in wrapping 64-bit integers.

    >>> hashed_uniform(0, 1, torch.device("cpu")).item() == 0xE220A8397B1DCDAF >> 32
    True
    """
    start = _signed((key + GOLDEN) & ((1 << 64) - 1))
    x = torch.arange(count, dtype=torch.int64, device=device).mul_(_signed(GOLDEN)).add_(start)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return _shift_right(x ^ _shift_right(x, 31), 32)


def keep_mask(seed: int, member: int, name: str, shape: torch.Size, rate: float, device: torch.device) -> Tensor:
    """Boolean mask of ``shape``; each element is kept with probability 1 - rate, to 2^-32."""
    draws = hashed_uniform(stream_key(f"{seed}:{member}:{name}".encode(), "mask"), shape.numel(), device)
    return (draws >= round(rate * 2**32)).reshape(shape)


def drop(name: str, value: Tensor, seed: int, member: int, rate: float, rescale: bool) -> Tensor:
    """Mask * value / (1 - rate), or without the division; a new tensor."""
    mask = keep_mask(seed, member, name, value.shape, rate, value.device)
    return value * mask / (1.0 - rate) if rescale else value * mask


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
        x = _mixed((x ^ part) + np.uint64(GOLDEN))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53

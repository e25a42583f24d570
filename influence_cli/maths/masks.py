"""Dropout masks from integer hashing of (seed, member, tensor name, index): the same bits on every device."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


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
    golden = 0x9E3779B97F4A7C15
    start = _signed((key + golden) & ((1 << 64) - 1))
    x = torch.arange(count, dtype=torch.int64, device=device).mul_(_signed(golden)).add_(start)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return _shift_right(x ^ _shift_right(x, 31), 32)


def keep_mask(seed: int, member: int, name: str, shape: torch.Size, rate: float, device: torch.device) -> Tensor:
    """Boolean mask of ``shape``; each element is kept with probability 1 - rate, to 2^-32."""
    text = f"{seed}:{member}:{name}".encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"influence.mask").digest(), "little")
    draws = hashed_uniform(key, shape.numel(), device)
    return (draws >= round(rate * 2**32)).reshape(shape)


def drop(name: str, value: Tensor, seed: int, member: int, rate: float, rescale: bool) -> Tensor:
    """Mask * value / (1 - rate), or without the division; a new tensor."""
    mask = keep_mask(seed, member, name, value.shape, rate, value.device)
    return value * mask / (1.0 - rate) if rescale else value * mask

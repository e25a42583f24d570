"""Parameter dropout as data: which copy of a model a member is.  Masks are made in ``maths.hashed_draws``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_MASK = (1 << 64) - 1


def splitmix64(x: int) -> int:
    """One step of SplitMix64 (Steele, Lea, Flood 2014): a well-mixed 64-bit integer from a counter."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


@dataclass(frozen=True)
class Dropout:
    """Element-wise dropout of the selected parameters at ``rate``, drawn from (seed, member)."""

    seed: int
    member: int
    rate: float
    rescale: bool
    params: str
    scope: str = "all"  # "matrices" spares vectors: biases and normalisation scales

    def describe(self) -> dict[str, Any]:
        """Plain values for a fingerprint."""
        return asdict(self)


def member_rate(seed: int, member: int, p_max: float) -> float:
    """p_k, uniform on [0, p_max), from (seed, member) alone: a larger ensemble keeps its first members."""
    return p_max * (splitmix64(splitmix64(seed & _MASK) ^ member) / 2.0**64)

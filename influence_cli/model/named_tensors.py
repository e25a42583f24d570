"""Several tensors of the same rows by name, for models whose input is more than one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from influence_cli.data.kinds.protocol import Decoded


class NamedTensors:
    """Tensors [b, ...] by name, which are indexed, cut, moved and copied together, as one tensor is."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Each tensor has one entry a row."""
        self.tensors = dict(tensors)

    def map(self, change: Callable[[Tensor], Tensor]) -> NamedTensors:
        """The same names with changed tensors."""
        return NamedTensors({name: change(tensor) for name, tensor in self.tensors.items()})

    @property
    def _first(self) -> Tensor:
        return next(iter(self.tensors.values()))

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, rows: Any) -> NamedTensors:
        return self.map(lambda t: t[rows])

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self._first.device

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def split(self, size: int) -> list[NamedTensors]:
        """Parts of ``size`` rows."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    def to(self, *where: Any, **how: Any) -> NamedTensors:
        """Moved to a device; real numbers, but not integers, cast to a type."""
        kinds = [w for w in where if isinstance(w, torch.dtype)]
        others = [w for w in where if not isinstance(w, torch.dtype)]
        return self.map(lambda t: t.to(*others, *(kinds if t.is_floating_point() else ()), **how))


register_pytree_node(
    NamedTensors,
    lambda x: (list(x.tensors.values()), list(x.tensors)),
    lambda values, names: NamedTensors(dict(zip(names, values, strict=True))),
)

Inputs = Tensor | NamedTensors  # decoded rows or a model's inputs [b, ...]


def as_rows(values: Any) -> Any:
    """A tensor as it is, and a dict of tensors as one thing that has rows."""
    return NamedTensors(values) if isinstance(values, dict) else values


def from_arrays(values: Decoded) -> Any:
    """Tensors on the memory of an array, or of arrays by name."""
    if isinstance(values, dict):
        return NamedTensors({name: torch.from_numpy(value) for name, value in values.items()})
    return torch.from_numpy(values)


def as_argument(rows: Any) -> Any:
    """What a model is called with: a tensor, or a dict of tensors."""
    return rows.tensors if isinstance(rows, NamedTensors) else rows


def mapped(change: Callable[[Tensor], Tensor], rows: Any) -> Any:
    """Every tensor changed."""
    return rows.map(change) if isinstance(rows, NamedTensors) else change(rows)


def shape_of(rows: Any) -> Any:
    """The sizes of a tensor, or of each by name, for messages."""
    return {n: tuple(t.shape) for n, t in rows.tensors.items()} if isinstance(rows, NamedTensors) else tuple(rows.shape)


def _as_wide(parts: list[Tensor]) -> list[Tensor]:
    """Parts [b, T] of several T, filled up with 0 to the longest; others as they are."""
    if any(part.ndim != 2 for part in parts) or len({part.shape[1] for part in parts}) == 1:
        return parts
    longest = max(part.shape[1] for part in parts)
    return [torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts]


def joined(parts: Sequence[Any]) -> Any:
    """The rows of all parts."""
    if isinstance(parts[0], NamedTensors):
        return NamedTensors({name: torch.cat(_as_wide([p.tensors[name] for p in parts])) for name in parts[0].tensors})
    return torch.cat(list(parts))

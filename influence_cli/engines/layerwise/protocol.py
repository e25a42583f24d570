"""What a rule for a module's row gradients offers, and the sums over rows that every rule is made of.

A batch has b rows.  A module is called on T positions a row, with input a (a tuple where it takes several) and output
gradient d; g_i is row i's gradient in the module's parameters.  Rows are the leading dimension of a and d, with k
entries a row where a model folds more (windows, tokens) into it.  Dot products and norms are summed in float64.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

Named = dict[str, Tensor]  # by the module's own parameter name
Pair = tuple[Any, Tensor]  # a and d of a call


class Rule(Protocol):
    """What a kind of module knows of its own parameters' row gradients, for b rows."""

    def dots(self, a: Any, d: Tensor, b: int, u: Named) -> Tensor:
        """<g_i, u> for every row, float64 [b]."""
        ...

    def dots_by_position(self, a: Any, d: Tensor, b: int, u: Named) -> Tensor:
        """The same sum position by position, float64 [b, T]."""
        ...

    def gradients(self, a: Any, d: Tensor, b: int, names: tuple[str, ...]) -> Named:
        """g_i by parameter name, [b, *shape]."""
        ...

    def norms(self, calls: list[Pair], b: int, names: tuple[str, ...]) -> Tensor | None:
        """|g_i|^2 over all calls, float64 [b], where that is cheaper than from ``gradients``; else None."""
        ...

    def weighted(self, a: Any, d: Tensor, c: Tensor, names: tuple[str, ...]) -> Named:
        """sum_i c_i g_i by parameter name, for c [b]."""
        ...


def total(values: Tensor) -> Tensor:
    """Sums of values [b, ...] over all but the first dimension, float64 [b]."""
    return values.flatten(1).sum(1, dtype=torch.float64)


def by_row(d: Tensor, c: Tensor) -> Tensor:
    """Gradients d [b k, ...] with row i's entries times c_i [b]."""
    return (d.unflatten(0, (len(c), -1)) * c.to(d.dtype).reshape(-1, *[1] * d.ndim)).flatten(0, 1)

"""Operations by how a derivative goes through them, and the walk over an operation's arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten

# Linear in all their tensors together: the derivative is the same operation on the tangents.
LINEAR = {
    getattr(getattr(aten, name), overload)
    for name, overloads in {
        "view": ("default",), "_unsafe_view": ("default",), "t": ("default",), "transpose": ("int",),
        "permute": ("default",), "expand": ("default",), "clone": ("default",), "unbind": ("int",),
        "select": ("int",), "slice": ("Tensor",), "unsqueeze": ("default",), "squeeze": ("default", "dim", "dims"),
        "mean": ("default", "dim"), "sum": ("default", "dim_IntList"), "neg": ("default",), "cat": ("default",),
        "stack": ("default",), "split": ("Tensor",), "split_with_sizes": ("default",), "unsafe_split": ("Tensor",),
        "avg_pool2d": ("default",), "_adaptive_avg_pool2d": ("default",),
        "flip": ("default",), "roll": ("default",), "alias": ("default",), "_to_copy": ("default",),
        "mul": ("Scalar",), "div": ("Scalar",), "pixel_shuffle": ("default",), "diagonal": ("default",),
        "upsample_bilinear2d": ("default",), "upsample_nearest2d": ("default",),
    }.items()
    for overload in overloads
    if overload in getattr(aten, name).overloads()
}  # fmt: skip
# What they give decides which way the model's code goes: no derivative is known there.
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
# A constant from here on.
CUTS = {aten.detach.default}


def map_each(change: Callable[[Any], Any], xs: Any) -> Any:
    """``change`` of every argument, in lists and tuples too (torch's own tree_map takes as long as an operation)."""
    if isinstance(xs, tuple | list):
        return [map_each(change, x) for x in xs] if isinstance(xs, list) else tuple(map_each(change, x) for x in xs)
    return change(xs)


def map_named(change: Callable[[Any], Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same of every named argument."""
    return {n: map_each(change, x) for n, x in kwargs.items()} if kwargs else kwargs

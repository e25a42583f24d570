"""Inputs by position and output gradients of a block, as many rows at a time as memory holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from torch import Tensor

from influence_cli.engines.layerwise.blocks import Block

POSITIONS = 1 << 25  # most values of inputs by position that are made at once


def positions(block: Block) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows, a~ [r, T, I], d [r, T, O]) of an affine block, some rows at a time."""
    assert block.layout.affine is not None
    wide = block.layout.size // block.layout.affine.shape[0]
    places = sum(call.d.numel() for _, call in block.calls) // max(1, block.b * block.layout.affine.shape[0])
    step = max(1, POSITIONS // max(1, places * wide))
    for first in range(0, block.b, step):
        some = slice(first, min(first + step, block.b))
        part = block
        if step < block.b:
            calls = tuple((site, call.rows(some)) for site, call in block.calls)
            part = dataclasses.replace(block, calls=calls, b=some.stop - some.start)
        found = part.homogeneous()
        assert found is not None
        yield some, *found

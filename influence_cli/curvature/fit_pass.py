"""Row gradients by layer over the fit rows: what methods that work layer by layer share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.curvature.dense import check_rows
from influence_cli.engines.layerwise.layers import Layers
from influence_cli.engines.layerwise.tape import Tape

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature


def layers_at(curvature: Curvature) -> Layers:
    """The blocks of what ``passes`` runs, the curvature's model or its head; planned on its first batch."""
    first = curvature.over(curvature.rows.take(np.arange(min(curvature.batch_size, len(curvature.rows)))), "fp64")
    _, x, _, _ = next(first.batches("layers"))
    x = x.to(curvature.dtype)
    head = curvature.head(x)
    return Layers(curvature.point, x) if head is None else Layers(head.point, head.inputs(x))


def passes(curvature: Curvature, layers: Layers, what: str) -> Iterator[tuple[NDArray[np.int64], Tape, Tensor, Tensor]]:
    """(rows, a forward pass, labels, weights) of every batch.

    Raises:
        ManifestError: a row's logits are not finite; names it.
    """
    for index, x, y, w in curvature.head_batches(what):
        tape = layers.forward(x)
        check_rows(curvature.rows, index, tape.logits)
        yield index, tape, y, w

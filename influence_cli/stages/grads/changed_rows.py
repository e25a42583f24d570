"""The inputs of changed twins of target rows, made as the rows' own are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from influence_cli.stages.run.run import Run, require_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from influence_cli.data.manifest import Payload
    from influence_cli.engines.direction import Inputs
    from influence_cli.engines.point import Point


def changed_inputs(run: Run, name: str, point: Point, payloads: dict[int, Payload]) -> Inputs:
    """From target rows to the model's inputs of their twins; a twin that does not fit the model names its row.

    Raises:
        ManifestError: (when called) a twin cannot be decoded.
    """
    from influence_cli.model.examples import move, to_input
    from influence_cli.model.named_tensors import from_arrays

    spec, _ = require_model(run)
    manifest, twins = run.target.manifest, run.changed[name].twins

    def inputs(rows: NDArray[np.int64]) -> Tensor:
        kind = spec.payload_kind
        made = [manifest.decoded(row, twins.get(row, payloads[row]), spec) for row in rows.tolist()]
        return to_input(move(from_arrays(kind.collate(made)), point.device), spec, point.dtype)

    return inputs

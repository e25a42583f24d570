"""Scores of all train rows for single target rows from stored row gradients: a matrix product in blocks.

A block of target rows is held, and the train rows' shards go by one at a time; of the scores of a block and a piece of
a shard only the most extreme stay.  Memory holds a block of gradients and one shard.  Sums are in float64.  Whole
gradients (``--rows full``, or ``last`` in the head's parameters) give the exact scores, and with u = P grad l_v in
place of the target rows' gradients those of any method with a P.  Sketches give estimates, whose standard error
follows from the rows' exact norms by layer (``Gradients.variance_bound``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.maths.top_k import NONE, TopK, inner_products
from influence_cli.methods.shapes.preconditioned import Preconditioned
from influence_cli.stages.grads.row_gradients import Gradients, open_gradients
from influence_cli.stages.run.job import Job, require_model
from influence_cli.stages.score.per_target.tangents import BadRows, Done, Solver

BLOCK_VALUES = 1 << 26  # most values of a block of target rows: 256 MiB in float32
BLOCK_ROWS = 1024  # most target rows of a block
PAIRS = 1 << 21  # most scores at once: 16 MiB


def product_block_size(dim: int) -> int:
    """Target rows a block, where a row has ``dim`` values."""
    return int(np.clip(BLOCK_VALUES // max(1, dim), 1, BLOCK_ROWS))


def product_pass(job: Job, name: str, gradients: Gradients, target: Rows, top: int, done: Done) -> None:
    """The ``top`` rows on each side for every target row; ``done`` is given each block as it is finished.

    Raises:
        ManifestError: the gradient of a target row is not finite.
    """
    size, train = product_block_size(gradients.dim), job.train
    solve = _solver(job, name, gradients)
    pairs = len(target) * len(train)
    with job.listener.progress("train rows for target rows", pairs, "pairs") as progress:
        for first in range(0, len(target), size):
            block = target.take(np.arange(first, min(first + size, len(target))))
            values = gradients.read(block.row_keys, ("value", "norms"))
            _check_finite(block, values["value"])
            along, norms = solve(values["value"]), values["norms"]
            found, bad = TopK(len(block), top), BadRows(len(block))
            step = max(1, PAIRS // len(block))
            for index, shard in gradients.blocks(train.row_keys, ("value",)):
                for some in np.array_split(np.arange(len(index)), -(-len(index) // step)):
                    with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are left out
                        scores = inner_products(along, shard["value"][some])
                    bad.add(index[some], scores)
                    found.add(0, index[some], scores)
                progress.advance(len(block) * len(index))
            more = {} if gradients.rows != "sketch" else {"errors": _errors(gradients, norms, train, found)}
            done(block, found, bad.found, more)


def open_rows(job: Job) -> Gradients:
    """The run's row gradients of train and target rows; what lacks is computed."""
    return open_gradients(job, job.spec.rows)


def _errors(gradients: Gradients, target_norms: NDArray[np.float64], train: Rows, found: TopK) -> NDArray[np.float64]:
    """The most that the standard error of every score found can be [t, 2, K]; NaN where there is none."""
    listed, place = np.unique(found.places[found.places != NONE], return_inverse=True)
    errors = np.full(found.places.shape, np.nan)
    if len(listed):
        norms = gradients.read(train.row_keys[listed], ("norms",))["norms"]
        rows = np.nonzero(found.places != NONE)[0]
        errors[found.places != NONE] = np.sqrt(gradients.variance_bound(target_norms[rows], norms[place]))
    return errors


def _check_finite(block: Rows, values: NDArray[np.floating]) -> None:
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        from influence_cli.engines.direction import not_finite

        raise not_finite(block, int(block.index[np.flatnonzero(~finite)[0]]))


def _solver(job: Job, name: str, gradients: Gradients) -> Any:
    """From target rows' gradients [t, p] to u = P g [t, p], in the order of the stored columns."""
    if not isinstance(job.methods[name], Preconditioned):
        return lambda values: values
    from influence_cli.engines.point import DTYPES
    from influence_cli.model.build import device_of, load_model

    spec, checkpoint = require_model(job)
    (member,) = job.method_members[name]
    model = load_model(spec, checkpoint, DTYPES["fp32" if job.spec.precision == "bf16" else job.spec.precision])
    solver = Solver(job, name, model, device_of(job.runtime.device))
    shapes = {n: tuple(shape) for layer in gradients.layout["layers"] for n, shape in layer["parameters"]}
    cuts = np.cumsum([math.prod(s) for s in shapes.values()])[:-1]

    def by_name(row: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
        return {n: part.reshape(s) for (n, s), part in zip(shapes.items(), np.split(row, cuts), strict=True)}

    def solve(values: NDArray[np.floating]) -> NDArray[np.floating]:
        found = solver.columns(member, [by_name(row) for row in values])
        return np.stack([np.concatenate([u[n].ravel() for n in shapes]) for u in found])

    return solve

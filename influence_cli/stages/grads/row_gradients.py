"""Rows' own gradients for methods that need rows: filled like everything in the store, and read a shard at a time.

A row of a training or target manifest has a value [p], whose inner products are those of row gradients (exactly, or on
average over seeds of the sketch), its loss, and the exact squared norm of its gradient in every layer [L].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import StoreError
from influence_cli.stages.run.gradient_plan import GIB, RowRequest, missing_rows, row_bytes, row_request
from influence_cli.stages.run.run import Member, Run
from influence_cli.stages.run.session import Session
from influence_cli.store import GradientFolder, Keys
from influence_cli.store.gradients import READ, LostRows
from influence_cli.store.shards import Arrays

ATTEMPTS = 3  # times that rows of damaged shards are computed again before the disk is blamed


def fill_gradients(run: Run, session: Session) -> tuple[Run, int]:
    """Compute and store what the run was asked to store; returns the run as ``fill`` does, and the rows computed."""
    if run.spec.rows is None:
        return run, 0
    opened = open_gradients(run, session, run.spec.rows)
    rows = len(opened.folder.stored)
    session.listener.note(
        f"row gradients ({run.spec.rows}): {opened.dim:,} values and {len(opened.layers)} norms for each of {rows:,} "
        f"rows, {rows * row_bytes(run, opened.dim) / GIB:.3g} GiB in {opened.folder.path}"
    )
    return opened.run, opened.computed


def open_gradients(
    run: Run, session: Session, rows: str | None = None, member: Member | None = None, target: bool = True
) -> StoredGradients:
    """Row gradients of the run's training rows, and of its target rows unless they are not wanted; fills what lacks.

    ``rows`` is full, last or sketch (the run's own, else sketch), ``member`` the checkpoint itself unless given.
    """
    request = row_request(run, session, rows, member)
    run, computed = _fill(run, session, request, target)
    folder = request.folder(run, session)
    layout = folder.layout
    if layout is None:
        raise StoreError("no row gradients are stored", where=str(folder.path), fix="run the same command again")
    return StoredGradients(run, session, request, folder, layout, target, computed)


def _fill(run: Run, session: Session, request: RowRequest, target: bool) -> tuple[Run, int]:
    work = missing_rows(run, session, request, target)
    if work.rows == 0:
        return run, 0
    from influence_cli.stages.grads.gradient_pass import gradient_pass

    return gradient_pass(run, session, work), work.rows


@dataclass(eq=False)
class StoredGradients:
    """Stored row gradients of one kind at one member."""

    run: Run  # less rows that turned out to be unusable
    session: Session
    request: RowRequest
    folder: GradientFolder
    layout: dict[str, Any]
    target: bool
    computed: int  # rows that were not stored when it was opened

    @property
    def rows(self) -> str:
        """What is stored: full, last or sketch."""
        return self.request.rows

    @property
    def dim(self) -> int:
        """Values a row."""
        return self.layout["dim"]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, which the columns of ``norms`` are of."""
        return tuple(layer["name"] for layer in self.layout["layers"])

    @property
    def whole(self) -> bool:
        """Whether values are gradients as they are: inner products are exact, and every layer has its own columns."""
        return all(layer["how"] == "whole" for layer in self.layout["layers"])

    @property
    def columns(self) -> list[tuple[int, int]]:
        """The first column of every layer's part of ``value`` and the one after its last; sketched layers share all."""
        return [(layer["first"], layer["first"] + layer["width"]) for layer in self.layout["layers"]]

    def variance_bound(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        """The most that the variance of <value, value'> can be over seeds, from ``norms`` a and b [..., L] of two rows.

            sum_l c_l a_l b_l + (2 / p) sum_{l != l'} a_l b_l'

        with c of every layer's sketch (``maths.sketch``); 0 where values are whole.
        """
        if self.whole:
            return np.zeros(np.broadcast_shapes(a.shape[:-1], b.shape[:-1]))
        own = np.array([layer["variance"] for layer in self.layout["layers"]])
        across = a.sum(axis=-1) * b.sum(axis=-1) - (a * b).sum(axis=-1)
        return (own * a * b).sum(axis=-1) + 2.0 / self.dim * across

    def blocks(self, keys: Keys, names: tuple[str, ...] = READ) -> Iterator[tuple[NDArray[np.int64], Arrays]]:
        """(positions in ``keys`` [n, 16], their ``value``, ``loss`` and ``norms``), never more than a shard at a time.

        Rows of a shard that turns out to be damaged are computed again, and come last.

        Raises:
            StoreError: they are damaged again and again.
        """
        left = np.arange(len(keys), dtype=np.int64)
        for _ in range(ATTEMPTS):
            try:
                for index, values in self.folder.blocks(keys[left], names):
                    yield left[index], values
                return
            except LostRows as lost:
                left = left[lost.index]
                self.run, _ = _fill(self.run, self.session, self.request, self.target)
                self.folder = self.request.folder(self.run, self.session)
        raise StoreError("rows are damaged as soon as they are written", where=str(self.folder.path), fix="check disk")

    def read(self, keys: Keys, names: tuple[str, ...] = READ) -> Arrays:
        """All of these rows in the order of their keys, in memory: for few of them."""
        found: Arrays = {}
        for index, values in self.blocks(keys, names):
            for name, array in values.items():
                if name not in found:
                    found[name] = np.empty((len(keys), *array.shape[1:]), array.dtype)
                found[name][index] = array
        return found

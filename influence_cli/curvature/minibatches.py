"""A fixed sample of fit rows, and curvature of random minibatches of them; both chosen by keys, never by position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from influence_cli.curvature.head import ROWS
from influence_cli.data.manifest import Rows
from influence_cli.errors import UsageError
from influence_cli.model.decoded import decoded_by_place, rows_at
from influence_cli.model.examples import batches, chunked, move, to_input

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature
    from influence_cli.curvature.dense import CurvatureKind

Floats = NDArray[np.float64]

HELD_BYTES = 1 << 31  # most bytes of fit rows that are held for random access


def order_by_keys(rows: Rows) -> NDArray[np.int64]:
    """Positions [n] of the rows by (row key, weight): rows that tie are the same to curvature."""
    keys, weights = rows.row_keys, rows.weights
    return np.array(sorted(range(len(rows)), key=lambda k: (keys[k].tobytes(), weights[k])), dtype=np.int64)


def sample_by_keys(rows: Rows, most: int | None) -> Rows:
    """The first ``most`` rows by key, in the order of the manifest; all of them where they are no more."""
    if most is None or most >= len(rows):
        return rows
    return rows.take(np.sort(order_by_keys(rows)[:most]))


class HeldRows:
    """The fit rows in the order of their keys, decoded once; inputs of the curvature's head where it has one."""

    def __init__(self, curvature: Curvature, fix: str | None = None) -> None:
        """Rows that take too much memory are in a temporary file, unless ``fix`` says what to do about them.

        Raises:
            UsageError: they take too much memory, and there is a fix.
        """
        self.curvature, self.fix = curvature, fix
        self.rows = len(curvature.rows)
        self._features = False  # whether what is held is the inputs of the curvature's head
        self._decoded = self._held()
        manifest, place = curvature.rows.manifest, curvature.rows.index[order_by_keys(curvature.rows)]
        self._labels = torch.from_numpy(manifest.labels[place])
        self._weights = torch.from_numpy(manifest.weights()[place]).to(curvature.dtype)

    def take(self, places: NDArray[np.int64]) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """(inputs of the curvature's point ``at``, labels, weights) of some rows."""
        c, chosen = self.curvature, torch.from_numpy(places)
        y, w = move(self._labels[chosen], c.device), move(self._weights[chosen], c.device)
        return self._inputs(self._decoded[chosen]), y, w

    def _inputs(self, held: Any) -> Any:
        """What the curvature's point takes, of some rows that are held."""
        c, there = self.curvature, move(held, self.curvature.device)
        if self._features:
            return there
        x = to_input(there, c.spec, c.input_dtype)
        head = c.head(x)
        return x if head is None else head.inputs(x)

    def _held(self) -> Any:
        """The rows [N, ...] by key."""
        c, rows = self.curvature, self.curvature.rows
        place = {int(row): k for k, row in enumerate(rows.index[order_by_keys(rows)])}
        ragged = c.spec.payload_kind.ragged
        return rows_at(decoded_by_place(self._rows(), place, HELD_BYTES, ragged), slice(None))

    def _rows(self) -> Iterator[tuple[NDArray[np.int64], Any]]:
        """Every row once: inputs of the curvature's head where it has kept them or they are small, else as decoded."""
        c = self.curvature
        if c.kept_inputs is not None:
            yield from c.kept_inputs
            self._features = True
            return
        chunks, features = chunked(c.rows.manifest.payloads(c.rows.index), c.batch_size), None
        for index, decoded in batches(c.rows.manifest, chunks, c.spec, c.workers):
            if features is None:
                one = self._inputs(decoded[:ROWS])[0]
                features = c.found_head is not None and one.nbytes * self.rows <= HELD_BYTES
                self._check_memory(decoded[0].nbytes if not features else 0)
            yield index, self._inputs(decoded) if features else decoded
        self._features = bool(features)

    def _check_memory(self, one: int) -> None:
        """Refuse rows of so many bytes each."""
        if one * self.rows > HELD_BYTES and self.fix is not None:
            raise UsageError(
                f"minibatches need their rows in memory: {self.rows:,} decoded fit rows take "
                f"{one * self.rows / 1e9:.3g} GB",
                fix=self.fix.format(rows=HELD_BYTES // one),
            )


class Minibatches(HeldRows):
    """Products with unbiased estimates of a curvature: (N / b) (1/n) sum over b of the N rows of w_i times theirs."""

    def __init__(self, curvature: Curvature, kind: CurvatureKind, size: int, seed: int) -> None:
        """Every row is decoded once and held.

        Raises:
            UsageError: they take too much memory.
        """
        super().__init__(curvature, "--set lissa.fit_sample={rows}, or a smaller --input-size, or cg")
        self.kind: CurvatureKind = kind
        self.seed = seed
        self.size = min(size, self.rows)
        self.per_epoch = self.rows // self.size
        self._epoch: tuple[int, int] | None = None
        self._permuted = np.arange(self.rows)

    def product(self, run: int, step: int, columns: Floats, shift: float = 0.0) -> Floats:
        """The step's estimate plus ``shift`` times every column of [d, k]; one epoch's minibatches share no row.

        ``run`` is which of several independent sequences of minibatches.
        """
        epoch, position = divmod(step, self.per_epoch)
        if self._epoch != (run, epoch) and self.size < self.rows:
            self._permuted = np.random.default_rng([self.seed, run, epoch]).permutation(self.rows)
            self._epoch = (run, epoch)
        x, y, w = self.take(self._permuted[position * self.size : (position + 1) * self.size])
        c = self.curvature
        total = c.zeros(columns.shape[1])
        c.add_product(self.kind, x, y, w, c.directions(columns), total)
        total *= self.rows / (self.size * c.weight)
        if shift:
            for row, column in zip(total, columns.T, strict=True):
                row.add_(torch.from_numpy(np.ascontiguousarray(column)).to(row.device), alpha=shift)
        return total.cpu().numpy().T

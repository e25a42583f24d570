"""Pass V: the direction q = grad Phi at a member, with a measure of its own noise.

Phi is a mean of row terms, so q is a sum of batch gradients over m, accumulated in float64 and never averaged
per batch.  Target rows are visited in 16 buckets of their payload key, whatever the order of the manifest and
the batch size; sums over buckets give the signal-to-noise ratio, and sums over odd and even buckets two halves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.data.manifest import Payload, Rows
from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.errors import ManifestError
from influence_cli.events import Progress
from influence_cli.maths.noise import signal_to_noise
from influence_cli.model.decoded import DecodedByKey
from influence_cli.model.examples import batches, chunked, move, to_input
from influence_cli.model.losses import RowLoss, loss_of
from influence_cli.model.parameters import pulled
from influence_cli.model.spec import ModelSpec

BUCKETS = 16
Direction = dict[str, NDArray[Any]]
Attacked = Callable[[NDArray[np.int64]], Tensor]  # manifest rows to their inputs


class RowObjective(Protocol):
    """An objective that is a mean of terms, one a target row."""

    def rows(self, logits: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
        """Terms [m] from logits [m, C], labels [m] and the run's row loss."""
        ...


@dataclass
class Measured:
    """q and the mean of each half of the target rows (None where one is empty), with what is known of its noise."""

    q: Direction
    half: Direction | None  # the mean over even buckets
    meta: dict[str, Any]  # phi, accuracy, m, m_half, snr, norm


@dataclass
class _Sums:
    """Running float64 sums of one objective: rows of even and of odd buckets, and the bucket at hand.

    A bucket of a single batch is what the backward pass gave, read once: with as many parameters as models have, each
    further copy of them takes as long as the pass over several rows.
    """

    halves: tuple[list[Tensor], list[Tensor]]
    norms: NDArray[np.float64]  # [BUCKETS], |sum of the bucket's gradients|^2
    bucket: list[Tensor] | None = None
    number: int = 0  # of the bucket at hand
    value: float = 0.0
    hits: int = 0
    clean_hits: int = 0  # of the rows as they are, where the objective is measured on attacked ones

    @staticmethod
    def zero(point: Point) -> _Sums:
        """Nothing added yet."""
        even, odd = (
            [torch.zeros(p.shape, dtype=torch.float64, device=p.device) for p in point.selected.values()]
            for _ in range(2)
        )
        return _Sums((even, odd), np.zeros(BUCKETS))

    def add(self, gradients: Sequence[Tensor]) -> None:
        """One more batch of the bucket at hand."""
        if self.bucket is None:
            self.bucket = list(gradients)
        else:
            self.bucket = [sum_.double() + g for sum_, g in zip(self.bucket, gradients, strict=True)]

    def finite(self) -> bool:
        """Whether the sums are finite."""
        return all(bool(torch.isfinite(g).all()) for half in self.halves for g in half)

    def enter_bucket(self, b: int) -> None:
        """What is added from now on is of bucket b; nothing more comes of the one before, if that is another."""
        if b != self.number:
            self.close_bucket()
            self.number = b

    def close_bucket(self) -> None:
        """Nothing more comes of the bucket at hand."""
        for sum_, g in zip(self.halves[self.number % 2], self.bucket or (), strict=False):
            exact = g.double()
            flat = exact.flatten()
            self.norms[self.number] += float(flat @ flat)
            sum_ += exact
        self.bucket = None


def bucket_of(keys: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Bucket 0..15 of each payload key [m, 16]: a property of the row, not of its place."""
    return keys[:, 0].astype(np.int64) % BUCKETS


def measure_directions(
    point: Point,
    spec: ModelSpec,
    target: Rows,
    payloads: dict[int, Payload],
    objectives: dict[str, RowObjective],
    batch_size: int,
    workers: int,
    progress: Progress,
    attacked: dict[str, Attacked] | None = None,
    held: DecodedByKey | None = None,
) -> dict[str, Measured]:
    """One pass over the target rows, whose ``payloads`` are held by row, for all objectives at one member.

    ``attacked`` gives, for objectives that are measured on other inputs than what the rows decode to, those inputs;
    payloads in ``held`` are not decoded again.

    Raises:
        ManifestError: the objective of a row is not finite.
    """
    attacked = attacked or {}
    sums = {name: _Sums.zero(point) for name in objectives}
    bucket = dict(zip(target.index.tolist(), bucket_of(target.payload_keys).tolist(), strict=True))
    by_bucket: list[list[tuple[int, Payload]]] = [[] for _ in range(BUCKETS)]
    for row, b in bucket.items():
        by_bucket[b].append((row, payloads[row]))
    chunks = (chunk for rows in by_bucket for chunk in chunked(rows, batch_size))
    labels = torch.from_numpy(target.manifest.labels)
    selected = {n: p.detach().requires_grad_() for n, p in point.selected.items()}
    plain = {name: o for name, o in objectives.items() if name not in attacked}
    loss = loss_of(spec.task)
    for index, decoded in batches(target.manifest, chunks, spec, workers, held=held):
        for s in sums.values():
            s.enter_bucket(bucket[int(index[0])])
        x = to_input(move(decoded, point.device), spec, point.dtype)
        y = move(labels[torch.from_numpy(index)], point.device)
        bad = _add_gradients(point, selected, x, y, plain, sums, loss)
        for name, inputs in attacked.items():
            moved = inputs(index).to(point.device, point.dtype)
            also = _add_gradients(point, selected, moved, y, {name: objectives[name]}, sums, loss)
            bad = also if bad is None else bad
            sums[name].clean_hits += _hits(point, x, y)
        if bad is not None:
            raise not_finite(target, int(index[bad]))
        progress.advance(len(index))
    sizes, measured = np.array([len(rows) for rows in by_bucket]), dict[str, Measured]()
    for name, s in sums.items():
        s.close_bucket()
        if not s.finite():
            value = functools.partial(objectives[name].rows, loss=loss)
            raise without_gradient(point, spec, target, payloads, value, attacked.get(name))
        measured[name] = _measured(point, s, sizes)
        if name in attacked:
            meta = measured[name].meta
            meta["attacked_accuracy"], meta["accuracy"] = meta["accuracy"], s.clean_hits / meta["m"]
    return measured


def _hits(point: Point, x: Tensor, y: Tensor) -> int:
    """How many rows are predicted right."""
    return int((point.outputs(x, [])[0].argmax(1) == y).sum())


def _add_gradients(
    point: Point,
    selected: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    objectives: dict[str, RowObjective],
    sums: dict[str, _Sums],
    loss: RowLoss,
) -> int | None:
    """Add one batch's summed gradient of every objective to its open bucket; the first row that is not finite."""
    if not objectives:
        return None
    with torch.enable_grad(), differentiable_kernels(point.recurrent):
        logits = point.logits(x, selected)
        for position, (name, objective) in enumerate(objectives.items()):
            values = objective.rows(logits, y, loss)
            if not torch.isfinite(values).all():
                return int((~torch.isfinite(values)).nonzero()[0])
            value = values.sum()
            keep = position + 1 < len(objectives)
            gradients = pulled([value], list(selected.values()), [None], keep)
            sums[name].value += float(value.detach().double())
            sums[name].hits += int((logits.argmax(1) == y).sum())
            sums[name].add(gradients)
    return None


def not_finite(target: Rows, row: int) -> ManifestError:
    """What is wrong where a target row's objective is not finite."""
    manifest = target.manifest
    return ManifestError(
        "the objective of a target row is not finite",
        where=f"{manifest.source}, row id={manifest.ids[row]}, column {manifest.payload_kind.column}",
        fix="repair the row or take it out; where every row is so, the checkpoint is at fault",
    )


def without_gradient(
    point: Point,
    spec: ModelSpec,
    target: Rows,
    payloads: dict[int, Payload],
    value: Callable[[Tensor, Tensor], Tensor],
    attacked: Attacked | None = None,
) -> ManifestError:
    """What is wrong where the sum of target rows' gradients is not finite: names the first row whose own is not."""
    manifest, where = target.manifest, target.manifest.source
    selected = {n: p.detach().requires_grad_() for n, p in point.selected.items()}
    for index, decoded in batches(manifest, ([(row, payloads[row])] for row in target.index.tolist()), spec):
        x = to_input(move(decoded, point.device), spec, point.dtype) if attacked is None else attacked(index)
        y = torch.from_numpy(manifest.labels[index]).to(point.device)
        with torch.enable_grad(), differentiable_kernels(point.recurrent):
            z = point.logits(x.to(point.device, point.dtype), selected)
            gradients = pulled([value(z, y).sum()], list(selected.values()), [None])
        if not all(bool(torch.isfinite(g).all()) for g in gradients):
            where = f"{manifest.source}, row id={manifest.ids[int(index[0])]}, column {manifest.payload_kind.column}"
            break
    return ManifestError(
        "the gradient of a target row's objective is not finite",
        where=where,
        fix="repair the row or take it out; where many are so, the model has no derivative there",
    )


def _measured(point: Point, sums: _Sums, sizes: NDArray[np.int64]) -> Measured:
    m, m_even = int(sizes.sum()), int(sizes[::2].sum())
    even, odd = sums.halves
    total = [a + b for a, b in zip(even, odd, strict=True)]
    norm2 = sum(float(g.flatten() @ g.flatten()) for g in total)
    meta = {
        "phi": sums.value / m,
        "accuracy": sums.hits / m,
        "m": m,
        "m_half": m_even,
        "snr": signal_to_noise(norm2, sums.norms, sizes),
        "norm": norm2**0.5 / m,
    }

    def mean(total: list[Tensor], count: int) -> Direction:
        return {n: (g / count).to(point.dtype).cpu().numpy() for n, g in zip(point.selected, total, strict=True)}

    half = mean(even, m_even) if 0 < m_even < m else None
    return Measured(mean(total, m), half, meta)

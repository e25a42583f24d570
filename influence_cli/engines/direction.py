"""Pass V: the direction q = grad Phi at a member, with a measure of its own noise.

Phi is a mean of row terms, so q is a sum of batch gradients over m, accumulated in float64 and never averaged
per batch.  Target rows are visited in 16 buckets of their payload key, whatever the order of the manifest and
the batch size; sums over buckets give the signal-to-noise ratio, and sums over odd and even buckets two halves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.data.manifest import Payload, Rows
from influence_cli.engines.buckets import BUCKETS, BucketSums, bucket_of
from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.errors import ManifestError
from influence_cli.events import Progress
from influence_cli.maths.noise import signal_to_noise
from influence_cli.model.decoded import DecodedByKey
from influence_cli.model.examples import alike, batches, chunked, move, to_input
from influence_cli.model.losses import RowLoss, loss_of
from influence_cli.model.parameters import pulled
from influence_cli.model.spec import ModelSpec
from influence_cli.processes.group import Group

Direction = dict[str, NDArray[Any]]
Inputs = Callable[[NDArray[np.int64]], Tensor]  # manifest rows to other inputs than what they decode to
Attacked = Inputs


class RowObjective(Protocol):
    """An objective that is a mean of terms, one a target row."""

    def rows(self, logits: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
        """Terms [m] from logits [m, C], labels [m] and the run's row loss."""
        ...


class PartAlone(Protocol):
    """The module behind whose inputs all selected parameters lie (``curvature.head.Head``)."""

    point: Point

    def inputs(self, x: Tensor) -> Tensor:
        """What the module is given for inputs [b, ...] of the model."""
        ...


class PairObjective(Protocol):
    """An objective that is a mean of terms, one a target row with its changed twin."""

    def pairs(self, logits: Tensor, changed: Tensor) -> Tensor:
        """Terms [m] from logits of rows and of their twins, both [m, C]."""
        ...


@dataclass(frozen=True)
class Paired:
    """An objective of pairs with the twins' inputs, which are those of the rows where nothing changes."""

    objective: PairObjective
    inputs: Inputs


@dataclass
class Measured:
    """q and the mean of each half of the target rows (None where one is empty), with what is known of its noise."""

    q: Direction
    half: Direction | None  # the mean over even buckets
    meta: dict[str, Any]  # phi, accuracy, m, m_half, snr, norm


@dataclass(eq=False)
class TargetPass:
    """Passes over the target rows, whose ``payloads`` are held by row, at one member."""

    point: Point
    spec: ModelSpec
    target: Rows
    payloads: dict[int, Payload]
    batch_size: int
    workers: int
    progress: Progress
    held: DecodedByKey | None = None  # payloads in it are not decoded again
    head: PartAlone | None = None  # what lies before it is run on whole batches, whatever buckets their rows are of

    @functools.cached_property
    def own(self) -> dict[str, Tensor]:
        """The selected parameters, to take gradients in."""
        return self.point.leaves()

    @functools.cached_property
    def loss(self) -> RowLoss:
        """The run's row loss."""
        return loss_of(self.spec)

    def batches(self, rows: Iterable[list[int]]) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
        """(rows, inputs, labels) of lists of rows, a batch at a time."""
        labels = torch.from_numpy(self.target.manifest.labels)
        kind, size = self.target.manifest.payload_kind, self.batch_size
        held = (alike(((k, self.payloads[k]) for k in some), kind, size) for some in rows)
        chunks = (chunk for some in held for chunk in chunked(some, size))
        for index, decoded in batches(self.target.manifest, chunks, self.spec, self.workers, held=self.held):
            yield index, self.inputs(decoded), move(labels[torch.from_numpy(index)], self.point.device)
            self.progress.advance(len(index))

    def bucket_batches(
        self, buckets: list[list[int]], of: dict[int, int]
    ) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
        """(rows, inputs, labels) of parts of one bucket each, of which ``of`` is by row; inputs of the head, if any."""
        if self.head is None:
            yield from self.batches(buckets)
            return
        for index, x, y in self.batches([[row for rows in buckets for row in rows]]):
            h = self.head.inputs(x)
            cuts = np.flatnonzero(np.diff([of[row] for row in index.tolist()])) + 1
            for some in np.split(np.arange(len(index)), cuts):
                part = slice(int(some[0]), int(some[-1]) + 1)
                yield index[part], h[part], y[part]

    def inputs(self, decoded: Any) -> Tensor:
        """The model's inputs of decoded rows."""
        return to_input(move(decoded, self.point.device), self.spec, self.point.dtype)

    def hits(self, z: Tensor, y: Tensor) -> float:
        """How many rows are predicted as they are labelled; NaN where labels are no classes."""
        found = self.loss.hits(z.detach().cpu().numpy(), y.cpu().numpy())
        return float("nan") if found is None else float(found.sum())

    def gradients(self, value: Tensor, keep: bool = False) -> list[Tensor]:
        """The gradient of a scalar; with ``keep`` another follows from the same forward pass."""
        return pulled([value], list(self.own.values()), [None], keep)

    def zeros(self) -> list[Tensor]:
        """Sums of gradients to begin with, in float64."""
        return [torch.zeros(p.shape, dtype=torch.float64, device=p.device) for p in self.own.values()]

    def mean(self, total: list[Tensor], count: int = 1) -> Direction:
        """Sums over a count, by parameter name."""
        return {n: (g / count).to(self.point.dtype).cpu().numpy() for n, g in zip(self.own, total, strict=True)}

    def without_gradient(
        self, value: Callable[[Tensor, Tensor], Tensor], attacked: Attacked | None = None
    ) -> ManifestError:
        """What is wrong where the sum of rows' gradients is not finite: names the first row whose own is not."""
        manifest = self.target.manifest
        where = str(manifest.source)
        for index, decoded in batches(
            manifest, ([(k, self.payloads[k])] for k in self.target.index.tolist()), self.spec
        ):
            x = self.inputs(decoded) if attacked is None else attacked(index).to(self.point.device, self.point.dtype)
            y = torch.from_numpy(manifest.labels[index]).to(self.point.device)
            with torch.enable_grad(), differentiable_kernels(self.point.recurrent):
                z = self.point.logits(x, self.own)
                gradients = self.gradients(value(z, y).sum())
            if not all(bool(torch.isfinite(g).all()) for g in gradients):
                where = _place(self.target, int(index[0]))
                break
        return not_finite_slope(where)


def measure_directions(
    run: TargetPass,
    objectives: dict[str, RowObjective],
    attacked: dict[str, Attacked],
    paired: dict[str, Paired] | None = None,
    shared: Group | None = None,
) -> dict[str, Measured]:
    """One pass over the target rows for all objectives.

    Of several processes (``shared``) each has some of the buckets, and all of them the sums.

    ``attacked`` gives, for objectives that are measured on other inputs than what the rows decode to, those inputs;
    ``paired`` are the objectives of rows and their changed twins.

    Raises:
        ManifestError: the objective of a row is not finite.
    """
    paired = paired or {}
    sums = {name: BucketSums((run.zeros(), run.zeros())) for name in (*objectives, *paired)}
    bucket = dict(zip(run.target.index.tolist(), bucket_of(run.target.payload_keys).tolist(), strict=True))
    by_bucket: list[list[int]] = [[] for _ in range(BUCKETS)]
    for row, b in bucket.items():
        by_bucket[b].append(row)
    plain = {name: o for name, o in objectives.items() if name not in attacked}
    own = by_bucket if shared is None else by_bucket[shared.rank :: shared.size]
    if attacked or paired or run.spec.payload_kind.ragged:  # whose rows do not come bucket by bucket, or are others
        run = replace(run, head=None)
    at = run if run.head is None else replace(run, point=run.head.point)
    for index, x, y in run.bucket_batches(own, bucket):
        for s in sums.values():
            s.enter_bucket(bucket[int(index[0])])
        bad = _add_gradients(at, x, y, plain, sums)
        for name, inputs in attacked.items():
            moved = inputs(index).to(run.point.device, run.point.dtype)
            also = _add_gradients(run, moved, y, {name: objectives[name]}, sums)
            bad = also if bad is None else bad
            sums[name].clean_hits += run.hits(run.point.outputs(x, [])[0], y)
        for name, pair in paired.items():
            also = _add_pairs(run, x, y, pair.inputs(index), pair, sums[name])
            bad = also if bad is None else bad
        if bad is not None:
            raise not_finite(run.target, int(index[bad]))
    sizes, measured = np.array([len(rows) for rows in by_bucket]), dict[str, Measured]()
    for name, s in sums.items():
        s.close_bucket()
        if shared is not None:
            s.add_up(shared, run.point.device)
        if not all(bool(torch.isfinite(g).all()) for half in s.halves for g in half):
            if name in paired:
                raise not_finite_slope(str(run.target.manifest.source))
            value = functools.partial(objectives[name].rows, loss=run.loss)
            raise run.without_gradient(value, attacked.get(name))
        measured[name] = _measured(run, s, sizes)
        if name in attacked:
            meta = measured[name].meta
            meta["attacked_accuracy"], meta["accuracy"] = meta["accuracy"], share_of(s.clean_hits, meta["m"])
        if name in paired:
            measured[name].meta["flips"] = s.flips
    return measured


def _add_gradients(
    run: TargetPass, x: Tensor, y: Tensor, objectives: dict[str, RowObjective], sums: dict[str, BucketSums]
) -> int | None:
    """Add one batch's summed gradient of every objective to its open bucket; the first row that is not finite."""
    if not objectives:
        return None
    with torch.enable_grad(), differentiable_kernels(run.point.recurrent):
        logits = run.point.logits(x, run.own)
        for position, (name, objective) in enumerate(objectives.items()):
            values = objective.rows(logits, y, run.loss)
            if not torch.isfinite(values).all():
                return int((~torch.isfinite(values)).nonzero()[0])
            value = values.sum()
            gradients = run.gradients(value, keep=position + 1 < len(objectives))
            sums[name].value += float(value.detach().double())
            sums[name].hits += run.hits(logits, y)
            sums[name].add(gradients)
    return None


def _add_pairs(run: TargetPass, x: Tensor, y: Tensor, changed: Tensor, pair: Paired, sums: BucketSums) -> int | None:
    """Add the summed gradient of one batch's terms to the open bucket; the first row whose term is not finite."""
    with torch.enable_grad(), differentiable_kernels(run.point.recurrent):
        logits, others = run.point.logits(x, run.own), run.point.logits(changed, run.own)
        values = pair.objective.pairs(logits, others)
        if not torch.isfinite(values).all():
            return int((~torch.isfinite(values)).nonzero()[0])
        value = values.sum()
        sums.value += float(value.detach().double())
        sums.hits += run.hits(logits, y)
        sums.flips += int((logits.argmax(1) != others.argmax(1)).sum())
        sums.add(run.gradients(value))
    return None


def not_finite_slope(where: str) -> ManifestError:
    """What is wrong where the gradient of a target row's objective is not finite."""
    return ManifestError(
        "the gradient of a target row's objective is not finite",
        where=where,
        fix="repair the row or take it out; where many are so, the model has no derivative there",
    )


def not_finite(target: Rows, row: int) -> ManifestError:
    """What is wrong where a target row's objective is not finite."""
    return ManifestError(
        "the objective of a target row is not finite",
        where=_place(target, row),
        fix="repair the row or take it out; where every row is so, the checkpoint is at fault",
    )


def _place(target: Rows, row: int) -> str:
    manifest = target.manifest
    return f"{manifest.source}, row id={manifest.ids[row]}, column {manifest.payload_kind.column}"


def share_of(hits: float, rows: int) -> float | None:
    """An accuracy; None where there is none."""
    return None if np.isnan(hits) else hits / rows


def _measured(run: TargetPass, sums: BucketSums, sizes: NDArray[np.int64]) -> Measured:
    m, m_even = int(sizes.sum()), int(sizes[::2].sum())
    even, odd = sums.halves
    total = [a + b for a, b in zip(even, odd, strict=True)]
    norm2 = sum(float(g.flatten() @ g.flatten()) for g in total)
    meta = {
        "phi": sums.value / m,
        "accuracy": share_of(sums.hits, m),
        "m": m,
        "m_half": m_even,
        "snr": signal_to_noise(norm2, sums.norms, sizes),
        "norm": norm2**0.5 / m,
    }
    half = run.mean(even, m_even) if 0 < m_even < m else None
    return Measured(run.mean(total, m), half, meta)

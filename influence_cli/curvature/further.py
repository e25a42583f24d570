"""The training objective's data term and the losses of rows at parameters near a curvature's point.

    L(w) = (1/n) sum_i w_i l_i(w),   n = sum_i w_i,   over the fit rows; unused parameters stay where they are

Parameters are one flat vector in the order of the curvature's layout.  Where all of them lie in the head of a model,
what comes before it is run once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.curvature.curvature import Curvature
from influence_cli.curvature.minibatches import HELD_BYTES, HeldRows
from influence_cli.data.manifest import Rows
from influence_cli.engines.engine import Engine
from influence_cli.maths.hashed_draws import stream_key
from influence_cli.model.decoded import IN_MEMORY_BYTES, DecodedByKey
from influence_cli.model.examples import alike, batches, chunked, move, to_input
from influence_cli.model.parameters import named_views, pulled

Floats = NDArray[np.float64]
Inputs = Callable[[NDArray[np.int64]], Any]  # manifest rows to a model's inputs other than what they decode to
ITERATIONS = 20  # of power iterations


class FitLoss:
    """L and its gradient over all fit rows, or estimated on some of them; the caller has chosen the kernels."""

    def __init__(self, curvature: Curvature) -> None:
        """The rows are decoded once and held."""
        self.curvature = curvature
        self.held = HeldRows(curvature)
        self.rows = self.held.rows
        self._whole: list[tuple[Any, Tensor, Tensor]] | None = None  # every row as the model takes it, where small

    def start(self) -> Tensor:
        """The parameters [d] at the point itself."""
        parts = self.curvature.point.selected
        return torch.cat([parts[n].reshape(-1) for n in self.curvature.layout]).detach().clone()

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Every selected parameter by name, of a vector [d]; unused ones as they are at the point."""
        return {**self.curvature.point.selected, **named_views(flat, self.curvature.layout)}

    def at(self, flat: Tensor, places: NDArray[np.int64] | None = None) -> tuple[float, Tensor]:
        """The loss at a vector [d] and its gradient [d], from the rows at some places by key, or from all."""
        scale = self.rows / ((self.rows if places is None else len(places)) * self.curvature.weight)
        value, gradient = 0.0, torch.zeros_like(flat)
        for x, y, w in self._every() if places is None else self._some(places):
            with torch.enable_grad():
                leaf = flat.detach().requires_grad_()
                z = self.curvature.at.logits(x, self.named(leaf))
                total = (w * self.curvature.loss.rows(z, y)).sum()
                (part,) = pulled([total], [leaf], [None])
            value += float(total.detach()) * scale
            gradient += part * scale
        return value, gradient

    def _some(self, places: NDArray[np.int64]) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """(inputs, labels, weights) of the rows at some places, a batch at a time."""
        for first in range(0, len(places), self.curvature.batch_size):
            yield self.held.take(places[first : first + self.curvature.batch_size])

    def _every(self) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """The same of all rows; they are kept where they are few enough."""
        if self._whole is not None:
            yield from self._whole
            return
        kept, size = list[tuple[Any, Tensor, Tensor]](), 0
        for batch in self._some(np.arange(self.rows)):
            size += batch[0].nbytes
            kept += [batch] if size <= IN_MEMORY_BYTES else []
            yield batch
        self._whole = kept if size <= IN_MEMORY_BYTES else None

    def losses_at(self, flat: Tensor, places: NDArray[np.int64]) -> Floats:
        """Losses [b] of the rows at some places by key."""
        with torch.no_grad():
            x, y, _ = self.held.take(places)
            return self.curvature.loss.rows(self.curvature.at.logits(x, self.named(flat)), y).double().cpu().numpy()

    def largest_noise(self, most: int) -> float:
        """lambda_max of the covariance of rows' gradients w_i g_i at the point, by power iterations on at most so many.

        C v = (1/N) sum_i (N w_i / n)^2 g_i <g_i, v> - grad L <grad L, v>
        """
        places, start = np.arange(min(self.rows, most)), self.start()
        engine, layout = Engine(self.curvature.at), self.curvature.layout
        mean = self.at(start, places)[1].double()
        v = torch.from_numpy(np.random.default_rng(stream_key(b"noise", "start")).standard_normal(len(start))).to(mean)
        largest, zeros = 0.0, {n: torch.zeros_like(p) for n, p in self.curvature.point.selected.items()}
        for _ in range(ITERATIONS):
            v = v / v.norm().clamp(min=torch.finfo(torch.float64).tiny)
            image = -mean * (mean @ v)
            direction = named_views(v.to(start.dtype), layout)
            for x, y, w in self._some(places):
                z, (t,) = engine.outputs(x, [{**zeros, **direction}])
                slopes = self.curvature.loss.slopes(z, y)
                times = (w.double() * self.rows / self.curvature.weight) ** 2 * (slopes * t.double()).sum(1)
                image += self._pulled(start, x, times[:, None] * slopes) / len(places)
            largest = float(image.norm())
            v = image
        return largest

    def _pulled(self, flat: Tensor, x: Any, cotangents: Tensor) -> Tensor:
        """J^T c summed over a batch [d], in float64."""
        with torch.enable_grad():
            leaf = flat.detach().requires_grad_()
            z = self.curvature.at.logits(x, self.named(leaf))
            return pulled([z], [leaf], [cotangents.to(z.dtype)])[0].double()


class RepeatedRows:
    """(rows, inputs of the curvature's point ``at``, labels) of every batch of some rows, again and again.

    What fits into memory is kept as the model takes it.
    """

    def __init__(
        self, curvature: Curvature, rows: Rows, instead: Inputs | None = None, held: DecodedByKey | None = None
    ) -> None:
        """The rows may be of another manifest; ``instead`` gives other inputs than what they decode to."""
        self.curvature, self.rows, self.instead, self.held = curvature, rows, instead, held
        self._kept: list[tuple[NDArray[np.int64], Any, Tensor]] | None = None

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], Any, Tensor]]:
        if self._kept is not None:
            yield from self._kept
            return
        c, manifest = self.curvature, self.rows.manifest
        payloads = alike(manifest.payloads(self.rows.index), manifest.payload_kind, c.batch_size)
        labels, kept, size = torch.from_numpy(manifest.labels), list[tuple[NDArray[np.int64], Any, Tensor]](), 0
        for index, decoded in batches(manifest, chunked(payloads, c.batch_size), c.spec, c.workers, held=self.held):
            x = to_input(move(decoded, c.device), c.spec, c.dtype) if self.instead is None else self.instead(index)
            head = c.head(x)
            x = x if head is None else head.inputs(x)
            y = move(labels[torch.from_numpy(index)], c.device)
            size += x.nbytes
            if size <= HELD_BYTES:
                kept.append((index, x, y))
            yield index, x, y
        self._kept = kept if size <= HELD_BYTES else None

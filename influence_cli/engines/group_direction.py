"""Pass V for objectives about groups: Phi is a function of sums over cells of target rows, not a mean of row terms.

Two passes, so that memory does not grow with the number of groups.  A forward pass gives every row's values h_v, and
with them the sums S_k over cells k (group, label) and the slope of Phi in each, a_k = dPhi/dS_k.  The gradient is then
that of one weighted sum,

    q = grad sum_v <a_k(v), h_v>

one backward pass a batch.  (Sums of gradients by cell in one pass would hold a vector of all parameters a cell.)

What is known of its noise.  The a_k are taken as they are, and rows are drawn anew within their cell (of a group, or
of a group and a label where the objective looks at labels), whose size stays; with r_v = grad <a_k, h_v> and V_k the
variance of r_v in cell k, of m_k rows, the signal-to-noise ratio is |q|^2 / sum_k m_k V_k.  Rows of a cell are dealt to
buckets in order of their key; the half direction has every second row of each cell, weighted as the cell is in q.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.engines.buckets import BUCKETS
from influence_cli.engines.direction import Measured, TargetPass, not_finite
from influence_cli.engines.point import differentiable_kernels
from influence_cli.processes.group import Group
from influence_cli.store.shards import key_order

Floats = NDArray[np.float64]


class GroupObjective(Protocol):
    """An objective that is a function of sums of row values over cells (group, label)."""

    by_label: bool

    def values(self, logits: Tensor, labels: Tensor, loss: Any) -> Tensor:
        """What is summed of every row [m, V]."""
        ...

    def phi(self, sums: Floats, counts: Floats) -> tuple[float, Floats]:
        """Phi of the sums [G, C, V] over cells of ``counts`` [G, C] rows, and its slope in them."""
        ...


@dataclass(frozen=True, eq=False)
class Grouped:
    """An objective with the group [m] of every target row; -1 where a row has none, and is in no cell."""

    objective: GroupObjective
    groups: NDArray[np.int64]


def directions_of_groups(
    run: TargetPass,
    objectives: dict[str, Grouped],
    values: dict[str, Floats],
    accuracy: float,
    shared: Group | None = None,
) -> dict[str, Measured]:
    """q, Phi and noise of every objective from the row values [m, V] that it is made of.

    Of several processes (``shared``) each has some of the buckets of every cell, and all of them the sums.
    """
    return {name: _direction(run, grouped, values[name], accuracy, shared) for name, grouped in objectives.items()}


def values_of_groups(
    run: TargetPass, objectives: dict[str, Grouped], shared: Group | None = None
) -> tuple[dict[str, Floats], float]:
    """Every objective's row values [m, V] in the target's order, and the accuracy.

    Of several processes (``shared``) each runs some of the batches, and all of them have the values in the end.

    Raises:
        ManifestError: a row's value is not finite.
    """
    rows, size = run.target.index, run.batch_size
    own = [rows] if shared is None else [rows[first : first + size] for first in range(0, len(rows), size)]
    found = _values_of(run, objectives, own if shared is None else own[shared.rank :: shared.size])
    parts = [found] if shared is None else [part for part in shared.exchange(found) if len(part[0])]
    every = np.concatenate([part[0] for part in parts])
    order = np.argsort(every)
    place = order[np.searchsorted(every[order], rows)]
    values = {name: np.concatenate([part[1][name] for part in parts])[place] for name in objectives}
    return values, sum(part[2] for part in parts) / len(rows)


def _values_of(
    run: TargetPass, objectives: dict[str, Grouped], batches: list[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], dict[str, Floats], float]:
    """The target rows of some batches, as they come, their values by objective, and how many are predicted right."""
    rows = list[NDArray[np.int64]]()
    found: dict[str, list[Floats]] = {name: [] for name in objectives}
    hits = 0.0
    for index, x, y in run.batches([some.tolist() for some in batches]):
        with torch.no_grad(), differentiable_kernels(run.point.recurrent):
            logits = run.point.logits(x)
            hits += run.hits(logits, y)
            for name, grouped in objectives.items():
                values = grouped.objective.values(logits, y, run.loss).double().cpu().numpy()
                bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
                if len(bad):
                    raise not_finite(run.target, int(index[bad[0]]))
                found[name].append(values)
        rows.append(index)
    some = {name: np.concatenate(values) for name, values in found.items() if values}
    return np.concatenate([np.zeros(0, np.int64), *rows]), some, hits


def cell_sums(values: Floats, groups: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> tuple[Floats, ...]:
    """Sums [G, C, V] of values [m, V] and counts [G, C] of rows over cells (group, label)."""
    values, groups, labels = values[groups >= 0], groups[groups >= 0], labels[groups >= 0]
    shape = (int(groups.max()) + 1, classes)
    sums, counts = np.zeros((*shape, values.shape[1])), np.zeros(shape)
    np.add.at(sums, (groups, labels), values)
    np.add.at(counts, (groups, labels), 1.0)
    return sums, counts


def _direction(
    run: TargetPass, grouped: Grouped, values: Floats, accuracy: float, shared: Group | None = None
) -> Measured:
    """The weighted backward pass, cell by cell and bucket by bucket."""
    labels, groups, objective = run.target.labels, grouped.groups, grouped.objective
    phi, slope = objective.phi(*cell_sums(values, groups, labels, run.spec.num_classes))
    weights = slope[groups, labels] * (groups >= 0)[:, None]  # [m, V]
    cells = groups * run.spec.num_classes + labels if objective.by_label else groups
    total, half, variance = run.zeros(), run.zeros(), 0.0
    used = [c for c in np.unique(cells) if np.any(weights[cells == c] != 0.0)]
    for cell in used:
        rows = np.flatnonzero(cells == cell)
        rows = rows[key_order(run.target.row_keys[rows])]
        count = min(len(rows), _buckets(len(used)))
        own = range(count) if shared is None else range(count)[shared.rank :: shared.size]
        buckets = ((b, _weighted_gradient(run, objective, rows[b::count], weights)) for b in own)
        variance += _add_cell(buckets, count, len(rows), total, half, shared)
    if shared is not None:
        shared.add_up(half)
    norm2 = sum(float((g * g).sum()) for g in total)
    if not np.isfinite(norm2):
        raise run.without_gradient(lambda z, y: objective.values(z, y, run.loss))
    meta = {
        "phi": phi,
        "accuracy": accuracy,
        "m": len(labels),
        "m_half": len(labels) // 2,
        "half_share": 0.5,
        "snr": norm2 / variance if variance > 1e-12 * norm2 else None,
        "norm": norm2**0.5,
    }
    return Measured(run.mean(total), run.mean(half), meta)


def _add_cell(
    buckets: Iterable[tuple[int, list[Tensor]]],
    count: int,
    rows: int,
    total: list[Tensor],
    half: list[Tensor],
    shared: Group | None,
) -> float:
    """m_k V_k of a cell of so many rows, whose gradient, dealt to ``count`` buckets, is added to both sums.

    ``buckets`` are those of this process, with their numbers, and so is what is added to ``half``.
    """
    whole, norms = [torch.zeros_like(g) for g in total], np.zeros(count)
    sizes = np.bincount(np.arange(rows) % count, minlength=count)
    share = rows / int(sizes[::2].sum())
    for b, bucket in buckets:
        norms[b] = sum(float((g * g).sum()) for g in bucket)
        for k, g in enumerate(bucket):
            whole[k] += g
            if b % 2 == 0:
                half[k] += g * share
    if shared is not None:
        sizes_of_all = torch.from_numpy(norms).to(whole[0].device)
        shared.add_up([sizes_of_all, *whole])
        norms = sizes_of_all.cpu().numpy()
    for sum_, g in zip(total, whole, strict=True):
        sum_ += g
    if count == 1:
        return 0.0
    between = float((norms / sizes).sum()) - sum(float((g * g).sum()) for g in whole) / rows
    return rows * max(between, 0.0) / (count - 1)


def _buckets(cells: int) -> int:
    """Buckets of each of so many cells: even in number, and enough of them in all to tell a variance."""
    return max(4, BUCKETS // cells // 2 * 2)


def _weighted_gradient(
    run: TargetPass, objective: GroupObjective, rows: NDArray[np.int64], weights: Floats
) -> list[Tensor]:
    """The gradient of sum_v <weights_v, h_v> over target rows, by their place, in float64."""
    sums = run.zeros()
    place = {int(run.target.index[k]): int(k) for k in rows}
    for index, x, y in run.batches([sorted(place)]):
        with torch.enable_grad(), differentiable_kernels(run.point.recurrent):
            given = objective.values(run.point.logits(x, run.own), y, run.loss)
            w = torch.from_numpy(weights[[place[row] for row in index.tolist()]]).to(given.device, given.dtype)
            gradients = run.gradients((w * given).sum())
        for total, g in zip(sums, gradients, strict=True):
            total += g
    return sums

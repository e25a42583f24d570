"""Scores of all train rows for single target rows, exact and without stored row gradients: tangents along grad l_v.

Target rows are taken some at a time.  The gradients of a block are its directions (u = P q where the method has a P),
and one pass over the train rows gives the tangents along all of them: the values' pass is shared, so a block of Q costs
1 + 2 Q forward passes a member, and m target rows cost m / Q passes.  Memory holds the Q directions and one batch of
train rows at each member; small data are decoded once and kept from block to block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.maths.top_k import TopK
from influence_cli.methods.protocol import Preconditioned
from influence_cli.stages.grads.bf16 import note_frozen, points
from influence_cli.stages.grads.curvature_report import condition_warning, warnings_of
from influence_cli.stages.grads.preconditioning import about_curvature, fitted_curvature, parameter_count
from influence_cli.stages.grads.row_pass import Unusable, batch_size
from influence_cli.stages.run.job import Job, Member, require_model
from influence_cli.stages.run.plan import index_by_key, timing_key

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from influence_cli.curvature.curvature import Curvature
    from influence_cli.engines.engine import Engine
    from influence_cli.engines.point import Point
    from influence_cli.engines.row_directions import Direction

DIRECTIONS = 16  # most target rows of a block: its values' pass is then a thirtieth of the cost
DIRECTION_VALUES = 1 << 27  # most values of a block's directions, all members together: 512 MiB in float32
NAMED = 5  # rows whose score is not finite that are kept by place

# target rows, what was found, (count, places) of rows that are not finite, and more arrays by name
Done = Callable[[Rows, TopK, NDArray[np.int64], dict[str, NDArray[Any]]], None]
Named = dict[str, NDArray[np.floating]]


def block_size(job: Job, members: int) -> int:
    """Target rows a block."""
    return int(np.clip(DIRECTION_VALUES // max(1, members * parameter_count(job)), 1, DIRECTIONS))


def rate_key(job: Job) -> str:
    """Under what name the measured seconds per train row, direction and member are kept."""
    return f"{timing_key(job, True)} per target row"


def tangent_pass(job: Job, name: str, target: Rows, top: int, done: Done) -> None:
    """The ``top`` rows on each side for every target row; ``done`` is given each block as it is finished.

    Raises:
        ManifestError: the loss or the logits of a target row are not finite.
    """
    from influence_cli.model.examples import batches, chunked

    assert job.model is not None
    run, size = TangentRun(job, name, job.train), block_size(job, len(job.method_members[name]))
    chunks = chunked(target.manifest.payloads(target.index), size)
    pairs, spent = len(target) * len(run.train), 0.0
    row_at = {int(row): k for k, row in enumerate(target.index.tolist())}
    with job.listener.progress("train rows for target rows", pairs, "pairs") as progress:
        for index, decoded in batches(target.manifest, chunks, job.model, job.runtime.workers):
            block = target.take(np.array([row_at[int(row)] for row in index], dtype=np.int64))
            along, started = run.directions(block, decoded), time.perf_counter()
            found, bad = TopK(len(block), top), BadRows(len(block))
            for rows, scores in run.scores(along):
                bad.add(rows, scores)
                found.add(0, rows, scores)
                progress.advance(scores.size)
            spent += time.perf_counter() - started
            done(block, found, bad.found, {})
    job.store.write_timing(rate_key(job), spent / max(1, len(target) * len(run.rows) * len(run.members)))
    run.close()


class BadRows:
    """For every target row of a block, how many train rows have a score that is not finite, and the first places."""

    def __init__(self, targets: int) -> None:
        self.found = np.full((targets, 1 + NAMED), -1, dtype=np.int64)
        self.found[:, 0] = 0

    def add(self, rows: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        """Count those of a batch: scores [t, r] of the train rows at places [r]."""
        wrong = ~np.isfinite(scores)
        for t in np.flatnonzero(wrong.any(axis=1)).tolist():
            here = rows[wrong[t]]
            known = np.concatenate([self.found[t, 1:][self.found[t, 1:] >= 0], here])
            kept = np.sort(known)[:NAMED]
            self.found[t, 0] += len(here)
            self.found[t, 1 : 1 + len(kept)] = kept


class TangentRun:
    """The members of a method with their engines, and the train rows that are run at them."""

    def __init__(self, job: Job, name: str, train: Rows) -> None:
        from influence_cli.engines.batch_size import Parts
        from influence_cli.engines.engine import Engine
        from influence_cli.engines.point import DTYPES
        from influence_cli.model.build import device_of, load_model

        spec, checkpoint = require_model(job)
        self.job, self.name, self.train = job, name, train
        self.device = device_of(job.runtime.device)
        model = load_model(spec, checkpoint, DTYPES["fp32" if job.spec.precision == "bf16" else job.spec.precision])
        note_frozen(job, model)
        self.members = job.method_members[name]
        both = [points(job, model, member, self.device) for member in self.members]
        self.exact: list[Point] = [exact for exact, _ in both]
        self.engines: list[Engine] = [Engine(point, job.runtime.engine, job.listener) for _, point in both]
        p = isinstance(job.methods[name], Preconditioned)
        self.solver = Solver(job, name, model, self.device) if p else None
        self.parts, self.unusable = Parts(job.listener.warn), Unusable(job)
        first = index_by_key(train)
        self.rows = np.array(sorted(first.values()), dtype=np.int64)  # a manifest row of every distinct payload
        places: dict[bytes, list[int]] = {}
        for place, key in enumerate(train.payload_keys):
            places.setdefault(key.tobytes(), []).append(place)
        self.places = {row: places[key] for key, row in first.items()}  # train rows of its payload
        self.kept: list[tuple[NDArray[np.int64], Tensor]] | None = None

    def directions(self, block: Rows, decoded: Tensor) -> list[list[Direction]]:
        """By member, the direction of every target row of the block.

        Raises:
            ManifestError: the loss of a target row is not finite.
        """
        import torch

        from influence_cli.engines.direction import not_finite
        from influence_cli.engines.row_directions import row_directions
        from influence_cli.model.examples import move, to_input

        assert self.job.model is not None
        labels = torch.from_numpy(block.labels).to(self.device)
        along: list[list[Direction]] = []
        for member, exact, engine in zip(self.members, self.exact, self.engines, strict=True):
            x = to_input(move(decoded, self.device), self.job.model, exact.dtype)
            logits, found = row_directions(exact, x, labels, self.job.row_loss)
            finite = [bool(torch.isfinite(z).all()) and _finite(g) for z, g in zip(logits, found, strict=True)]
            if not all(finite):
                raise not_finite(block, int(block.index[finite.index(False)]))
            found = found if self.solver is None else self.solver.directions(member, found)
            point = engine.point
            along.append([{n: g.to(point.device, point.dtype) for n, g in u.items()} for u in found])
        return along

    def scores(self, along: list[list[Direction]]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """(places among the train rows [r], scores [t, r], the mean over members), batch by batch."""
        import torch

        from influence_cli.engines.row_directions import row_scores
        from influence_cli.model.examples import move, to_input

        assert self.job.model is not None
        for index, decoded in self._batches(len(along[0])):
            rows = [self.places[int(row)] for row in index]
            places = np.array([place for some in rows for place in some], dtype=np.int64)
            of = torch.tensor([k for k, some in enumerate(rows) for _ in some], device=self.device)
            labels = torch.from_numpy(self.train.labels[places]).to(self.device)
            first: Tensor | None = None
            more: Tensor | None = None
            for engine, directions in zip(self.engines, along, strict=True):
                x = to_input(move(decoded, self.device), self.job.model, engine.point.dtype)
                z, tangents = self.parts.run(lambda part, e=engine, d=directions: e.outputs(part, d), x)
                scores = row_scores(self.job.row_loss, z, tangents, of, labels)
                if first is None:
                    first = scores
                else:  # the mean is exact where members are equal
                    more = scores - first if more is None else more + (scores - first)
            assert first is not None
            mean = first if more is None else first + more / len(self.engines)
            yield places, mean.cpu().numpy()

    def _batches(self, directions: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """(manifest rows, decoded) of every distinct payload."""
        from influence_cli.model.decoded import DecodedBatches
        from influence_cli.model.examples import batches, chunked

        if self.kept is not None:
            yield from self.kept
            return
        assert self.job.model is not None
        size = batch_size(self.job)
        if not self.job.runtime.batch_size:  # a batch holds a tangent along every direction beside each value
            size = max(1, min(size, 4 * size // (1 + directions)))
        chunks = chunked(self.job.manifest.payloads(self.rows), size)
        kept = DecodedBatches()
        listen = self.unusable.listen
        for index, decoded in batches(self.job.manifest, chunks, self.job.model, self.job.runtime.workers, listen):
            kept.add(index, decoded)
            yield index, decoded
        self.kept = kept.all()

    def close(self) -> None:
        """Remember by which engine the members were run, and go on without rows that could not be decoded."""
        for member, engine in zip(self.members, self.engines, strict=True):
            if engine.checked is not None:
                self.job.store.write_engine_note(member.name, engine.checked.as_dict())
        self.unusable.leave_out()


def _finite(direction: dict[str, Any]) -> bool:
    return all(bool(g.isfinite().all()) for g in direction.values())


class Solver:
    """From gradients of target rows to u = P g by a method's own P; what the method has to say of P is said once."""

    def __init__(self, job: Job, name: str, model: nn.Module, device: torch.device) -> None:
        method = job.methods[name]
        assert isinstance(method, Preconditioned)
        self.job, self.name, self.method, self.model, self.device = job, name, method, model, device
        self._curvatures: dict[str, Curvature] = {}
        self._said: list[str] = []

    def columns(self, member: Member, gradients: list[Named]) -> list[Named]:
        """P g of every gradient, by parameter name."""
        if member.name not in self._curvatures:
            size = batch_size(self.job)
            self._curvatures[member.name] = fitted_curvature(self.job, self.name, member, self.model, self.device, size)
        curvature = self._curvatures[member.name]
        q = np.stack([curvature.flat(g) for g in gradients], axis=1)
        columns, facts = self.method.precondition(q, curvature)
        self._say(about_curvature(self.job, facts, curvature))
        return [dict(curvature.by_name(column)) for column in columns.T]

    def directions(self, member: Member, directions: list[Direction]) -> list[Direction]:
        """The same of tensors, where and as precise as they are."""
        import torch

        like = directions[0]
        found = self.columns(member, [{n: g.cpu().numpy() for n, g in u.items()} for u in directions])
        return [{n: torch.from_numpy(v.copy()).to(like[n].device, like[n].dtype) for n, v in u.items()} for u in found]

    def _say(self, facts: dict[str, Any]) -> None:
        if not self._said:
            self._said.append(self.method.sentence(facts))
            self.job.listener.note(f"{self.name}: {self._said[0]}")
        for text in (*warnings_of(self.job, self.name, facts), *condition_warning(self.job, self.name, facts)):
            if text not in self._said:
                self._said.append(text)
                self.job.listener.warn(f"{self.name}: {text}")

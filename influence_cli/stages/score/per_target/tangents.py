"""Scores of all train rows for single target rows, exact and without stored row gradients: tangents along grad l_v.

Target rows are taken some at a time.  The gradients of a block are its directions (u = P q where the method has a P),
and one pass over the train rows gives the tangents along all of them: the values' pass is shared, so a block of Q costs
1 + 2 Q forward passes a member, and m target rows cost m / Q passes.  Memory holds the Q directions and one batch of
train rows at each member; small data are decoded once and kept from block to block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.maths.top_k import TopK
from influence_cli.methods.protocol import times_the_mean
from influence_cli.report.curvature import curvature_sentence
from influence_cli.stages.grads.curvature_report import condition_warning, warnings_of
from influence_cli.stages.grads.member_model import MemberModel, Models
from influence_cli.stages.grads.preconditioning import about_curvature, fitted_curvature
from influence_cli.stages.grads.row_loop import bad_rows
from influence_cli.stages.run import names
from influence_cli.stages.run.curvature_plan import parameter_count
from influence_cli.stages.run.rates import Stopwatch, pass_key
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Batch, Session

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.curvature.curvature import Curvature
    from influence_cli.engines.engine import Engine
    from influence_cli.engines.row_values import Direction
    from influence_cli.model.decoded import Batches

DIRECTIONS = 16  # most target rows of a block: its values' pass is then a thirtieth of the cost
DIRECTION_VALUES = 1 << 27  # most values of a block's directions, all members together: 512 MiB in float32
NAMED = 5  # rows whose score is not finite that are kept by place

# target rows, what was found, (count, places) of rows that are not finite, and more arrays by name
Done = Callable[[Rows, TopK, NDArray[np.int64], dict[str, NDArray[Any]]], None]
Named = dict[str, NDArray[np.floating]]


def block_size(run: Run, session: Session, members: int) -> int:
    """Target rows a block."""
    return int(np.clip(DIRECTION_VALUES // max(1, members * parameter_count(run, session)), 1, DIRECTIONS))


def rate_key(run: Run, session: Session) -> str:
    """Under what name the measured seconds per train row, direction and member are kept."""
    return f"{pass_key(run, session, 'tangents')} per target row"


def tangent_pass(run: Run, session: Session, name: str, target: Rows, top: int, done: Done) -> Run:
    """The ``top`` rows on each side for every target row; ``done`` is given each block as it is finished.

    Returns the run without train rows that turned out not to be usable.

    Raises:
        ManifestError: the loss or the logits of a target row are not finite.
    """
    tangents, size = TangentRun(run, session, name, run.train), block_size(run, session, len(run.members_of[name]))
    pairs, watch = len(target) * len(run.train), Stopwatch()
    row_at = {int(row): k for k, row in enumerate(target.index.tolist())}
    with session.listener.progress("train rows for target rows", pairs, "pairs") as progress:
        for batch in session.rows(tangents.model, target, size, keep=False):
            block = target.take(np.array([row_at[int(row)] for row in batch.index], dtype=np.int64))
            along, started = tangents.directions(block, batch), time.perf_counter()
            found, bad = TopK(len(block), top), BadRows(len(block))
            for rows, scores in tangents.scores(along):
                bad.add(rows, scores)
                found.add(0, rows, scores)
                progress.advance(scores.size)
            watch.add(len(block) * len(tangents.rows) * len(tangents.members), time.perf_counter() - started)
            done(block, found, bad.found, {})
    watch.remember(session, rate_key(run, session))
    return tangents.close()


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

    def __init__(self, run: Run, session: Session, name: str, train: Rows) -> None:
        from influence_cli.engines.batch_size import Parts
        from influence_cli.engines.engine import Engine

        self.run, self.session, self.name, self.train = run, session, name, train
        self.model, models = require_model(run)[0], Models(run, session)
        self.members = [models.at(member) for member in run.members_of[name]]
        self.engines: list[Engine] = [Engine(m.point, session.runtime.engine, session.listener) for m in self.members]
        self.solver = Solver(run, session, name) if run.methods[name].fitted_curvature else None
        self.parts, self.unusable = Parts(session.listener.warn), dict[int, str]()
        first = {
            key.tobytes(): row for key, row in zip(train.payload_keys[::-1], train.index[::-1].tolist(), strict=True)
        }
        self.rows = Rows(train.manifest, np.array(sorted(first.values()), dtype=np.int64))  # of every distinct payload
        places: dict[bytes, list[int]] = {}
        for place, key in enumerate(train.payload_keys):
            places.setdefault(key.tobytes(), []).append(place)
        self.places = {row: places[key] for key, row in first.items()}  # train rows of its payload
        self.kept: Batches | None = None

    def directions(self, block: Rows, batch: Batch) -> list[list[Direction]]:
        """By member, the direction of every target row of the block.

        Raises:
            ManifestError: the loss of a target row is not finite.
        """
        import torch

        from influence_cli.engines.direction import not_finite
        from influence_cli.engines.row_values import row_directions

        along: list[list[Direction]] = []
        of: dict[str, list[Direction]] = {}  # gradients of the block, by the member at which they are taken
        queries = {m.member.name: names.query(self.run, self.name, m.member).name for m in self.members}
        exacts = {m.member.name: m.exact for m in self.members}
        for member in self.members:
            point, query = member.point, queries[member.member.name]
            if query not in of:
                exact = exacts[query]
                logits, gradients = row_directions(exact, batch.on(exact), batch.labels_on(exact), self.run.row_loss)
                pairs = zip(logits, gradients, strict=True)
                finite = [bool(torch.isfinite(z).all()) and _finite(g) for z, g in pairs]
                if not all(finite):
                    raise not_finite(block, int(block.index[finite.index(False)]))
                of = {query: gradients}
            found = of[query]
            found = found if self.solver is None else self.solver.directions(member, found)
            along.append([{n: g.to(point.device, point.dtype) for n, g in u.items()} for u in found])
        return along

    def scores(self, along: list[list[Direction]]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """(places among the train rows [r], scores [t, r], the mean or sum over members), batch by batch."""
        import torch

        from influence_cli.engines.row_values import row_scores

        device, weights = self.session.device, [member.member.weight for member in self.members]
        times = times_the_mean(self.run.methods[self.name], weights)
        for batch in self._batches(len(along[0])):
            rows = [self.places[int(row)] for row in batch.index]
            places = np.array([place for some in rows for place in some], dtype=np.int64)
            of = torch.tensor([k for k, some in enumerate(rows) for _ in some], device=device)
            labels = torch.from_numpy(self.train.labels[places]).to(device)
            first: Tensor | None = None
            more: Tensor | None = None
            for engine, directions, weight in zip(self.engines, along, weights, strict=True):
                z, tangents = self.parts.run(lambda x, e=engine, d=directions: e.outputs(x, d), batch.on(engine.point))
                scores = row_scores(self.run.row_loss, z, tangents, of, labels)
                if first is None:
                    first = scores
                else:  # the mean is exact where members are equal
                    more = weight * (scores - first) if more is None else more + weight * (scores - first)
            assert first is not None
            mean = first if more is None else first + more / sum(weights)
            yield places, times * mean.cpu().numpy()

    def _batches(self, directions: int) -> Iterator[Batch]:
        """Every distinct payload."""
        if self.kept is not None:
            yield from (Batch(index, decoded, self.train.manifest, self.model) for index, decoded in self.kept)
            return
        from influence_cli.model.decoded import DecodedBatches

        size = self.session.batch_size(self.model)
        if not self.session.runtime.batch_size:  # a batch holds a tangent along every direction beside each value
            size = max(1, min(size, 4 * size // (1 + directions)))
        kept = DecodedBatches()
        listen = self.unusable.__setitem__ if self.run.inputs.skip_bad else None
        for batch in self.session.rows(self.model, self.rows, size, listen):
            kept.add(batch.index, batch.decoded)
            yield batch
        self.kept = kept.all()

    def close(self) -> Run:
        """Remember by which engine the members were run; the run without rows that could not be decoded."""
        for member, engine in zip(self.members, self.engines, strict=True):
            if engine.checked is not None:
                self.session.store.write_engine_note(member.member.name, engine.checked.as_dict())
        return self.run.without(bad_rows(self.run, self.session, self.train, self.unusable))


def _finite(direction: dict[str, Any]) -> bool:
    return all(bool(g.isfinite().all()) for g in direction.values())


class Solver:
    """From gradients of target rows to u = P g by a method's own P; what the method has to say of P is said once."""

    def __init__(self, run: Run, session: Session, name: str) -> None:
        self.run, self.session, self.name, self.method = run, session, name, run.solvers[name]
        self._curvatures: dict[str, Curvature] = {}
        self._reported, self._said = False, list[str]()

    def columns(self, at: MemberModel, gradients: list[Named]) -> list[Named]:
        """P g of every gradient, by parameter name."""
        known = at.member.name
        if known not in self._curvatures:
            self._curvatures[known] = fitted_curvature(self.run, self.session, self.name, at)
        curvature = self._curvatures[known]
        q = np.stack([curvature.flat(g) for g in gradients], axis=1)
        columns, facts = self.method.precondition(q, curvature)
        self._say(about_curvature(self.run, facts, curvature))
        return [dict(curvature.by_name(column)) for column in columns.T]

    def directions(self, at: MemberModel, directions: list[Direction]) -> list[Direction]:
        """The same of tensors, where and as precise as they are."""
        import torch

        like = directions[0]
        found = self.columns(at, [{n: g.cpu().numpy() for n, g in u.items()} for u in directions])
        return [{n: torch.from_numpy(v.copy()).to(like[n].device, like[n].dtype) for n, v in u.items()} for u in found]

    def _say(self, facts: dict[str, Any]) -> None:
        if not self._reported:
            self._reported = True
            self.session.listener.note(f"{self.name}: {curvature_sentence(facts, asdict(self.method))}")
        for text in (*warnings_of(self.run, self.name, facts), *condition_warning(self.run, self.name, facts)):
            if text not in self._said:
                self._said.append(text)
                self.session.listener.warn(f"{self.name}: {text}")

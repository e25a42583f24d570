"""The passes over the training rows at one member: logits and tangents together, values of gradients, other quantities.

A pass computes what the parts of its quantities lack, and says which rows turned out not to be usable.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from influence_cli.data.manifest import Rows
from influence_cli.model.spec import ModelSpec
from influence_cli.processes.group import Group
from influence_cli.stages.grads.first_look import FirstLook
from influence_cli.stages.grads.member_model import MemberModel, read_direction
from influence_cli.stages.grads.preconditioning import about_curvature, fitted_curvature
from influence_cli.stages.grads.row_loop import Chunks, Looped, Parts, Speed, Waits, loop_over
from influence_cli.stages.grads.same_run import RunJob, helpers
from influence_cli.stages.run import names
from influence_cli.stages.run.curvature_plan import missing_solves
from influence_cli.stages.run.plan import Work
from influence_cli.stages.run.quantities import QUANTITIES, Part
from influence_cli.stages.run.rates import pass_key
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Batch, Session
from influence_cli.store import Keys
from influence_cli.store.shards import Arrays

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.curvature.head import HeadInputs
    from influence_cli.engines.point import Point
    from influence_cli.methods.protocol import OfBlocks

LARGEST_ON_ACCELERATOR = 16  # times the size to begin with


def run_pass(name: str, run: Run, session: Session, work: Work, at: MemberModel, look: FirstLook) -> Looped:
    """Compute and store what one pass over the training rows is to give at a member.

    Raises:
        ManifestError: a row cannot be decoded, and bad rows are not skipped.
    """
    group = helpers(run, session)
    if group is not None:
        _prepare(name, run, session, work, at)
        job = PassJob(name, run, session, work, at)
        job.here = run, session, at, look
        return joined(group.share(job))
    if name == "forward":
        return forward_pass(run, session, work, at, look)
    if name == "chains":
        from influence_cli.stages.grads.chains import chain_pass

        return chain_pass(run, session, work, at)
    return _value_pass(run, session, work, at) if name == "values" else _own_pass(name, run, session, work, at)


class PassJob(RunJob):
    """A pass over the training rows, whose units the processes take by turn."""

    def __init__(self, name: str, run: Run, session: Session, work: Work, at: MemberModel) -> None:
        super().__init__(run, session, at.member, at.called)
        self.name, self.work = name, work

    def of_run(self, group: Group, run: Run, session: Session, at: MemberModel) -> Looped:
        """The part of this process."""
        look = self.here[3] if group.rank == 0 else FirstLook(run, session)
        return run_pass(self.name, run, session, self.work, at, look)


def _prepare(name: str, run: Run, session: Session, work: Work, at: MemberModel) -> None:
    """Have stored, before several processes run a pass, what each of them would else come to by itself."""
    if name == "chains":
        from influence_cli.stages.grads.chains import choose_laws

        choose_laws(run, session, work, at)
    if name == "values":
        for part, keys in work.in_pass(name).items():
            if len(keys) and run.values[part.of].of_block is None:
                fitted_curvature(run, session, part.of, at)


def joined(found: list[Looped]) -> Looped:
    """What several processes have done of one pass."""
    bad = {b.row: b for one in found for b in one.bad}
    return replace(found[0], rows=max(one.rows for one in found), bad=[bad[row] for row in sorted(bad)])


def forward_pass(run: Run, session: Session, work: Work, at: MemberModel, look: FirstLook) -> Looped:
    """Logits, and tangents along every direction that lacks some."""
    import torch

    from influence_cli.engines.batch_size import Pace
    from influence_cli.engines.batch_size import Parts as Pieces
    from influence_cli.engines.engine import Engine
    from influence_cli.model.examples import sent_back

    lacking = work.in_pass("forward")
    # a target too small to be halved has no half direction
    lacking = {p: k for p, k in lacking.items() if not p.half or session.store.directions.meta(p.name) is not None}
    held = _head_inputs(session, at, lacking)
    point = at.point if held is None else held.head.point
    along = [part for part, keys in lacking.items() if part.quantity == "tangents" and len(keys)]
    directions = {part: read_direction(session, part.name, point) for part in along}
    engine, memory = Engine(point, session.runtime.engine, session.listener), Pieces(session.listener.warn)
    size, accelerated = session.batch_size(run.model), point.device.type != "cpu"
    looking = at.member == run.plain_member()  # what other members predict says nothing of the model
    shared = session.group if session.sharing else None
    measured = accelerated and not session.runtime.batch_size
    pace = Pace(size, size * (LARGEST_ON_ACCELERATOR if measured else 1))

    def compute(batch: Batch, parts: Parts) -> Waits:
        wanted = [part for part in parts if part in directions]
        u = [directions[part] for part in wanted]
        x = batch.on(point) if held is None else batch.decoded
        z, tangents = memory.run(lambda some: engine.outputs(some, u), x)
        arrive = sent_back(torch.stack([z, *tangents]))

        def found() -> dict[Part, Arrays]:
            values = arrive()
            if looking:
                look.count(run, batch.index, values[0], shared)
            by_part = {part: {"tangent": t} for part, t in zip(wanted, values[1:], strict=True)}
            return {part: by_part.get(part, {"logits": values[0]}) for part in parts}

        return found

    def took(parts: Parts, rows: int, seconds: float) -> None:
        pace.took(parts, rows, seconds)
        pace.stop_at(memory.most)

    speed = Speed(lambda: pace.rows, took, 2 if accelerated else 1, look.sample if looking else lambda rows: (rows,))
    parts = look.apart(speed, shared) if looking and shared is not None else (speed,)
    source = None if held is None else functools.partial(_from_head, held, require_model(run)[0])
    about = run, session, run.train, lacking, compute, f"training rows, {at.called}"
    every = [loop_over(*about, part, source=source) for part in parts]
    looped = replace(every[-1], bad=[bad for one in every for bad in one.bad])
    session.listener.detail(f"{at.called}: {engine.how()}")
    if engine.checked is not None:
        session.store.write_engine_note(at.member.name, engine.checked.as_dict())
    if held is not None:  # rows cost more than that where the whole model is run
        return looped
    return looped.remember_rate(session, pass_key(run, session, "tangents" if work.tangents else "outputs"))


def _head_inputs(session: Session, at: MemberModel, lacking: dict[Part, Keys]) -> HeadInputs | None:
    """What a pass at the member has kept of its head's inputs, where it is enough for all that lacks something.

    Logits and tangents are functions of them: what lies before the head need not be run again.  Where training goes on
    the head alone moves, and its inputs are those at the checkpoint.
    """
    if session.head_inputs is None or session.head_inputs[0] != names.before_head(at.member):
        return None
    held = session.head_inputs[1]
    alike = held.head.point.dtype == at.point.dtype and held.head.point.device == at.point.device
    if not alike or not all(held.of_all(keys) for keys in lacking.values()):
        return None
    return held if at.member.walk is None else replace(held, head=held.head.moved(at.point.selected))


def _from_head(held: HeadInputs, model: ModelSpec, rows: Rows, chunks: Chunks) -> Iterator[Batch]:
    """Batches of a head's inputs in the place of decoded rows."""
    for chunk in chunks:
        index = np.array([row for row, _ in chunk], dtype=np.int64)
        yield Batch(index, held.take(rows.manifest.payload_keys[index]), rows.manifest, model)


def _value_pass(run: Run, session: Session, work: Work, at: MemberModel) -> Looped:
    """Values of rows' own gradients: by row, since the label is part of the gradient."""
    from influence_cli.engines.row_values import RowValues

    lacking = work.in_pass("values")
    made_of = {part: _value_function(run, session, part, work, at) for part, keys in lacking.items() if len(keys)}
    functions = {part: function for part, (function, _) in made_of.items()}
    point = at.exact.less({name for _, outside in made_of.values() for name in outside})
    made: dict[Parts, RowValues] = {}

    def values(parts: Parts, x: Tensor, y: Tensor) -> list[Tensor]:
        if parts not in made:
            quadratic = all(run.values[part.of].quadratic for part in parts)
            made[parts] = RowValues(point, run.row_loss, [functions[part] for part in parts], quadratic)
        return [made[parts].of(x, y)]

    def by_part(parts: Parts, found: list[Tensor]) -> dict[Part, Arrays]:
        return {part: {"value": column} for part, column in zip(parts, found[0].cpu().numpy().T.copy(), strict=True)}

    return _labelled_loop("values", f"row gradients, {at.called}", run, session, work, at.exact, values, by_part)


def _value_function(
    run: Run, session: Session, part: Part, work: Work, at: MemberModel
) -> tuple[OfBlocks, Collection[str]]:
    """What maps the blocks of a batch to one value of each row; what it takes is fitted, and said.

    And the names of the parameters that the blocks are to be without, since its curvature is.
    """
    from influence_cli.engines.row_values import sum_over

    value, member = run.values[part.of], work.member
    if value.of_block is not None:
        return sum_over(value.of_block), ()
    for solve in missing_solves(run, session, (), {part.of: work.lacking[part]}):
        seconds = "" if solve.seconds is None else f", about {solve.seconds:,.3g} seconds"
        session.listener.note(
            f"{part.of}: a series for each of {solve.directions:,} rows, at most {solve.passes:,.0f} passes over "
            f"{solve.rows:,} fit rows in all{seconds}"
        )
    curvature = fitted_curvature(run, session, part.of, at)
    function, facts = run.solvers[part.of].form(curvature)
    assert run.fit is not None
    called = names.row_value(run, part.of, member)[0]
    session.store.write_value_facts(called, run.fit.fingerprint, about_curvature(run, facts, curvature))
    return function, curvature.outside


def _own_pass(name: str, run: Run, session: Session, work: Work, at: MemberModel) -> Looped:
    """The rows of a quantity that is computed by itself."""
    of_rows, fields = QUANTITIES[name].of_rows(run, at.exact), list[str]()

    def arrays(parts: Parts, x: Tensor, y: Tensor) -> list[Tensor]:
        found = of_rows(x, y)
        fields[:] = list(found)
        return list(found.values())

    def by_part(parts: Parts, found: list[Tensor]) -> dict[Part, Arrays]:
        return {parts[0]: {field: t.cpu().numpy() for field, t in zip(fields, found, strict=True)}}

    return _labelled_loop(name, f"{name}, {at.called}", run, session, work, at.exact, arrays, by_part)


def _labelled_loop(
    name: str, what: str, run: Run, session: Session, work: Work, point: Point,
    of_rows: Callable[[Parts, Tensor, Tensor], list[Tensor]],
    by_part: Callable[[Parts, list[Tensor]], dict[Part, Arrays]],
) -> Looped:  # fmt: skip
    """Compute and store what a pass gives from inputs and labels, in as few pieces as fit into memory."""
    import torch

    from influence_cli.engines.batch_size import Parts as Pieces

    memory = Pieces(session.listener.warn)

    def compute(batch: Batch, parts: Parts) -> Waits:
        x, y = batch.on(point), batch.labels_on(point)

        def piece(some: Tensor) -> tuple[Tensor, list[Tensor]]:
            first, *others = of_rows(parts, x[some], y[some])
            return first, others

        first, others = memory.run(piece, torch.arange(len(y), device=point.device))
        found = by_part(parts, [first, *others])
        return lambda: found

    speed, key = Speed(lambda: session.batch_size(run.model)), pass_key(run, session, name)
    done: list[Looped] = []
    for rows, lacking in _by_rows(run, work.in_pass(name)):
        own = rows is run.train  # other rows were looked at when the run was opened
        looped = loop_over(
            run, session, rows, lacking, compute, what if own else f"{what}: target rows", speed,
            skip_bad=None if own else False,
        )  # fmt: skip
        done.append(looped.remember_rate(session, key))
    return Looped(sum(d.rows for d in done), sum(d.seconds for d in done), [bad for d in done for bad in d.bad])


def _by_rows(run: Run, lacking: dict[Part, Keys]) -> list[tuple[Rows, dict[Part, Keys]]]:
    """What parts lack, by the rows that they are about."""
    found: dict[int, tuple[Rows, dict[Part, Keys]]] = {}
    for part, keys in lacking.items():
        rows = QUANTITIES[part.quantity].rows(run, part)
        found.setdefault(id(rows), (rows, {}))[1][part] = keys
    return list(found.values())

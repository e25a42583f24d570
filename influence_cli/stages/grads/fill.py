"""(1) manifest -> store, for the rows that the store has not seen.

At each member the directions that are not stored are measured on the target rows; then passes over the training rows
compute what these lack.  Every full shard is written as soon as it is complete, so a run that is killed has lost only
the rows in hand.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from influence_cli.errors import NoFeatures
from influence_cli.memory import trim_memory
from influence_cli.stages.grads.bf16 import measure_agreement
from influence_cli.stages.grads.curvature_report import note_curvature, note_values
from influence_cli.stages.grads.directions import measure
from influence_cli.stages.grads.features import fill_backbone
from influence_cli.stages.grads.first_look import FirstLook, run_target
from influence_cli.stages.grads.further_report import note_further
from influence_cli.stages.grads.growth import Growth, added_member, begin
from influence_cli.stages.grads.member_model import MemberModel, Models
from influence_cli.stages.grads.passes import run_pass
from influence_cli.stages.grads.preconditioning import precondition
from influence_cli.stages.grads.row_gradients import fill_gradients
from influence_cli.stages.run import names
from influence_cli.stages.run.backbone_run import features_run, with_effects
from influence_cli.stages.run.curvature_plan import missing_directions
from influence_cli.stages.run.plan import Work, missing_work
from influence_cli.stages.run.quantities import QUANTITIES
from influence_cli.stages.run.rates import ENOUGH_ROWS, start_key
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session

MERGED = 16  # shards of those that rows are written in as they come are merged into one when all are there


def fill(run: Run, session: Session) -> tuple[Run, int]:
    """Compute and store what is missing.

    Returns the run as it is then, without training rows that turned out to be unusable and with as many members as its
    ensembles have decided on, and the number of training rows that were run through the model.  Where the model
    turns out to have no features for ``auto``, that is a method of effects from there on.
    """
    try:
        return _filled(run, session)
    except NoFeatures as error:
        return _filled(with_effects(run, session, error), session)


def _filled(run: Run, session: Session) -> tuple[Run, int]:
    look, growth = FirstLook(run, session), Growth()
    run, done = _fill(begin(run), session, look)
    while True:
        before, run = run.members_of, growth.grown(run, session)
        if not any(len(members) > len(before[name]) for name, members in run.members_of.items()):
            break
        run, more = _fill(run, session, look)
        done += more
    session.decoded = session.head_inputs = None
    trim_memory()
    note_curvature(run, session)
    note_values(run, session)
    note_further(run, session)
    growth.note(run, session)
    run, of_backbone = fill_backbone(run, session)
    run, gradients = fill_gradients(run, session)
    if session.cold and "torch" in sys.modules:  # which is imported once a process
        session.cold, took = False, time.perf_counter() - session.opened
        timed = features_run(run, session.runtime) if run.model is None and run.backbone is not None else run
        session.store.write_timing(start_key(timed, session), max(0.0, took - session.timed), ENOUGH_ROWS)
    return run, done + of_backbone + gradients


def _fill(run: Run, session: Session, look: FirstLook) -> tuple[Run, int]:
    """Compute and store what is missing at the members that the run has now."""
    work = _with_readable_directions(run, session, missing_work(run, session))
    if not work:
        return run, 0
    work.sort(key=lambda w: w.member != run.plain_member())  # the model itself first: how good it is, is said at once
    from influence_cli.model.decoded import DecodedByKey

    if len(run.members) > 1 or any(len(w.passes) > 1 for w in work):
        session.decoded = session.decoded or DecodedByKey(require_model(run)[0])
    payloads = dict(run.target.manifest.payloads(run.target.index)) if any(w.directions for w in work) else {}
    skipped, models, done = len(run.manifest.bad), Models(run, session), 0
    for position, w in enumerate(work):
        called = added_member(run, w.member) or "model"
        at = models.at(w.member, f"member {position + 1} of {len(work)}" if len(work) > 1 else called)
        if w.directions:
            measure(run, session, w, at, models, payloads)
        if w.phis:
            from influence_cli.stages.grads.phi_values import measure_phis

            measure_phis(run, session, w.member, w.phis, models)
        if position == 0 and not run.linear_members():
            run_target(run, session, at)
        run, more = _fill_member(run, session, w, at, look)
        done += more
    session.forget_folders()
    if len(run.manifest.bad) > skipped:  # others may have taken their place, where rows are sampled
        run, more = _fill(run, session, look)
        done += more
    return run, done


def _fill_member(run: Run, session: Session, work: Work, at: MemberModel, look: FirstLook) -> tuple[Run, int]:
    """Compute and store what is missing at one member, whose directions are measured."""
    for quantity in {part.quantity for part, keys in work.lacking.items() if len(keys)}:
        QUANTITIES[quantity].check(run, at.exact)
    if work.preconditioned:
        precondition(run, session, at, work.preconditioned)
    for name in work.passes:
        run = run.without(run_pass(name, run, session, work, at, look).bad)
        for part in () if session.store.at_an_address else work.in_pass(name):
            QUANTITIES[part.quantity].folder(run, session, part).compact(MERGED * session.runtime.shard_rows)
    if at.point is not at.exact:
        measure_agreement(run, session, at)
    look.say(run)
    return run, sum(work.rows_in(name) for name in work.passes)


def _with_readable_directions(run: Run, session: Session, work: list[Work]) -> list[Work]:
    """The work that there is, with directions to make again whose stored tensors turn out to be damaged or gone."""
    read = session.store.directions.read
    work = [w if w.nothing else _without_unreadable(run, session, w) for w in work]
    along = [a for w in work for a in w.preconditioned]
    gone = {a.q: (a.query, a.objective) for a in along if read(a.q) is None}
    found: list[Work] = []
    for w in work:
        again = [objective for at, objective in gone.values() if at == w.member and objective not in w.directions]
        found.append(replace(w, directions=(*w.directions, *dict.fromkeys(again))))
    return [w for w in found if not w.nothing]


def _without_unreadable(run: Run, session: Session, work: Work) -> Work:
    """The work at a member, with what is to be made again since directions of its own cannot be read."""
    measure = list(work.directions)
    lacking = [part.name for part, keys in work.lacking.items() if part.quantity == "tangents" and len(keys)]
    unreadable = {name for name in lacking if session.store.directions.read(name) is None}  # and set aside
    for objective in run.objectives:
        needed = {names.direction(run, work.member, objective, half=h) for h in (False, True)} & unreadable
        if objective not in measure and needed:
            measure.append(objective)
    missing = missing_directions(run, session, work.member, work.halves)
    return replace(work, directions=tuple(measure), preconditioned=missing)

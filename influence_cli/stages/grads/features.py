"""Penultimate features of a run's train and target rows: what the store lacks of them, and filling it."""

from __future__ import annotations

from dataclasses import replace

from influence_cli.data.manifest import Rows
from influence_cli.data.row_checks import SKIPPED
from influence_cli.methods.outlier import Outlier
from influence_cli.stages.run.members import member_at
from influence_cli.stages.run.plan import Work
from influence_cli.stages.run.quantities import QUANTITIES
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session

NAME = "features"


def run_of_features(run: Run, session: Session, target: bool) -> Run:
    """The run as one that needs its train rows' features at the checkpoint, and with ``target`` its target rows'."""
    asks = Outlier(k=1, among="target" if target else "train")
    member = member_at(run, session.runtime)
    return replace(run, methods={"outlier": asks}, members_of={"outlier": (member,)}, ensembles={}, values={})


def features_work(run: Run, session: Session) -> Work:
    """What the store lacks of the features of a run that needs them."""
    quantity, (member,) = QUANTITIES[NAME], run.members
    return Work(member, {part: quantity.lacking(run, session, part) for part in quantity.parts(run, member)})


def fill_features(run: Run, session: Session) -> Run:
    """The run without rows that turned out not to decode, the features of all others stored.

    Raises:
        ModelError: the model has no penultimate features.
    """
    work = features_work(run, session)
    if work.nothing:
        return run
    from influence_cli.stages.grads.first_look import FirstLook
    from influence_cli.stages.grads.member_model import Models
    from influence_cli.stages.grads.passes import run_pass

    at = Models(run, session).at(work.member)
    QUANTITIES[NAME].check(run, at.exact)
    bad = run_pass(NAME, run, session, work, at, FirstLook(run, session)).bad
    session.forget_folders()
    if not bad:
        return run
    session.listener.warn(f"{len(bad):,} rows cannot be decoded and are compared with none")
    manifest = run.manifest.without(bad)
    left = run.train.index[manifest.splits[run.train.index] != SKIPPED]
    return replace(run, manifest=manifest, train=Rows(manifest, left))

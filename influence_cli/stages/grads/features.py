"""Penultimate features of a run's train and target rows: filling the store with what it lacks of them."""

from __future__ import annotations

from dataclasses import replace

from influence_cli.data.manifest import Rows
from influence_cli.data.split_column import SKIPPED
from influence_cli.methods.outlier import Outlier
from influence_cli.stages.run.backbone_run import NAME, at_backbone, features_run, features_session, features_work
from influence_cli.stages.run.members import member_at
from influence_cli.stages.run.quantities import QUANTITIES
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session


def run_of_features(run: Run, session: Session, target: bool) -> Run:
    """The run as one that needs its train rows' features at the checkpoint, and with ``target`` its target rows'."""
    asks = Outlier(k=1, among="target" if target else "train")
    at = at_backbone(run)
    member = member_at(at, session.runtime)
    return replace(at, methods={"outlier": asks}, members_of={"outlier": (member,)}, ensembles={}, values={})


def fill_features(run: Run, session: Session) -> Run:
    """The run without rows that turned out not to decode, the features of all others stored.

    Raises:
        ModelError: the model has no penultimate features.
    """
    work, outer = features_work(run, session), session
    if work.nothing:
        return run
    session = features_session(session)
    from influence_cli.stages.grads.first_look import FirstLook
    from influence_cli.stages.grads.member_model import Models
    from influence_cli.stages.grads.passes import run_pass

    at = Models(run, session).at(work.member)
    QUANTITIES[NAME].check(run, at.exact)
    bad = run_pass(NAME, run, session, work, at, FirstLook(run, session)).bad
    outer.timed = session.timed
    session.forget_folders()
    if not bad:
        return run
    outer.listener.warn(f"{len(bad):,} rows cannot be decoded and are compared with none")
    manifest = run.manifest.without(bad)
    left = run.train.index[manifest.splits[run.train.index] != SKIPPED]
    return replace(run, manifest=manifest, train=Rows(manifest, left))


def fill_backbone(run: Run, session: Session) -> tuple[Run, int]:
    """The run once the features of the model that ``--features`` names are stored, and of how many rows they lacked.

    Raises:
        ModelError: that model has no penultimate features, or its weights do not fit.
    """
    if run.backbone is None or not any(method.needs == NAME for method in run.methods.values()):
        return run, 0
    at = features_run(run, session.runtime)
    work = features_work(at, session)
    filled = fill_features(at, session)
    session.forget_folders()
    return replace(run, manifest=filled.manifest, train=filled.train), work.rows_in(NAME)

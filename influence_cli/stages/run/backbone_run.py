"""The part of a run that is about penultimate features, as a run of the model that has them, and its plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from influence_cli.errors import NoFeatures
from influence_cli.methods import AUTO
from influence_cli.settings import Runtime
from influence_cli.stages.run.members import member_at
from influence_cli.stages.run.open import open_run
from influence_cli.stages.run.plan import Work, describe_plan
from influence_cli.stages.run.quantities import QUANTITIES
from influence_cli.stages.run.rates import known_rates, seconds_of_pairs
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session

NAME = "features"


def at_backbone(run: Run) -> Run:
    """The run with the model that ``--features`` names in place of its own, and without any member."""
    if run.backbone is None:
        return run
    of_members = ("objectives", "groups", "changed", "values", "solvers", "members_of", "ensembles")
    nothing: dict[str, Any] = {name: {} for name in of_members}
    return replace(
        run, model=run.backbone.model, checkpoint=run.backbone.checkpoint, headless=run.backbone.headless,
        smaller=run.backbone.smaller, maps=run.backbone.maps, backbone=None, rows_as=run.rows_as or run.model,
        fit=None, spec=replace(run.spec, params="all", rows=None), **nothing,
    )  # fmt: skip


def features_run(run: Run, runtime: Runtime) -> Run:
    """The run of those of its methods that look at features, at the model that ``--features`` names."""
    at = at_backbone(run)
    member = member_at(at, runtime)
    asking = {name: method for name, method in run.methods.items() if method.needs == NAME}
    return replace(at, methods=asking, members_of=dict.fromkeys(asking, (member,)))


def features_session(session: Session) -> Session:
    """A session on the same store in which no row is decoded for another model."""
    return replace(session, decoded=None, few=None)


def features_work(run: Run, session: Session) -> Work:
    """What the store lacks of the features of a run that needs them, at its one member."""
    quantity, (member,) = QUANTITIES[NAME], run.members
    return Work(member, {part: quantity.lacking(run, session, part) for part in quantity.parts(run, member)})


def with_effects(run: Run, session: Session, error: NoFeatures) -> Run:
    """The run with a method of effects in place of ``auto``, whose model has no features for it.

    Raises:
        NoFeatures: the error, where they were asked for by name, or there are no target rows to say effects on.
    """
    needing = [name for name, method in run.methods.items() if method.needs == NAME]
    if needing != [AUTO] or run.backbone is not None or run.spec.options.get(AUTO) or not len(run.target):
        raise error
    session.decoded = None
    return open_run(run.inputs, run.spec, session, error.what)


def with_features_there(run: Run, session: Session) -> Run:
    """The run as it turns out once its model was looked at: without features for ``auto`` that is of effects.

    Raises:
        NoFeatures: other methods need them too, or they are asked for by name.
    """
    if run.backbone is not None or not any(method.needs == NAME for method in run.methods.values()):
        return run
    work = features_work(run, session)
    if all(len(keys) == 0 for keys in work.lacking.values()):
        return run
    try:
        QUANTITIES[NAME].row_bytes(run)
    except NoFeatures as error:
        return with_effects(run, session, error)
    return run


def with_features_plan(
    described: dict[str, Any], run: Run, session: Session, estimate: bool, tried: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A run's plan (``describe_plan``), with what the model that ``--features`` names has to do in it.

    ``estimate``: where no rate is known batches are run for one; ``tried`` keeps it for plans of fewer rows.
    """
    if run.backbone is None:
        return described
    at, aside = features_run(run, session.runtime), features_session(session)
    work, estimated = features_work(at, aside), {}
    if estimate and not work.nothing and NAME not in known_rates(at, aside):
        from influence_cli.stages.run.estimate import estimated_rates

        tried = {} if tried is None else tried
        if NAME not in tried:
            tried[NAME] = estimated_rates(at, aside, [work])
        estimated = tried[NAME]
    more = describe_plan(at, aside, [work], estimated, [])
    steps = described["steps"]
    for step in more["steps"]:
        steps.append({**step, "member": len(steps), "features": run.inputs.features})
    own, added = described["seconds"], more["seconds"]
    pairs = seconds_of_pairs(at, aside)  # which both plans count
    both = {described["seconds_are"], more["seconds_are"]}
    return {
        **described,
        "rows_to_compute": described["rows_to_compute"] + sum(work.rows_in(name) for name in work.passes),
        "seconds": None if own is None or added is None else max(0.0, round(own + added - pairs, 1)),
        "seconds_are": "measured" if both == {"measured"} else "estimated",
        "start_seconds": max(described["start_seconds"], more["start_seconds"]),
        "bytes": described["bytes"] + more["bytes"],
    }

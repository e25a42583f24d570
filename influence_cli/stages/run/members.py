"""Where a run's methods take gradients: their members, and how many of them there are.

Members of an ensemble are nested (member k is the same whatever their number), so adding one is one pass and nothing
is lost.  The number that an ensemble has decided on (``stages.grads.growth``) is kept in the store under the name of
everything that defines the scores but the training rows, so that rows that are appended are the only rows computed.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from influence_cli.methods.stored import Place
from influence_cli.model.checkpoints import Trajectory
from influence_cli.settings import Options, Runtime
from influence_cli.stages.run import names
from influence_cli.stages.run.run import Ensemble, Facts, Member, Run
from influence_cli.store import Store, fingerprint


def with_members(run: Run, runtime: Runtime, store: Store) -> Run:
    """The run with the members of every method that needs a model; ensembles have as many as they have decided on."""
    if run.checkpoint is None:
        return run
    trajectory = Trajectory(run.checkpoint)
    members = {
        name: tuple(
            member_at(run, runtime, place) for place in method.places(trajectory, run.spec.seed, run.spec.params)
        )
        for name, method in run.methods.items()
        if method.needs != "nothing"
    }
    run = replace(run, members_of=members)
    return _with_ensembles(run, store)


def member_at(run: Run, runtime: Runtime, place: Place | None = None) -> Member:
    """The member at a place, or at the run's checkpoint itself."""
    assert run.model is not None
    assert run.checkpoint is not None
    place = place or Place(run.checkpoint)
    walk = {} if place.walk is None else {"walk": names.walked(run, place.checkpoint.digest, place.walk)}
    name = fingerprint(
        "member",
        1,
        weights=place.checkpoint.digest,
        model=run.model.as_dict(),
        precision=_precision(run, runtime),
        dropout=None if place.dropout is None else place.dropout.describe(),
        **walk,
    )
    return Member(name, place.checkpoint, place.dropout, place.weight, place.walk)


def _precision(run: Run, runtime: Runtime) -> str:
    """The precision as part of a name; bf16 rounds otherwise on another kind of device and in another engine."""
    if run.spec.precision != "bf16":
        return run.spec.precision
    kind = runtime.device.partition(":")[0]
    if kind == "auto":
        from influence_cli.model.build import device_of

        kind = device_of("auto").type
    return f"bf16, forward, {kind}"


def _with_ensembles(run: Run, store: Store) -> Run:
    """The run with its methods whose members decide, and those that have decided with as many as they decided on."""
    ensembles: dict[str, Ensemble] = {}
    members = dict(run.members_of)
    for name, every in run.members_of.items():
        growth = run.methods[name].growth()
        if growth is None:
            continue
        decision = fingerprint(
            "members",
            1,
            members=[member.name for member in every],
            growth=asdict(growth),
            directions=sorted(names.direction(run, every[0], objective) for objective in run.objectives),
        )
        decided = store.decisions.meta(decision)
        ensembles[name] = Ensemble(growth, every, decision, decided)
        if decided is not None:
            members[name] = every[: decided["members"]]
    return replace(run, members_of=members, ensembles=ensembles)


def planned_members(run: Run) -> dict[str, Facts]:
    """For the plan: by method the number of members that is decided, or the fewest and the most that there may be."""
    return {
        name: {
            "decided": None if ensemble.decided is None else ensemble.decided["members"],
            "least": ensemble.growth.least,
            "most": ensemble.growth.most,
        }
        for name, ensemble in run.ensembles.items()
    }


def decided_members(run: Run) -> dict[str, Facts | None]:
    """For provenance: by method what was decided, and how stable its lowest rows were then."""
    return {name: ensemble.decided for name, ensemble in run.ensembles.items()}


def decided_options(run: Run) -> Options:
    """The options of the run, with a number of members where one was decided: whoever runs them again has the same."""
    options: dict[str, dict[str, Any]] = {name: dict(given) for name, given in run.spec.options.items()}
    for name, ensemble in run.ensembles.items():
        if ensemble.decided is not None:
            options.setdefault(name, {})["members"] = ensemble.decided["members"]
    return options

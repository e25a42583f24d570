"""How many members an ensemble has, where its members decide: they are added until they suffice, and then kept.

Members are nested (member k is the same whatever their number), so adding one is one pass and nothing is lost.  After
each, ``maths.stability`` says what is known of the lowest rows; the number at which they are stable is kept in the
store under the name of everything that defines the scores but the training rows, so that rows that are appended are
the only rows computed, and in provenance as if it had been asked for.  A decision depends on distinct rows in the
order of their keys: not on the order of a manifest, nor on its ids.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.labels import of_label
from influence_cli.maths.stability import CONFIDENCE, Stability, lowest_rows_stability, members_needed
from influence_cli.methods.protocol import Growth, Linear
from influence_cli.settings import Options
from influence_cli.store import fingerprint
from influence_cli.store.keys import digest_of_sorted
from influence_cli.store.shards import key_order, unique

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.stages.run.job import Job, Member

Facts = dict[str, Any]


@dataclass(eq=False)
class Ensemble:
    """A method whose members decide how many there are, and what they have decided."""

    growth: Growth
    every: list[Member]  # the most that there can be
    decision: str  # its name in the store
    decided: Facts | None  # members, rows, what is known of their stability
    path: list[tuple[int, Stability]] = field(default_factory=list)  # of this run: members, and what they said
    rows: Rows | None = None  # the rows that ``scores`` are of
    scores: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)  # by member and objective


def open_ensembles(job: Job) -> None:
    """Find the methods whose members decide, and give those that have decided as many as they have decided on."""
    for name, method in job.methods.items():
        growth = method.growth() if isinstance(method, Linear) else None
        if growth is None:
            continue
        every = job.method_members[name]
        decision = fingerprint(
            "members",
            1,
            members=[member.name for member in every],
            growth=asdict(growth),
            directions=sorted(job.direction(every[0], objective) for objective in job.objectives),
        )
        decided = job.store.decision(decision)
        job.ensembles[name] = Ensemble(growth, every, decision, decided)
        if decided is not None:
            job.method_members[name] = every[: decided["members"]]


def begin(job: Job) -> None:
    """Before anything is computed: the fewest members for those that have not decided."""
    for name, ensemble in job.ensembles.items():
        if ensemble.decided is None:
            job.method_members[name] = ensemble.every[: ensemble.growth.least]


def grow(job: Job) -> bool:
    """Let every ensemble that has not decided do so, or add a member to it; True where something is to be computed."""
    before = {name: len(members) for name, members in job.method_members.items()}
    for name, ensemble in job.ensembles.items():
        if ensemble.decided is None:
            growth, count = ensemble.growth, before[name]
            found = _stability(job, name, ensemble)
            ensemble.path.append((count, found))
            if found.lower >= growth.stability or count == growth.most:
                ensemble.decided = _decide(job, name, ensemble)
                count = ensemble.decided["members"]
            else:
                count += 1
            job.method_members[name] = ensemble.every[:count]
    return any(len(job.method_members[name]) > count for name, count in before.items())


def _stability(job: Job, name: str, ensemble: Ensemble) -> Stability:
    """Of the least stable objective."""
    if ensemble.rows is not job.train:
        ensemble.rows = job.train
        ensemble.scores.clear()
    found: list[Stability] = []
    for objective in job.objectives:
        members = np.stack([_scores(job, name, ensemble, member, objective) for member in job.method_members[name]])
        usable = np.isfinite(members).all(axis=0)
        found.append(lowest_rows_stability(members[:, usable], ensemble.growth.share))
    return min(found, key=lambda s: (s.lower, s.expected))


def _distinct(job: Job) -> Rows:
    """The distinct training rows, in the order of their keys."""
    rows = job.train.take(unique(job.train.row_keys))
    return rows.take(key_order(rows.row_keys))


def _scores(job: Job, name: str, ensemble: Ensemble, member: Member, objective: str) -> NDArray[np.float64]:
    """One member's scores of the distinct rows, in the order of their keys."""
    known = ensemble.scores
    if (member.name, objective) not in known:
        rows = _distinct(job)
        logits = job.outputs(member).read(rows.payload_keys)["logits"]
        tangents = job.tangents(job.along(name, member, objective)).read(rows.payload_keys)["tangent"]
        with np.errstate(invalid="ignore", over="ignore"):
            known[member.name, objective] = of_label(job.row_loss.label_scores(logits, tangents), rows.labels)
    return known[member.name, objective]


def _decide(job: Job, name: str, ensemble: Ensemble) -> Facts:
    """Keep the number of members that there are now, unless another run has kept one meanwhile."""
    count, found = ensemble.path[-1]
    decided = {
        "method": name,
        "members": count,
        "stable": found.lower >= ensemble.growth.stability,
        "rows": len(_distinct(job)),
        "row_set": digest_of_sorted(_distinct(job).row_keys),
        **asdict(ensemble.growth),
        **asdict(found),
    }
    path = {
        "members": np.array([k for k, _ in ensemble.path], dtype=np.int64),
        "expected": np.array([s.expected for _, s in ensemble.path]),
        "lower": np.array([s.lower for _, s in ensemble.path]),
    }
    return job.store.keep_decision(ensemble.decision, decided, path)


def added_member(job: Job, member: Member) -> str | None:
    """What a member is called that an ensemble adds."""
    for ensemble in job.ensembles.values():
        if ensemble.decided is None and member in ensemble.every:
            return f"member {ensemble.every.index(member) + 1}, at most {ensemble.growth.most}"
    return None


def note_members(job: Job) -> None:
    """Say how many members every ensemble has decided on, and warn where the most were too few.

    Where the rows are no longer those of the decision, how stable they are now is said too; the number stays.
    """
    for name, ensemble in job.ensembles.items():
        decided = ensemble.decided
        if decided is None:
            continue
        now = ""
        if decided["row_set"] != digest_of_sorted(_distinct(job).row_keys):
            found = _stability(job, name, ensemble)
            now = f"; of these rows now {found.expected:.3f}, at least {found.lower:.3f}"
        job.listener.note(f"{name}: {_sentence(decided)}{now}")
        if not decided["stable"]:
            needed = members_needed(decided["members"], decided["lower"], decided["stability"])
            job.listener.warn(
                f"{name}: the maximum of {decided['members']} members was reached before the lowest "
                f"{100 * decided['share']:g} % of the rows were stable to {decided['stability']:g}; about {needed:,} "
                f"would be needed: pass --set {name}.max_members=N, or a lower --set {name}.stability=X"
            )


def _sentence(decided: Facts) -> str:
    return (
        f"{decided['members']} members, decided on {decided['rows']:,} rows; the lowest {100 * decided['share']:g} % "
        f"have an expected Jaccard similarity of {decided['expected']:.3f} with those of endlessly many members, at "
        f"least {decided['lower']:.3f} with {100 * CONFIDENCE:.0f} % confidence"
    )


def planned_members(job: Job) -> dict[str, Facts]:
    """For the plan: by method the number of members that is decided, or the fewest and the most that there may be."""
    return {
        name: {
            "decided": None if ensemble.decided is None else ensemble.decided["members"],
            "least": ensemble.growth.least,
            "most": ensemble.growth.most,
        }
        for name, ensemble in job.ensembles.items()
    }


def decided_members(job: Job) -> dict[str, Facts | None]:
    """For provenance: by method what was decided, and how stable its lowest rows were then."""
    return {name: ensemble.decided for name, ensemble in job.ensembles.items()}


def decided_options(job: Job) -> Options:
    """The options of the run, with a number of members where one was decided: whoever runs them again has the same."""
    options = {name: dict(given) for name, given in job.spec.options.items()}
    for name, ensemble in job.ensembles.items():
        if ensemble.decided is not None:
            options.setdefault(name, {})["members"] = ensemble.decided["members"]
    return options

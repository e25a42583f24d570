"""Training that goes on from the checkpoint: weights of members, chains of draws, and what both cost.

Nothing here imports torch: a run whose every row is stored never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.stages.run import names
from influence_cli.stages.run.curvature_plan import parameter_count
from influence_cli.stages.run.quantities import ChainPart, Part
from influence_cli.stages.run.rates import LOSS, STEP
from influence_cli.stages.run.run import Member, Run
from influence_cli.stages.run.session import Session
from influence_cli.store import Keys
from influence_cli.store.shards import unique

if TYPE_CHECKING:
    from influence_cli.model.walk import Walk

TEXTS_SEEN = 64  # fit rows of a language model whose curvature is measured: they are many tokens
SETTING_UP = 60  # passes over the fit rows that choosing a step size takes, about, in forward and backward passes


@dataclass(frozen=True)
class Further:
    """Steps of further training, and losses of rows at what they lead to."""

    method: str
    what: str
    steps: int
    gradients: int  # of rows, in all steps
    losses: int  # of rows, at all draws
    bytes: int

    @property
    def kinds(self) -> set[str]:
        """The kinds of work whose seconds a row it takes."""
        return {STEP} | ({LOSS} if self.losses else set())

    def seconds(self, rates: Mapping[str, float]) -> float:
        """Seconds of all of it, from seconds a row."""
        return self.gradients * rates[STEP] + (self.losses * rates[LOSS] if self.losses else 0.0)

    def as_dict(self, rates: Mapping[str, float]) -> dict[str, Any]:
        """Plain values, for the plan; seconds are None where a rate is not known."""
        known = self.kinds <= set(rates)
        return {**asdict(self), "seconds": round(self.seconds(rates), 1) if known else None}


def missing_phis(run: Run, session: Session, member: Member) -> tuple[str, ...]:
    """Objectives whose value at a member is needed and not stored."""
    if not any(run.methods[n].phi_at_members and member in ms for n, ms in run.members_of.items()):
        return ()
    return tuple(o for o in run.objectives if session.store.chains.read(names.phi(run, member, o)) is None)


def missing_further(run: Run, session: Session, member: Member, lacking: Mapping[Part, Keys]) -> tuple[Further, ...]:
    """What has to be trained or drawn for a member that lacks something."""
    found = [] if member.walk is None else _weights(run, session, member, member.walk)
    return (*found, *_chains(run, session, lacking))


def _weights(run: Run, session: Session, member: Member, walk: Walk) -> list[Further]:
    """The member's own weights; those of the members before it are planned with these."""
    assert run.fit is not None
    name = names.walked(run, member.checkpoint.digest, walk)
    if session.store.weights.meta(name) is not None:
        return []
    method = next(n for n, ms in run.members_of.items() if member in ms)
    rows = len(run.fit.rows)
    steps = walk.steps(rows)
    size = parameter_count(run, session) * (8 if run.spec.precision == "fp64" else 4)
    gradients = steps * min(walk.batch, rows) + rows
    return [Further(method, f"member {walk.member + 1}", steps, gradients, 0, size)]


def _chains(run: Run, session: Session, lacking: Mapping[Part, Keys]) -> list[Further]:
    """The chains of which some rows lack their moments; objectives share the draws."""
    wanted: dict[tuple[str, int], list[Keys]] = {}
    objectives: dict[tuple[str, int], int] = {}
    for part, keys in lacking.items():
        if isinstance(part, ChainPart) and len(keys):
            of = part.method, part.number
            wanted.setdefault(of, []).append(keys)
            objectives[of] = objectives.get(of, 0) + 1
    found: list[Further] = []
    set_up = set[str]()
    for (name, number), keys in wanted.items():
        assert run.fit is not None
        method, fit = run.samplers[name], len(run.fit.rows)
        known = session.store.chains.meta(names.law(run, name, run.members_of[name][0]))
        steps = method.steps(None if known is None else known["burn_in"])
        rows = len(unique(np.concatenate(keys)))
        texts = run.row_loss.draws
        gradients = steps * method.batch_of(fit, texts)
        if known is None and name not in set_up:
            gradients += SETTING_UP * (min(fit, TEXTS_SEEN) if texts else fit)
            set_up.add(name)
        observed = method.draws * (rows + len(run.target))
        size = objectives[name, number] * 8 * 12 * method.draws
        found.append(Further(name, f"chain {number + 1}", steps, gradients, observed, size))
    return found

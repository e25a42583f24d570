"""How many members an ensemble has, where its members decide: they are added until they suffice.

After each, ``maths.stability`` says what is known of the lowest rows.  A decision depends on distinct rows in the order
of their keys: not on the order of a manifest, nor on its ids.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.maths.stability import CONFIDENCE, Stability, lowest_rows_stability, members_needed
from influence_cli.stages.run import names
from influence_cli.stages.run.run import Ensemble, Facts, Member, Run
from influence_cli.stages.run.session import Session
from influence_cli.store.keys import digest_of_sorted
from influence_cli.store.shards import key_order, unique

Scores = NDArray[np.float64]


def begin(run: Run) -> Run:
    """The run before anything is computed: the fewest members for ensembles that have not decided."""
    fewest = {n: e.every[: e.growth.least] for n, e in run.ensembles.items() if e.decided is None}
    return replace(run, members_of={**run.members_of, **fewest}) if fewest else run


class Growth:
    """Lets ensembles decide how many members they have, and remembers what their members said on the way."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._path: dict[str, list[tuple[int, Stability]]] = {}  # by method: numbers of members, and what they said
        self._rows: Rows | None = None  # the rows that the scores are of
        self._scores: dict[tuple[str, str, str], Scores] = {}  # by method, member and objective

    def grown(self, run: Run, session: Session) -> Run:
        """The run where every ensemble has decided or has one member more; itself where nothing is left to decide."""
        members, ensembles = dict(run.members_of), dict(run.ensembles)
        for name, ensemble in run.ensembles.items():
            if ensemble.decided is not None:
                continue
            count, found = len(members[name]), self._stability(run, session, name)
            self._path.setdefault(name, []).append((count, found))
            if found.lower >= ensemble.growth.stability or count == ensemble.growth.most:
                decided = self._decide(run, session, name, ensemble)
                ensembles[name], count = replace(ensemble, decided=decided), decided["members"]
            else:
                count += 1
            members[name] = ensemble.every[:count]
        return (
            run
            if ensembles == run.ensembles and members == run.members_of
            else replace(run, members_of=members, ensembles=ensembles)
        )

    def _stability(self, run: Run, session: Session, name: str) -> Stability:
        """Of the least stable objective."""
        if self._rows is not run.train:
            self._rows = run.train
            self._scores.clear()
        share = run.ensembles[name].growth.share
        found: list[Stability] = []
        for objective in run.objectives:
            each = [self._scores_of(run, session, name, member, objective) for member in run.members_of[name]]
            members = np.stack(each)
            found.append(lowest_rows_stability(members[:, np.isfinite(members).all(axis=0)], share))
        return min(found, key=lambda s: (s.lower, s.expected))

    def _scores_of(self, run: Run, session: Session, name: str, member: Member, objective: str) -> Scores:
        """One member's scores of the distinct rows, in the order of their keys."""
        known = (name, member.name, objective)
        if known not in self._scores:
            rows = _distinct(run)
            logits = session.outputs(run, member).array(rows.payload_keys, "logits")
            folder = session.tangents(run, names.along(run, name, member, objective))
            tangents, found = folder.array(rows.payload_keys, "tangent"), np.empty(len(rows))
            with np.errstate(invalid="ignore", over="ignore"):
                for some in logits.blocks():
                    found[some] = run.row_loss.scores(logits[some], tangents[some], rows.labels[some])[0]
            self._scores[known] = found
        return self._scores[known]

    def _decide(self, run: Run, session: Session, name: str, ensemble: Ensemble) -> Facts:
        """Keep the number of members that there are now, unless another run has kept one meanwhile."""
        path = self._path[name]
        count, found = path[-1]
        decided = {
            "method": name,
            "members": count,
            "stable": found.lower >= ensemble.growth.stability,
            "rows": len(_distinct(run)),
            "row_set": digest_of_sorted(_distinct(run).row_keys),
            **asdict(ensemble.growth),
            **asdict(found),
        }
        said = {
            "members": np.array([k for k, _ in path], dtype=np.int64),
            "expected": np.array([s.expected for _, s in path]),
            "lower": np.array([s.lower for _, s in path]),
        }
        return session.store.keep_decision(ensemble.decision, decided, said)

    def note(self, run: Run, session: Session) -> None:
        """Say how many members every ensemble has decided on, and warn where the most were too few.

        Where the rows are no longer those of the decision, how stable they are now is said too; the number stays.
        """
        for name, ensemble in run.ensembles.items():
            decided = ensemble.decided
            if decided is None:
                continue
            now = ""
            if decided["row_set"] != digest_of_sorted(_distinct(run).row_keys):
                found = self._stability(run, session, name)
                now = f"; of these rows now {found.expected:.3f}, at least {found.lower:.3f}"
            session.listener.note(f"{name}: {_sentence(decided)}{now}")
            if not decided["stable"]:
                needed = members_needed(decided["members"], decided["lower"], decided["stability"])
                session.listener.warn(
                    f"{name}: the maximum of {decided['members']} members was reached before the lowest "
                    f"{100 * decided['share']:g}% of the rows were stable to {decided['stability']:g}; about "
                    f"{needed:,} would be needed: pass --set {name}.max_members=N, or a lower "
                    f"--set {name}.stability=X"
                )


def _distinct(run: Run) -> Rows:
    """The distinct training rows, in the order of their keys."""
    rows = run.train.take(unique(run.train.row_keys))
    return rows.take(key_order(rows.row_keys))


def _sentence(decided: Facts) -> str:
    return (
        f"{decided['members']} members, decided on {decided['rows']:,} rows; the lowest {100 * decided['share']:g}% "
        f"have an expected Jaccard similarity of {decided['expected']:.3f} with those of endlessly many members, at "
        f"least {decided['lower']:.3f} with {100 * CONFIDENCE:.0f}% confidence"
    )


def added_member(run: Run, member: Member) -> str | None:
    """What a member is called that an ensemble adds."""
    for ensemble in run.ensembles.values():
        if ensemble.decided is None and member in ensemble.every:
            return f"member {ensemble.every.index(member) + 1}, at most {ensemble.growth.most}"
    return None

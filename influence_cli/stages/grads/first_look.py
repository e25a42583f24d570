"""Is this the model that was trained?  Its accuracy on target and some training rows, said before any scoring."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.stages.grads.member_model import MemberModel
from influence_cli.stages.run import names
from influence_cli.stages.run.accuracy import predicted_right, warn_at_chance
from influence_cli.stages.run.number_quality import quality_said, warn_of_no_use
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session
from influence_cli.store import Keys
from influence_cli.store.shards import key_order, unique

if TYPE_CHECKING:
    from influence_cli.processes.group import Group
    from influence_cli.stages.grads.row_loop import Speed

SAMPLE_SHARE, SAMPLE_LEAST, SAMPLE_MOST = 0.1, 200, 1000  # training rows that are run first


class FirstLook:
    """Runs a sample of the training rows before the others, and says how good the model is once they are through.

    A few new rows say nothing of the model: where fewer are run than a sample has, only the target's accuracy is said.
    """

    def __init__(self, run: Run, session: Session) -> None:
        self.run, self.session, self.seen = run, session, 0
        self.keys, self.labels = run.manifest.payload_keys, run.manifest.labels
        self.least = min(SAMPLE_LEAST, len(run.payload_keys)) if run.members_of else 0
        self.wanted: set[int] = set()
        self.outputs: list[NDArray[np.floating]] = []  # of the rows of the sample, and their labels
        self.of: list[Any] = []
        self.said = False

    def sample(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(rows to run first, the others), each in order; the first are chosen by their payload keys."""
        if self.said:
            return rows[:0], rows
        count = int(np.clip(SAMPLE_SHARE * len(rows), SAMPLE_LEAST, SAMPLE_MOST))
        keys = self.keys[rows]
        order = key_order(keys)
        first = np.zeros(len(rows), dtype=bool)
        first[order[:count]] = True
        self.wanted = set(rows[first].tolist())
        return rows[first], rows[~first]

    def apart(self, speed: Speed, group: Group) -> Iterator[Speed]:
        """The same loop in two, so that several processes have all of the sample before the first says how good it is.

        What each has seen of the sample is put together once its loop is over.
        """
        parts = functools.lru_cache(maxsize=None)(lambda rows: self.sample(np.frombuffer(rows, dtype=np.int64)))
        yield replace(speed, segments=lambda rows: parts(rows.tobytes())[:1])
        found = group.exchange((self.outputs, self.of, self.seen))
        if group.rank == 0 and not self.said:
            self.outputs, self.of = ([part for one in found for part in one[k]] for k in (0, 1))
            self.seen = sum(one[2] for one in found)
            if self.seen:
                self.say(self.run)
        self.said = self.said or group.rank > 0
        yield replace(speed, segments=lambda rows: parts(rows.tobytes())[1:])

    def count(
        self, run: Run, rows: NDArray[np.int64], logits: NDArray[np.floating], shared: Group | None = None
    ) -> None:
        """Count the rows of a batch that belong to the sample; says the accuracy once all of it was seen.

        Of several processes none has seen all of it (``apart``).
        """
        if self.said:
            return
        chosen = np.array([row in self.wanted for row in rows.tolist()])
        self.outputs.append(logits[chosen])
        self.of.append(self.labels[rows][chosen])
        self.seen += int(chosen.sum())
        if self.seen >= len(self.wanted) and shared is None:
            self.say(run)

    def say(self, run: Run) -> None:
        """Say what is known, once."""
        if self.said:
            return
        self.said = True
        known: dict[str, tuple[float, int]] = {}
        z, y = (np.concatenate(parts or [np.zeros(0)]) for parts in (self.outputs, self.of))
        if self.seen and len(self.wanted) >= self.least:
            hits = run.row_loss.hits(z, y)
            if hits is not None:
                known["train"] = (float(hits.mean()), self.seen)
            else:
                measures = run.row_loss.quality(z, y)
                self.session.listener.note(f"before scoring: train {quality_said(measures)} ({self.seen:,} rows)")
                warn_of_no_use(self.session, measures, len(y))
        target = target_accuracy(run, self.session)
        if target is not None:
            known["target"] = target
        if known:
            parts = [f"{name} accuracy {a:.1%} ({n:,} rows)" for name, (a, n) in known.items()]
            self.session.listener.note("before scoring: " + ", ".join(parts))
            seen = (z.argmax(axis=1), y.astype(np.int64)) if self.outputs and run.row_loss.by_class else None
            warn_at_chance(run, self.session, known, seen)


def target_accuracy(run: Run, session: Session) -> tuple[float, int] | None:
    """Accuracy and number of the target rows: where their direction was measured, else from their stored logits."""
    if run.model is None:
        return None
    plain = run.plain_member()
    for objective in run.objectives if plain in run.linear_members() else ():
        meta = session.store.directions.meta(names.direction(run, plain, objective))
        if meta is not None:
            return None if meta["accuracy"] is None else (meta["accuracy"], meta["m"])
    rows = run.target
    if run.row_loss.by_class:
        rows = rows.take(rows.labels < run.model.num_classes)
    stored = ~session.outputs(run, plain).missing(rows.payload_keys)
    if not stored.any():
        return None
    rows = rows.take(stored)
    hits = predicted_right(run, session.outputs(run, plain).array(rows.payload_keys, "logits"), rows.labels)
    return None if hits is None else (float(hits.mean()), len(rows))


def run_target(run: Run, session: Session, at: MemberModel) -> None:
    """Logits of some target rows, for runs that measure no direction on them; undecodable rows are passed by."""
    folder = session.outputs(run, at.member)
    rows = run.target.take(folder.missing(run.target.payload_keys))
    chosen = rows.take(np.sort(key_order(rows.payload_keys)[:SAMPLE_MOST]))
    chosen, keys, logits = chosen.take(unique(chosen.payload_keys)), list[Keys](), list[NDArray[np.floating]]()
    for batch in session.rows(require_model(run)[0], chosen, 64, lambda *_: None, keep=False):
        logits.append(at.point.outputs(batch.on(at.point), [])[0].cpu().numpy())
        keys.append(batch.payload_keys)
    if keys:
        folder.write(np.concatenate(keys), {"logits": np.concatenate(logits)})

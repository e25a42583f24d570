"""Is this the model that was trained?  Its accuracy on target and some training rows, said before any scoring."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from influence_cli.stages.run.job import Job
from influence_cli.stages.score.noise import warn_at_chance
from influence_cli.store.shards import key_order

if TYPE_CHECKING:
    from influence_cli.engines.point import Point

SAMPLE_SHARE, SAMPLE_LEAST, SAMPLE_MOST = 0.1, 200, 1000  # training rows that are run first


class FirstLook:
    """Runs a sample of the training rows before the others, and says how good the model is once they are through.

    A few new rows say nothing of the model: where fewer are run than a sample has, only the target's accuracy is said.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.hits, self.seen = job, 0, 0
        self.least = min(SAMPLE_LEAST, len(job.payload_keys)) if job.method_members else 0
        self.wanted: set[int] = set()
        self.said = False

    def sample(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(rows to run first, the others), each in order; the first are chosen by their payload keys."""
        if self.said:
            return rows[:0], rows
        count = int(np.clip(SAMPLE_SHARE * len(rows), SAMPLE_LEAST, SAMPLE_MOST))
        keys = self.job.manifest.payload_keys[rows]
        order = key_order(keys)
        first = np.zeros(len(rows), dtype=bool)
        first[order[:count]] = True
        self.wanted = set(rows[first].tolist())
        return rows[first], rows[~first]

    def saw(self, rows: NDArray[np.int64], logits: NDArray[np.floating]) -> None:
        """Count the rows of a batch that belong to the sample; says the accuracy once all of it was seen."""
        if self.said:
            return
        chosen = np.array([row in self.wanted for row in rows.tolist()])
        labels = self.job.manifest.labels[rows]
        self.hits += int((logits.argmax(axis=1) == labels)[chosen].sum())
        self.seen += int(chosen.sum())
        if self.seen >= len(self.wanted):
            self.say()

    def say(self) -> None:
        """Say what is known, once."""
        if self.said:
            return
        self.said = True
        known: dict[str, tuple[float, int]] = {}
        if self.seen and len(self.wanted) >= self.least:
            known["train"] = (self.hits / self.seen, self.seen)
        target = target_accuracy(self.job)
        if target is not None:
            known["target"] = target
        if known:
            parts = [f"{name} accuracy {a:.1%} ({n:,} rows)" for name, (a, n) in known.items()]
            self.job.listener.note("before scoring: " + ", ".join(parts))
            warn_at_chance(self.job, known)


def target_accuracy(job: Job) -> tuple[float, int] | None:
    """Accuracy and number of the target rows: where their direction was measured, else from their stored logits."""
    if job.model is None:
        return None
    plain = job.plain_member()
    for objective in job.objectives if plain in job.linear_members() else ():
        meta = job.store.direction_meta(job.direction(plain, objective))
        if meta is not None:
            return meta["accuracy"], meta["m"]
    rows = job.target.take(job.target.labels < job.model.num_classes)
    stored = ~job.outputs(plain).missing(rows.payload_keys)
    if not stored.any():
        return None
    rows = rows.take(stored)
    hits = job.outputs(plain).read(rows.payload_keys)["logits"].argmax(axis=1) == rows.labels
    return float(hits.mean()), len(rows)


def run_target(job: Job, point: Point) -> None:
    """Logits of some target rows, for runs that measure no direction on them; undecodable rows are passed by."""
    from influence_cli.model.examples import batches, chunked, move, to_input

    assert job.model is not None
    folder = job.outputs(job.plain_member())
    rows = job.target.take(folder.missing(job.target.payload_keys))
    if len(rows) == 0:
        return
    keys = rows.payload_keys
    order = key_order(keys)[:SAMPLE_MOST]
    chosen = rows.take(np.sort(order))
    place = dict(zip(chosen.index.tolist(), range(len(chosen)), strict=True))
    done: dict[bytes, NDArray[np.floating]] = {}
    chunks = chunked(chosen.manifest.payloads(chosen.index), 64)
    for index, decoded in batches(chosen.manifest, chunks, job.model, job.runtime.workers, lambda *_: None):
        z, _ = point.outputs(to_input(move(decoded, point.device), job.model, point.dtype), [])
        for row, values in zip(index.tolist(), z.cpu().numpy(), strict=True):
            done[chosen.payload_keys[place[row]].tobytes()] = values
    if done:
        stacked = np.frombuffer(b"".join(done), dtype=np.uint8).reshape(-1, keys.shape[1])
        folder.write(stacked, {"logits": np.stack(list(done.values()))})

"""The one loop over rows: what lacks something is decoded, computed and stored, batch by batch.

Rows that lack the same things share a batch.  Every full shard is written as soon as it is complete, so a run that is
stopped has lost only the rows in hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.data.row_checks import BadRow
from influence_cli.stages.grads.shard_writer import ShardWriter, Write
from influence_cli.stages.run.quantities import QUANTITIES, Part, first_rows
from influence_cli.stages.run.rates import Stopwatch
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Batch, Session
from influence_cli.store import Keys
from influence_cli.store.shards import Arrays, positions

if TYPE_CHECKING:
    from influence_cli.data.manifest import Payload

Parts = tuple[Part, ...]
Waits = Callable[[], dict[Part, Arrays]]  # arrays [b, ...] of each part, once they have arrived
Compute = Callable[[Batch, Parts], Waits]
Segments = Callable[[NDArray[np.int64]], Iterable[NDArray[np.int64]]]


@dataclass(frozen=True)
class Looped:
    """What a loop has done."""

    rows: int
    seconds: float
    bad: list[BadRow]  # rows that turned out not to be decodable, and all others of the same payload
    watch: Stopwatch = field(default_factory=Stopwatch)

    def remember_rate(self, session: Session, key: str) -> Looped:
        """Keep the seconds a row for the next plan, where there were rows."""
        self.watch.remember(session, key)
        return self


@dataclass(frozen=True)
class Speed:
    """How a loop goes over its rows."""

    size: Callable[[], int]  # rows of the next batch
    took: Callable[[Parts, int, float], None] = lambda *_: None  # told after each batch: parts, rows, seconds
    at_once: int = 1  # batches under way, while results come back from an accelerator
    segments: Segments = lambda rows: [rows]  # the order of the manifest rows, in pieces that are run one after another


def loop_over(
    run: Run, session: Session, rows: Rows, lacking: dict[Part, Keys], compute: Compute, what: str, speed: Speed,
    write: Write | None = None, skip_bad: bool | None = None,
) -> Looped:  # fmt: skip
    """Compute and store, for rows of one manifest, what each part lacks of them (keys [n, 16]).

    ``write`` stores a shard, of no more rows than a shard is to have; without it each part is stored in its folder.

    Raises:
        ManifestError: a row cannot be decoded, and bad rows are not skipped.
    """
    wanted = {part: keys for part, keys in lacking.items() if len(keys)}
    if not wanted:
        return Looped(0, 0.0, [])
    keyed = _keys_of(rows, next(iter(wanted)))
    needs = _needs(rows, keyed, wanted)
    if not needs:
        return Looped(0, 0.0, [])  # a pass before has left them out
    key_of = {row: keyed[k] for row, k in first_rows(rows, keyed).items() if row in needs}
    unusable: dict[int, str] = {}
    skipping = run.inputs.skip_bad if skip_bad is None else skip_bad
    writer, waiting = ShardWriter(session.runtime.shard_rows, write is None), list[tuple[Batch, Parts, Waits]]()
    started = last = time.perf_counter()
    watch = Stopwatch()

    def keep() -> None:
        nonlocal last
        batch, parts, arrays = waiting.pop(0)
        keys = np.stack([key_of[row] for row in batch.index.tolist()])
        for part, found in arrays().items():
            quantity = QUANTITIES[part.quantity]
            more = {} if quantity.key == "payload" else {"payload_keys": batch.payload_keys}
            writer.add(part, write or quantity.folder(run, session, part).write, keys, {**found, **more})
        progress.advance(len(batch.index))
        speed.took(parts, len(batch.index), time.perf_counter() - last)
        last = time.perf_counter()
        watch.lap(len(batch.index))

    try:
        with session.listener.progress(what, len(needs)) as progress:
            chunks = _chunks(rows, needs, speed)
            listen = unusable.__setitem__ if skipping else None
            for batch in session.rows(require_model(run)[0], rows, chunks, listen):
                parts = needs[int(batch.index[0])]
                waiting.append((batch, parts, compute(batch, parts)))
                if len(waiting) >= speed.at_once:
                    keep()
            while waiting:
                keep()
    except KeyboardInterrupt:
        writer.flush()
        raise
    writer.flush()
    watch.flushed()
    return Looped(len(needs), time.perf_counter() - started, bad_rows(run, session, rows, unusable), watch)


def _keys_of(rows: Rows, part: Part) -> Keys:
    return rows.payload_keys if QUANTITIES[part.quantity].key == "payload" else rows.row_keys


def _needs(rows: Rows, keyed: Keys, wanted: dict[Part, Keys]) -> dict[int, Parts]:
    """By manifest row, one for each distinct key: the parts that lack it."""
    first = first_rows(rows, keyed)
    at = np.array(list(first.values()), dtype=np.int64)
    lacks = {part: positions(keyed[at], keys) >= 0 for part, keys in wanted.items()}
    found = {row: tuple(part for part in wanted if lacks[part][k]) for k, row in enumerate(first)}
    return {row: parts for row, parts in found.items() if parts}


def _chunks(rows: Rows, needs: dict[int, Parts], speed: Speed) -> Iterator[list[tuple[int, Payload]]]:
    """Chunks of (row, payload) whose rows lack the same parts."""
    from influence_cli.model.examples import alike, wasteful

    kind = rows.manifest.payload_kind
    for segment in speed.segments(np.array(sorted(needs), dtype=np.int64)):
        waiting: dict[Parts, list[tuple[int, Payload]]] = {}
        payloads = rows.manifest.payloads(segment) if len(segment) else ()
        for row, payload in alike(payloads, kind, speed.size()):
            chunk = waiting.setdefault(needs[row], [])
            if wasteful(chunk, (row, payload), kind, speed.size()):
                yield chunk
                chunk = waiting[needs[row]] = []
            chunk.append((row, payload))
            if len(chunk) >= speed.size():
                yield waiting.pop(needs[row])
        yield from waiting.values()


def bad_rows(run: Run, session: Session, rows: Rows, unusable: dict[int, str]) -> list[BadRow]:
    """Rows that could not be decoded, with every other row of the same payload; images among them are remembered."""
    if not unusable:
        return []
    manifest, (model, _) = rows.manifest, require_model(run)
    reasons = {manifest.payload_keys[row].tobytes(): reason for row, reason in unusable.items()}
    decoder = model.payload_kind.decoder(model)
    if decoder is not None:
        session.store.write_undecodable(decoder, {key.hex(): reason for key, reason in reasons.items()})
    same = {row: reasons.get(key.tobytes()) for row, key in zip(rows.index.tolist(), rows.payload_keys, strict=True)}
    return [BadRow(r, manifest.ids[r], manifest.payload_kind.column, why) for r, why in same.items() if why is not None]

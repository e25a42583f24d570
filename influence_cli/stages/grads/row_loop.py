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
from influence_cli.stages.run.quantities import QUANTITIES, Part
from influence_cli.stages.run.rates import Stopwatch
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Batch, Session
from influence_cli.store import Keys
from influence_cli.store.keys import stack
from influence_cli.store.shards import Arrays, positions, unique

if TYPE_CHECKING:
    from influence_cli.data.manifest import Payload
    from influence_cli.processes.group import Group

UNITS = 64  # at least, that the rows of a loop are divided into

Parts = tuple[Part, ...]
Waits = Callable[[], dict[Part, Arrays]]  # arrays [b, ...] of each part, once they have arrived
Compute = Callable[[Batch, Parts], Waits]
Segments = Callable[[NDArray[np.int64]], Iterable[NDArray[np.int64]]]
Chunks = Iterable[list[tuple[int, "Payload"]]]
Source = Callable[[Rows, Chunks], Iterable[Batch]]  # what stands in the place of decoded rows


@dataclass(frozen=True)
class Looped:
    """What a loop has done."""

    rows: int
    seconds: float
    bad: list[BadRow]  # rows that turned out not to be decodable, and all others of the same payload
    watch: Stopwatch = field(default_factory=Stopwatch)

    def remember_rate(self, session: Session, key: str) -> Looped:
        """Keep the seconds a row for the next plan, where there were rows: of several processes those of the first."""
        if not session.sharing or session.group is None or session.group.rank == 0:
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
    write: Write | None = None, skip_bad: bool | None = None, source: Source | None = None,
) -> Looped:  # fmt: skip
    """Compute and store, for rows of one manifest, what each part lacks of them (keys [n, 16]).

    ``write`` stores a shard, of no more rows than a shard is to have; without it each part is stored in its folder.
    A ``source`` gives the batches in the place of decoding them.

    Raises:
        ManifestError: a row cannot be decoded, and bad rows are not skipped.
    """
    wanted = {part: keys for part, keys in lacking.items() if len(keys)}
    if not wanted:
        return Looped(0, 0.0, [])
    by_payload = QUANTITIES[next(iter(wanted)).quantity].key == "payload"
    keyed = rows.payload_keys if by_payload else rows.row_keys
    needs = Needs.of(rows, keyed, wanted)
    if not len(needs):
        return Looped(0, 0.0, [])  # a pass before has left them out
    unusable: dict[int, str] = {}
    skipping = run.inputs.skip_bad if skip_bad is None else skip_bad
    divided = Divided.of(session, len(needs), speed.size()) if session.sharing else None
    shard_rows = session.runtime.shard_rows if divided is None else divided.unit
    writer, waiting = ShardWriter(shard_rows, write is None), list[tuple[Batch, Parts, Waits]]()
    started = last = time.perf_counter()
    watch = Stopwatch()

    def keep() -> None:
        nonlocal last
        batch, parts, arrays = waiting.pop(0)
        keys = batch.payload_keys if by_payload else batch.row_keys
        for part, found in arrays().items():
            quantity = QUANTITIES[part.quantity]
            more = {} if quantity.key == "payload" else {"payload_keys": batch.payload_keys}
            writer.add(part, write or quantity.folder(run, session, part).write, keys, {**found, **more})
        progress.advance(len(batch.index) + (0 if divided is None else divided.elsewhere()))
        speed.took(parts, len(batch.index), time.perf_counter() - last)
        last = time.perf_counter()
        watch.lap(len(batch.index))

    try:
        with session.listener.progress(what, len(needs)) as progress:
            chunks = _chunks(rows, needs, speed, divided)
            listen = unusable.__setitem__ if skipping else None
            for batch in source(rows, chunks) if source else session.rows(require_model(run)[0], rows, chunks, listen):
                parts = needs.parts[needs.code[int(batch.index[0])]]
                waiting.append((batch, parts, compute(batch, parts)))
                if len(waiting) >= speed.at_once:
                    keep()
            while waiting:
                keep()
            if divided is not None:
                progress.advance(divided.elsewhere())
    except KeyboardInterrupt:
        writer.flush()
        raise
    writer.flush()
    watch.flushed()
    return Looped(len(needs), time.perf_counter() - started, bad_rows(run, session, rows, unusable), watch)


@dataclass(frozen=True, eq=False)
class Needs:
    """The manifest rows [m] to be run, ascending, one for each distinct key; and which parts lack each of them."""

    rows: NDArray[np.int64]
    code: memoryview  # by manifest row: which of ``parts`` lack it, as two bytes
    parts: list[Parts]

    @staticmethod
    def of(rows: Rows, keyed: Keys, wanted: dict[Part, Keys]) -> Needs:
        """What each part lacks (keys [m, 16]) of rows of keys [n, 16]."""
        first = unique(keyed)
        distinct = keyed if len(first) == len(keyed) else keyed[first]
        number = np.zeros(len(first), dtype=np.int16)
        sets: list[Parts] = [()]
        for part, keys in wanted.items():
            lacks = np.ones(len(first), bool) if np.array_equal(keys, distinct) else positions(distinct, keys) >= 0
            more = {code: len(sets) + k for k, code in enumerate(np.unique(number[lacks]).tolist())}
            sets += [(*sets[code], part) for code in more]
            moved = np.arange(len(sets), dtype=np.int16)
            moved[list(more)] = list(more.values())
            number = np.where(lacks, moved[number], number)
        needed = np.flatnonzero(number)
        found = rows.index[first[needed]]
        code = np.zeros(len(rows.manifest), dtype=np.int16)
        code[found] = number[needed]
        return Needs(np.sort(found), code.data, sets)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(eq=False)
class Divided:
    """The rows of a loop by units, each of which one of several processes runs.

    Units depend on the number of rows alone, so that shards are the same however many processes there are.
    """

    group: Group
    unit: int  # rows
    passed: int = 0  # rows that others run, as far as this process knows
    told: int = 0  # how many of them were counted

    @staticmethod
    def of(session: Session, rows: int, batch: int) -> Divided:
        """Units as large as a shard is to be, smaller where there would be few of them, but no less than a batch."""
        assert session.group is not None
        return Divided(session.group, max(1, min(session.runtime.shard_rows, max(batch, -(-rows // UNITS)))))

    def elsewhere(self) -> int:
        """Rows that others run, and were not counted yet."""
        new, self.told = self.passed - self.told, self.passed
        return new

    def own(self, payloads: Iterable[tuple[int, Payload]], count: int) -> Iterator[list[tuple[int, Payload]]]:
        """The payloads of the units, of ``count`` rows, that this process takes; all are read, and others' let go."""
        units = self.group.units(-(-count // self.unit))
        mine = next(units, None)
        held: list[tuple[int, Payload]] = []
        for k, one in enumerate(payloads):
            if held and k // self.unit != mine:
                yield held
                mine, held = next(units, None), []
                self.passed += (count if mine is None else mine * self.unit) - k
            if mine is None:
                return
            if k // self.unit == mine:
                held.append(one)
        if held:
            yield held
            next(units, None)  # none is left


def _pieces(
    rows: Rows, segments: Iterable[NDArray[np.int64]], divided: Divided | None
) -> Iterator[Iterable[tuple[int, Payload]]]:
    """(row, payload) of rows in order, in pieces that are run one after another."""
    for segment in segments:
        payloads = rows.manifest.payloads(segment) if len(segment) else ()
        if divided is None:
            yield payloads
        else:
            yield from divided.own(payloads, len(segment))


def _chunks(
    rows: Rows, needs: Needs, speed: Speed, divided: Divided | None = None
) -> Iterator[list[tuple[int, Payload]]]:
    """Chunks of (row, payload) whose rows lack the same parts."""
    from influence_cli.model.examples import alike, wasteful

    kind, segments = rows.manifest.payload_kind, speed.segments(needs.rows)
    for payloads in _pieces(rows, segments, divided):
        waiting: dict[Parts, list[tuple[int, Payload]]] = {}
        for row, payload in alike(payloads, kind, speed.size()):
            parts = needs.parts[needs.code[row]]
            chunk = waiting.setdefault(parts, [])
            if wasteful(chunk, (row, payload), kind, speed.size()):
                yield chunk
                chunk = waiting[parts] = []
            chunk.append((row, payload))
            if len(chunk) >= speed.size():
                yield waiting.pop(parts)
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
    where = positions(rows.payload_keys, stack(list(reasons)))
    same, why = rows.index[where >= 0].tolist(), list(reasons.values())
    column = manifest.payload_kind.column
    return [BadRow(r, manifest.ids[r], column, why[k]) for r, k in zip(same, where[where >= 0].tolist(), strict=True)]

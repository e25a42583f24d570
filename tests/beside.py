"""Processes of a run played by threads, so that what is divided can be tested without starting any."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from influence_cli.processes import messages
from influence_cli.processes.group import Group, Job, PeerLost
from influence_cli.processes.messages import packed, unpacked
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.run.open import open_run
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.score import score
from tests.cases import Heard

if "tests" not in messages.OURS:
    messages.OURS.append("tests")  # jobs of tests are sent too


class Meeting:
    """Where threads meet; a thread that is gone breaks it."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.lock = threading.Lock()
        self.given: list[Any] = [None] * size
        self.counted, self.marks = Counter[str](), set[str]()

    def all(self, rank: int, value: Any) -> list[Any]:
        """What every thread gives."""
        try:
            self.given[rank] = value
            self.barrier.wait()
            found = list(self.given)
            self.barrier.wait()
            return found
        except threading.BrokenBarrierError as error:
            raise PeerLost(str(error)) from error


class ThreadGroup(Group):
    """One of several threads; what they give each other are messages, as between processes."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(rank, len(meeting.given), rank)
        self.meeting = meeting
        self.taken: list[int] = []  # units of this thread

    def _gather(self, value: Any) -> list[Any]:
        return [unpacked(v) for v in self.meeting.all(self.rank, packed(value))]

    def _handed(self, job: Job | None) -> Job | None:
        return unpacked(self.meeting.all(self.rank, packed(job))[0])

    def _add_up(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            every = self.meeting.all(self.rank, tensor.clone())
            tensor.copy_(torch.stack(every).sum(0))

    def _next(self, name: str) -> int:
        with self.meeting.lock:
            self.meeting.counted[name] += 1
            k = self.meeting.counted[name] - 1
        self.taken.append(k)
        return k

    def _mark(self, name: str) -> None:
        self.meeting.marks.add(name)

    def _marked(self, name: str) -> bool:
        return name in self.meeting.marks


def together(size: int, lead: Callable[[ThreadGroup], Any]) -> tuple[Any, list[ThreadGroup]]:
    """What ``lead`` returns of the first of so many threads, which the others help; and all of them."""
    meeting = Meeting(size)
    groups = [ThreadGroup(rank, meeting) for rank in range(size)]
    failed: list[BaseException] = []

    def follow(group: ThreadGroup) -> None:
        try:
            group.serve()
        except BaseException as error:
            failed.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=follow, args=(group,)) for group in groups[1:]]
    for thread in threads:
        thread.start()
    try:
        found = lead(groups[0])
    except BaseException:
        if not meeting.barrier.broken:
            groups[0].end()
        raise
    else:
        groups[0].end()
    finally:
        for thread in threads:
            thread.join(60)
    assert failed == []
    return found, groups


def scores_of(
    manifest: Path, run: Path, store: Path, group: Group | None, methods: tuple[str, ...], **spec: Any
) -> tuple[pa.Table, Heard]:
    """Scores by a run whose work is divided among the processes of a group."""
    heard = Heard()
    session = Session.open(Runtime(store=str(store), batch_size=16), heard)
    session.group = group
    opened = open_run(
        Inputs(str(manifest), checkpoint=str(run), skip_bad=True), GradSpec(methods=methods, **spec), session
    )
    return score(opened, session)[0], heard


def not_of_time(notes: list[str]) -> list[str]:
    """Notes but for the engine's: which it is may be told by seconds."""
    return [note for note in notes if " engine: " not in note]


def apart(a: pa.Table, b: pa.Table) -> float:
    """The largest difference of a score, as a share of the largest score."""
    assert a.column("id").equals(b.column("id"))
    columns = [name for name in a.column_names if name.startswith("score")]
    assert columns
    pairs = [(a.column(name).to_numpy(), b.column(name).to_numpy()) for name in columns]
    return max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in pairs)

"""A job that several processes do together, and the group of them as one of them sees it."""

from __future__ import annotations

import contextlib
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from influence_cli.errors import InfluenceError
from influence_cli.processes.messages import BadMessage, may_be_sent, packed

if TYPE_CHECKING:
    from torch import Tensor


class PeerLost(Exception):
    """Another process of the run is gone."""


@may_be_sent
class Job:
    """Something that every process of a run does its part of.  What it holds is sent (``messages``), but ``here``."""

    lockstep: ClassVar[bool] = False  # whether processes wait for each other inside, so that an error ends this one...
    alike: ClassVar[tuple[type[Exception], ...]] = ()  # ... but for those that all of them come to at once
    ahead: ClassVar[bool] = False  # whether it is announced, and only prepares who does it
    here: Any = None  # of the leader, which has opened already what the others open

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "here"}

    def part(self, group: Group) -> Any:
        """Do this process's part; what is returned goes to the leader."""
        raise NotImplementedError


class _Ended(Exception):
    """The job is over in every process, since one of them could not go on."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Abandoned(Exception):
    """Another process cannot go on: what is in hand is let go."""


class Group(ABC):
    """The processes of a run, as one of them sees them."""

    def __init__(self, rank: int, size: int, local: int = 0) -> None:
        self.rank, self.size, self.local = rank, size, local
        self.opened: dict[str, Any] = {}  # what jobs have opened here, for those that follow
        self.stuck = False  # whether the others wait for this process within a job
        self.jobs = self.divided = 0  # jobs so far, and what was divided in the last one

    # ---- how processes reach each other

    @abstractmethod
    def _gather(self, value: Any) -> list[Any]:
        """What every process gives, by rank, once all of them are here."""

    @abstractmethod
    def _handed(self, job: Job | None) -> Job | None:
        """What the leader gives; ``job`` is its own."""

    @abstractmethod
    def _add_up(self, tensors: list[Tensor]) -> None:
        """Put the sum over the processes in the place of every tensor."""

    @abstractmethod
    def _next(self, name: str) -> int:
        """How often any process has asked for this name before."""

    @abstractmethod
    def _mark(self, name: str) -> None:
        """Let all processes see a mark."""

    @abstractmethod
    def _marked(self, name: str) -> bool:
        """Whether a process has set a mark."""

    # ---- jobs

    def share(self, job: Job) -> list[Any]:
        """Do a job together with the others; what each returned, by rank.  Of the leader alone.

        Raises:
            Exception: what the first process that could not do its part raised.
        """
        self._handed(job)
        found = self._do(job)
        assert found is not None
        return found

    def announce(self, job: Job) -> None:
        """Have the others do a job that prepares them, while this process goes on.  Of the leader alone.

        What goes wrong in it they keep to themselves: who needs what it was to prepare comes to the same error.
        """
        self._handed(job)
        self.jobs, self.divided = self.jobs + 1, 0

    def serve(self) -> None:
        """Do the jobs that the leader hands out, until there are no more."""
        while (job := self._handed(None)) is not None:
            if not job.ahead:
                self._do(job)
                continue
            self.jobs, self.divided = self.jobs + 1, 0
            with contextlib.suppress(Exception):
                job.part(self)

    def end(self) -> None:
        """There are no more jobs."""
        self._handed(None)

    def _do(self, job: Job) -> list[Any] | None:
        self.jobs, self.divided = self.jobs + 1, 0
        own: Exception | None = None
        try:
            try:
                found = job.part(self)
            except (_Ended, PeerLost):
                raise
            except _Abandoned:
                found = None
            except Exception as error:
                if job.lockstep and not isinstance(error, job.alike):
                    self.stuck = True
                    if _is_of_peers(error):
                        raise PeerLost(str(error)) from error
                    raise
                own, found = error, None
            return self.exchange(found, own)
        except _Ended as ended:
            if self.rank == 0:
                raise own or ended.error from own
            return None

    def exchange(self, value: Any, error: Exception | None = None) -> list[Any]:
        """What every process gives, by rank: a point of a job that all of them come to."""
        if error is not None:
            self._mark(self._failure)
        parts = self._gather((value, None if error is None else self._carried(error)))
        first = next((e for _, e in parts if e is not None), None)
        if first is not None:
            raise _Ended(first)
        return [v for v, _ in parts]

    def add_up(self, tensors: list[Tensor]) -> None:
        """Put the sum over the processes in the place of every tensor, whose bits are then the same in all."""
        self.exchange(None)
        self._add_up(tensors)

    def add_up_now(self, tensor: Tensor) -> None:
        """Put the sum over the processes in the place of a tensor, in the midst of a job in lockstep."""
        self._add_up([tensor])

    def mean(self, tensor: Tensor) -> None:
        """Put the mean over the processes in the place of a tensor, in the midst of a job in lockstep."""
        self._add_up([tensor])
        tensor /= self.size

    def units(self, count: int) -> Iterator[int]:
        """Numbers below ``count``, each of which one process gets: whoever is free takes the next one.

        Every process asks for as many series of units in a job, in the same order.
        """
        self.divided += 1
        counter = f"{self.jobs}/{self.divided}"
        while (k := self._next(counter)) < count:
            if self._marked(self._failure):
                raise _Abandoned
            yield k

    def device(self, asked: str) -> str:
        """The device of this process, which has an accelerator of its own where there are as many."""
        if asked not in ("auto", "cuda"):
            return asked
        import torch

        return f"cuda:{self.local % torch.cuda.device_count()}" if torch.cuda.is_available() else asked

    @property
    def _failure(self) -> str:
        return f"{self.jobs}/failed"

    def _carried(self, error: Exception) -> Exception:
        """An error that another process can be given, with where it was raised."""
        if self.rank:
            error.add_note(f"in process {self.rank}:\n{''.join(traceback.format_exception(error)).rstrip()}")
        with contextlib.suppress(BadMessage):  # it holds what is not sent
            if isinstance(error, InfluenceError | OSError | MemoryError):
                packed(error)
                return error
        told = RuntimeError(f"{type(error).__name__}: {error}")
        told.__notes__ = list(getattr(error, "__notes__", ()))
        return told


def _is_of_peers(error: BaseException) -> bool:
    """Whether what torch raises is about another process."""
    words = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)

"""Processes that ``torchrun`` has started, and how they reach each other: gloo, and nccl between accelerators."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from influence_cli.processes.group import Group, Job, PeerLost
from influence_cli.processes.messages import packed, unpacked
from influence_cli.processes.seat import Seat

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_DAYS = 30  # that a process waits for another, which may be busy alone


class TorchGroup(Group):
    """Processes that ``torchrun`` has started: gloo between processors, nccl between accelerators of their own."""

    def __init__(self, seat: Seat) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        super().__init__(*seat)
        longest = timedelta(days=LONGEST_DAYS)
        self._dist = dist
        with _told():
            shared, rank, size = next(iter(rendezvous("env://")))
            shared.set_timeout(longest)
            # the store outlives a restart: addresses and counts of the processes before would be taken for those of now
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = dist.PrefixStore(f"influence/{attempt}", shared)  # pyright: ignore[reportPrivateImportUsage]
            alone = torch.cuda.is_available() and torch.cuda.device_count() >= int(
                os.environ.get("LOCAL_WORLD_SIZE", seat.size)
            )
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if alone else "gloo", timeout=longest, rank=rank, world_size=size,
                store=dist.PrefixStore("group", self._store),  # pyright: ignore[reportPrivateImportUsage]
            )  # fmt: skip

    def _gather(self, value: Any) -> list[Any]:
        import torch

        own = _as_tensor(packed(value))
        with _told():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            self._dist.all_gather(sizes, torch.tensor([len(own)]))
            longest = max(int(size) for size in sizes)  # a collective takes tensors of one size
            parts = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
            self._dist.all_gather(parts, torch.cat([own, torch.zeros(longest - len(own), dtype=torch.uint8)]))
        return [unpacked(part.numpy().tobytes()[: int(size)]) for part, size in zip(parts, sizes, strict=True)]

    def _handed(self, job: Job | None) -> Job | None:
        import torch

        own = _as_tensor(packed(job) if self.rank == 0 else b"")
        with _told():
            size = torch.tensor([len(own)])
            self._dist.broadcast(size, src=0)
            given = own if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
            self._dist.broadcast(given, src=0)
        return job if self.rank == 0 else unpacked(given.numpy().tobytes())

    def _add_up(self, tensors: list[Tensor]) -> None:
        with _told():
            for tensor in tensors:
                self._dist.all_reduce(tensor)

    def _next(self, name: str) -> int:
        return self._store.add(name, 1) - 1

    def _mark(self, name: str) -> None:
        self._store.set(name, "1")

    def _marked(self, name: str) -> bool:
        return self._store.check([name])

    def leave(self) -> None:
        """Let go of what connects this process to the others."""
        with contextlib.suppress(RuntimeError):
            self._dist.destroy_process_group()


def _as_tensor(message: bytes) -> Tensor:
    """The bytes of a message [n], which no collective takes as they are."""
    import torch

    return torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else torch.empty(0, dtype=torch.uint8)


@contextlib.contextmanager
def _told() -> Generator[None]:
    """Whatever goes wrong between processes is that one of them is lost."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(str(error)) from error

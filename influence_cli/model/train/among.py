"""Training by several processes: each has its share of every batch, and they average gradients (torch's DDP).

A batch has the rows that it has with one process, in the order of its epoch; the k-th of N processes takes every N-th
of them, from the k-th on.  With the weights of all of the batch's rows,

    loss of a process = N sum over its rows of w l / sum over the batch of w

so that the mean over processes is the loss of one, and gradients are its gradients to rounding.  A batch too small to
be shared is run by all of them alike.

BatchNorm in training mode normalises by all rows of the batch, whichever process has them, and so has the running
statistics of one process (``maths.shared_batch_norm``; torch's own SyncBatchNorm runs on CUDA alone).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from influence_cli.maths.shared_batch_norm import SharedBatchNorm
from influence_cli.processes.group import Group

if TYPE_CHECKING:
    from influence_cli.model.train.epoch_values import Values

LEAST = 2  # rows of a process's share: some models take a batch of one for none


class Among:
    """One of the processes that train a model together."""

    def __init__(self, group: Group, model: nn.Module, device: torch.device, some: Any) -> None:
        """All of them have the first one's weights then; ``some`` inputs tell which parameters are in use."""
        self.group, self.model = group, _distributed(model, device, not _uses_all(model, some))
        self.norms = normalises_batches(model)

    def own(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """The share of this process in a batch's rows."""
        return chosen[self.group.rank :: self.group.size] if self._shared(len(chosen)) else chosen

    def batch(self, rows: int) -> contextlib.AbstractContextManager[Any]:
        """Within it, what the model makes of its share depends on the whole batch of so many rows as it does alone."""
        if not self.norms or not self._shared(rows):
            return contextlib.nullcontext()
        return SharedBatchNorm(self.group.rank, self.group.size, self.group.add_up_now)

    def loss(self, losses: Tensor, weights: Tensor, rows: int, total: float) -> tuple[Tensor, Tensor]:
        """The loss that this process takes gradients of, and that of the batch of so many rows and so much weight."""
        shared = self._shared(rows)
        own = (weights * losses).sum() / total * (self.group.size if shared else 1)
        batch = own.detach().clone()
        self.group.mean(batch)
        return own, batch

    @property
    def apart(self) -> int:
        """What the seed of dropout is raised by: another for each process, and none for the first."""
        return 1_000_000_007 * self.group.rank

    def _shared(self, rows: int) -> bool:
        return rows >= LEAST * self.group.size


def _distributed(model: nn.Module, device: torch.device, unused: bool) -> Any:
    from torch.nn.parallel import DistributedDataParallel

    place = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=place, find_unused_parameters=unused)


def _uses_all(model: nn.Module, some: Any) -> bool:
    """Whether every parameter that is to be trained has a part in the logits; the model is left in training mode."""
    model.eval()  # no running statistics move, and nothing is drawn
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(model(some).float().sum(), trained, allow_unused=True)
    model.train()
    return all(g is not None for g in found)


def normalises_batches(model: nn.Module) -> bool:
    """Whether a model, in training mode, normalises a row by the others of its batch."""
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def put_together(parts: list[Values]) -> Values:
    """Values of rows by epoch that several processes have seen, each of its own rows: the others are NaN there."""
    found = {name: values.copy() for name, values in parts[0].items()}
    for part in parts[1:]:
        for name, values in part.items():
            found[name] = np.where(np.isnan(found[name]), values, found[name])
    return found

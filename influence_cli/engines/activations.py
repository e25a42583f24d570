"""How much memory the tensors of a model take on a row, for plans: one forward pass of a few rows is watched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from influence_cli.engines.point import differentiable_kernels, is_recurrent
from influence_cli.model.named_tensors import as_argument


@dataclass(frozen=True)
class Activations:
    """Bytes a row in a model's precision."""

    saved: float  # of all tensors that a backward pass needs
    largest: float  # of the largest of them


def activations(model: nn.Module, x: Any, rows: int) -> Activations:
    """What a forward pass of ``rows`` rows ``x`` keeps for the backward pass, a row; the model's own tensors apart."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}
    kept: list[Any] = []  # so that no place in memory is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            kept.append(storage)
        return tensor

    watching = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.enable_grad(), differentiable_kernels(is_recurrent(model)), watching:
        model(as_argument(x))
    return Activations(sum(seen.values()) / rows, max(seen.values(), default=0) / rows)
